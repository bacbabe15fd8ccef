//! How many pulls a registry still gives.
//!
//! Docker Hub counts GETs of manifests, and says in the answers to those and to HEADs, which it does not
//! count, how many are left of how many in how long: `ratelimit-remaining: 76;w=21600`
//! (<https://docs.docker.com/docker-hub/usage/pulls/>).

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderMap;
use serde::Deserialize;
use shoal_protocol::{reference::Upstream, time::Time};

use super::limits::ALLOWANCES_MAX;
use crate::{clock::Clock, stats::AllowanceStats};

/// How many of the pulls that a registry gives are kept for what nothing but the registry can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Reserve {
    /// So many percent of its limit, rounded up; at most 100.
    Percent(u8),
    /// So many.
    Pulls(u64),
}

impl Default for Reserve {
    /// Enough to bring up something new in each hour of Docker Hub's six with its 100 pulls.
    fn default() -> Self {
        Self::Percent(10)
    }
}

impl Reserve {
    fn of(self, limit: u64) -> u64 {
        match self {
            Self::Percent(percent) => limit.saturating_mul(percent.into()).div_ceil(100),
            Self::Pulls(pulls) => pulls,
        }
    }
}

impl FromStr for Reserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let reserve = match text.strip_suffix('%') {
            Some(percent) => percent
                .trim_end()
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .map(Self::Percent),
            None => text.parse().ok().map(Self::Pulls),
        };
        reserve.ok_or_else(|| {
            format!(
                "`{text}` is not a number of pulls; write a percentage of the registry's limit, such \
                 as 10%, or a number, such as 20"
            )
        })
    }
}

impl TryFrom<String> for Reserve {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What a registry said last.
#[derive(Clone, Debug)]
struct Allowance {
    limit: u64,
    remaining: u64,
    window: Duration,
    /// Whose pulls it counts: an address, or a user.
    source: Option<String>,
    at: Time,
}

/// What registries said last, by upstream. A window that has passed since takes it with it.
pub(super) struct Allowances {
    clock: Clock,
    reserve: Reserve,
    said: Mutex<BTreeMap<Upstream, Allowance>>,
}

impl Allowances {
    pub(super) fn new(clock: Clock, reserve: Reserve) -> Self {
        Self {
            clock,
            reserve,
            said: Mutex::default(),
        }
    }

    /// Reads an answer of the upstream's registry; most say nothing of it.
    pub(super) fn note(&self, upstream: &Upstream, headers: &HeaderMap) {
        let Some(allowance) = read(headers, self.clock.now()) else {
            return;
        };
        let mut said = self.current();
        if said.len() < ALLOWANCES_MAX || said.contains_key(upstream) {
            said.insert(upstream.clone(), allowance);
        }
    }

    /// Why an upstream is to be spared, where no more than the reserve is left.
    pub(super) fn spared(&self, upstream: &Upstream) -> Option<String> {
        let said = self.current();
        let Allowance {
            limit, remaining, ..
        } = said.get(upstream)?;
        (*remaining <= self.reserve.of(*limit)).then(|| {
            format!(
                "{upstream} gives {remaining} more of {limit} pulls, and they are kept for what \
                 nobody here has"
            )
        })
    }

    pub(super) fn stats(&self) -> Vec<AllowanceStats> {
        let said = self.current();
        let stats = said
            .iter()
            .map(|(upstream, allowance)| self.tell(upstream, allowance));
        stats.collect()
    }

    /// What one answer of the upstream's registry says.
    pub(super) fn of(&self, upstream: &Upstream, headers: &HeaderMap) -> Option<AllowanceStats> {
        let allowance = read(headers, self.clock.now())?;
        Some(self.tell(upstream, &allowance))
    }

    fn tell(&self, upstream: &Upstream, allowance: &Allowance) -> AllowanceStats {
        AllowanceStats {
            upstream: upstream.to_string(),
            limit: allowance.limit,
            remaining: allowance.remaining,
            window_seconds: allowance.window.as_secs(),
            source: allowance.source.clone(),
            age_seconds: self.clock.now().since(allowance.at).as_secs(),
            spared: allowance.remaining <= self.reserve.of(allowance.limit),
        }
    }

    /// What still holds.
    fn current(&self) -> MutexGuard<'_, BTreeMap<Upstream, Allowance>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        said.retain(|_, allowance| now.since(allowance.at) < allowance.window);
        said
    }
}

fn read(headers: &HeaderMap, at: Time) -> Option<Allowance> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let (limit, window) = counted(text("ratelimit-limit")?)?;
    let (remaining, _) = counted(text("ratelimit-remaining")?)?;
    let source = text("docker-ratelimit-source").map(|source| source.chars().take(100).collect());
    Some(Allowance {
        limit,
        remaining,
        window,
        source,
        at,
    })
}

/// `76;w=21600`: a number in so many seconds. Without those it is another kind of limit.
fn counted(value: &str) -> Option<(u64, Duration)> {
    let (count, parameters) = value.split(',').next()?.split_once(';')?;
    let mut parameters = parameters.split(';');
    let window = parameters.find_map(|parameter| parameter.trim().strip_prefix("w="))?;
    let window = Duration::from_secs(window.trim().parse().ok()?);
    Some((count.trim().parse().ok()?, window))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(limit: &str, remaining: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", limit.parse().unwrap());
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        headers.insert("docker-ratelimit-source", "192.0.2.1".parse().unwrap());
        headers
    }

    #[test]
    fn limits_are_read_as_docker_hub_writes_them() {
        for (value, expected) in [
            ("76;w=21600", Some((76, 21600))),
            ("100 ; x=1; w=60", Some((100, 60))),
            ("200;w=21600,1000;w=86400", Some((200, 21600))),
            ("76", None),
            ("76;w=soon", None),
            ("-1;w=21600", None),
            ("", None),
        ] {
            let expected = expected.map(|(count, seconds)| (count, Duration::from_secs(seconds)));
            assert_eq!(counted(value), expected, "{value}");
        }
    }

    #[test]
    fn a_reserve_is_a_share_or_a_number() {
        for (text, of_100) in [("10%", 10), ("0%", 0), ("25", 25), ("0", 0), ("100 %", 100)] {
            assert_eq!(text.parse::<Reserve>().unwrap().of(100), of_100, "{text}");
        }
        assert_eq!(Reserve::Percent(10).of(5), 1);
        for text in ["", "%", "101%", "ten", "-1", "1.5%"] {
            assert!(text.parse::<Reserve>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_left_counts_until_its_window_ends() {
        let allowances = Allowances::new(Clock::start(), Reserve::Percent(10));
        let upstream: Upstream = "docker.io".parse().unwrap();
        allowances.note(&upstream, &headers("100;w=21600", "11;w=21600"));
        assert_eq!(allowances.spared(&upstream), None);
        allowances.note(&upstream, &HeaderMap::new());
        assert_eq!(allowances.stats()[0].remaining, 11);
        allowances.note(&upstream, &headers("100;w=21600", "10;w=21600"));
        assert!(
            allowances
                .spared(&upstream)
                .unwrap()
                .contains("10 more of 100")
        );
        let stats = &allowances.stats()[0];
        assert!(stats.spared);
        assert_eq!(stats.source.as_deref(), Some("192.0.2.1"));
        assert_eq!(allowances.spared(&"quay.io".parse().unwrap()), None);

        allowances.note(&upstream, &headers("100;w=0", "0;w=0"));
        assert_eq!(allowances.spared(&upstream), None);
        assert!(allowances.stats().is_empty());
    }
}
