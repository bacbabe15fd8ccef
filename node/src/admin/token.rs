//! Who may have content put in and given out at the admin endpoint: whoever can read the data directory.
//!
//! Everyone on the host reaches the port. What is imported is answered to other nodes, and what is
//! exported may be an image that its origin does not give to everybody, so that reaching it is not
//! enough for those two. The token is made anew at each start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hyper::header::HeaderValue;
use rand::{TryRng as _, rngs::SysRng};

use crate::cluster::create_private;

/// The token that a running daemon asks for.
pub struct Token(blake3::Hash);

/// The file of a token in a data directory.
pub fn token_file(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.token")
}

impl Token {
    /// Makes a token and writes it where only this process's user can read it, in place of the last.
    ///
    /// # Errors
    /// File-system errors; no randomness.
    pub fn create(data_dir: &Path) -> io::Result<Self> {
        let mut secret = [0; 32];
        SysRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| io::Error::other(format!("no random numbers: {error}")))?;
        let text = hex::encode(secret);
        let path = token_file(data_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => create_private(&path, &text)?,
        }
        Ok(Self::of(&text))
    }

    fn of(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether an `Authorization` shows it. Hashes are compared, in constant time.
    pub(super) fn is_shown_by(&self, header: Option<&HeaderValue>) -> bool {
        header
            .and_then(|header| header.to_str().ok()?.strip_prefix("Bearer "))
            .is_some_and(|text| blake3::hash(text.trim().as_bytes()) == self.0)
    }
}
