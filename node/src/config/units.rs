//! Sizes, rates and durations as people write them.

use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes, written with a unit: `200GB`, `512MiB`, `1.5 TB`, or plain `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

/// Bytes in a second, written `50MB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteRate(pub u64);

/// A length of time, written `30s`, `500ms`, `5m`, `2h` or `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Period(pub Duration);

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("`{0}` is not a size; write a number and a unit, such as 512MiB or 200GB")]
    Size(String),
    /// Not a rate.
    #[error("`{0}` is not a rate; write a size per second, such as 50MB/s")]
    Rate(String),
    /// Not a length of time.
    #[error("`{0}` is not a length of time; write a number and a unit, such as 30s, 5m or 1h")]
    Period(String),
}

/// Decimal and binary units as the SI and IEC write them; a bare number is bytes. `K`, `M` and
/// `G` alone are refused: tools disagree on whether they are 1000 or 1024.
const SIZES: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
    ("", 1),
];

const PERIODS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Reads `1.5 GB` against a table of units. `None` for what is no number, has no such unit, or
/// does not fit.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, scale) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut total = whole.checked_mul(*scale)?;
    if !fraction.is_empty() {
        // Nine digits are more than anyone means, and keep the product within 128 bits.
        let fraction = fraction.get(..9).unwrap_or(fraction);
        let parts: u128 = fraction.parse().ok()?;
        let part = parts * u128::from(*scale) / 10u128.pow(fraction.len() as u32);
        total = total.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(total)
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        quantity(text, &SIZES)
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl FromStr for ByteRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.trim()
            .strip_suffix("/s")
            .and_then(|size| quantity(size, &SIZES))
            .map(Self)
            .ok_or_else(|| UnitError::Rate(text.to_owned()))
    }
}

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        quantity(text, &PERIODS)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| UnitError::Period(text.to_owned()))
    }
}

/// The largest unit that writes the size as a whole number, so that it reads back as the same.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = SIZES
            .iter()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("256MiB", 256 << 20),
            ("200GB", 200_000_000_000),
            ("200 gb", 200_000_000_000),
            ("1.5kB", 1500),
            ("0.1 TiB", 109_951_162_777),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in [
            "",
            "GB",
            "12X",
            "5G",
            "-1MB",
            "1.2.3MB",
            "99999999TB",
            "1e3",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_back_as_written() {
        for text in ["0B", "1B", "1023B", "256MiB", "50MB", "200GB", "4GiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!("50MB/s".parse::<ByteRate>().unwrap().to_string(), "50MB/s");
    }

    #[test]
    fn a_rate_is_per_second() {
        assert_eq!("50MB/s".parse(), Ok(ByteRate(50_000_000)));
        for text in ["50MB", "50/m", "MB/s"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn periods_need_a_unit() {
        assert_eq!("500ms".parse(), Ok(Period(Duration::from_millis(500))));
        assert_eq!("1.5m".parse(), Ok(Period(Duration::from_secs(90))));
        assert!("30".parse::<Period>().is_err());
    }
}
