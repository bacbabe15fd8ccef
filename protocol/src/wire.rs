//! Bytes on the wire and in small files: bincode with limits, the one place that knows the format.
//!
//! Every encoding begins with a version byte. A reader refuses a version that it does not know,
//! and never allocates more than its limit whatever the bytes say.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    directory::{Directory, Peer},
    limits::{
        ADDRESSES_MAX, CHUNK_BYTES, CONTROL_FRAME_BYTES_MAX, MEMBER_PAGE_MAX,
        REGISTRY_URL_BYTES_MAX, TOKEN_BYTES_MAX,
    },
    message::{ChunkHeader, Message, TokenAnswer, WireMessage},
};

/// The version of every encoding that this build writes.
pub const VERSION: u8 = 1;

/// Bytes of the largest encoded [`ChunkHeader`].
pub const CHUNK_HEADER_BYTES_MAX: usize = 512;

/// Room for most encodings, in bytes: so these take one allocation.
const ENCODED_BYTES: usize = 256;

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No bytes at all.
    #[error("empty message")]
    Empty,
    /// Written by another version.
    #[error("version {0} of the format; this build reads version {VERSION}")]
    Version(u8),
    /// Not what was expected.
    #[error("malformed message: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// Well-formed, but outside the bounds that every node keeps.
    #[error("message out of bounds: {0}")]
    OutOfBounds(&'static str),
}

fn options() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<CONTROL_FRAME_BYTES_MAX>()
}

/// The bytes of a value.
///
/// # Panics
/// Never for the types of this crate: none of them can fail to serialize.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENCODED_BYTES);
    out.push(VERSION);
    bincode::serde::encode_into_std_write(value, &mut out, options())
        .expect("plain data types serialize into memory");
    out
}

/// Reads what [`encode`] wrote. Bytes left over are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != VERSION {
        return Err(WireError::Version(*version));
    }
    let (value, used) = bincode::serde::decode_from_slice(body, options())?;
    if used == body.len() {
        Ok(value)
    } else {
        Err(WireError::OutOfBounds("trailing bytes"))
    }
}

/// Reads a value from the front of `bytes`, and says how many bytes it took.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), WireError> {
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != VERSION {
        return Err(WireError::Version(*version));
    }
    let (value, used) = bincode::serde::decode_from_slice(body, options())?;
    Ok((value, used + 1))
}

/// The bytes of a control message.
pub fn encode_message(message: Message<Peer>, directory: &Directory) -> Vec<u8> {
    encode(&message.map_peers(|peer| (*directory.record(peer)).clone()))
}

/// Reads a control message and checks the bounds that do not depend on who receives it.
pub fn decode_message(bytes: &[u8], directory: &Directory) -> Result<Message<Peer>, WireError> {
    let message: WireMessage = decode(bytes)?;
    if let Message::Join { have, .. } | Message::Offer { have, .. } = &message
        && !have.is_well_formed()
    {
        return Err(WireError::OutOfBounds("bitfield"));
    }
    if let Message::Members { page, .. } = &message
        && (page.len() > MEMBER_PAGE_MAX
            || page
                .iter()
                .any(|entry| entry.peer.addresses.len() > ADDRESSES_MAX))
    {
        return Err(WireError::OutOfBounds("member page"));
    }
    if let Message::AskToken { key, .. } | Message::OfferToken { key, .. } = &message
        && key.registry.len() > REGISTRY_URL_BYTES_MAX
    {
        return Err(WireError::OutOfBounds("registry URL"));
    }
    if let Message::OfferToken { token, .. }
    | Message::Token {
        answer: TokenAnswer::Granted(token),
        ..
    } = &message
        && token.secret.len() > TOKEN_BYTES_MAX
    {
        return Err(WireError::OutOfBounds("token"));
    }
    Ok(message.map_peers(|record| directory.intern(&record)))
}

/// Reads a chunk header and checks that it announces a chunk of a possible length.
pub fn decode_chunk_header(bytes: &[u8]) -> Result<ChunkHeader, WireError> {
    let header: ChunkHeader = decode(bytes)?;
    if u64::from(header.attestation.len) > CHUNK_BYTES {
        return Err(WireError::OutOfBounds("chunk length"));
    }
    if header.wire_len() > header.attestation.len {
        return Err(WireError::OutOfBounds("packed length"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        message::{Hint, News, Token, TokenHash, TokenKey},
    };

    fn key(registry: &str) -> TokenKey {
        TokenKey {
            hint: Hint {
                upstream: "registry.test".parse().unwrap(),
                repository: "team/app".parse().unwrap(),
            },
            registry: registry.to_owned(),
        }
    }

    fn token(len: usize) -> Token {
        Token {
            secret: "z".repeat(len),
            lifetime_ms: 300_000,
            anonymous: false,
        }
    }

    fn there_and_back(message: &Message) -> Result<Message, WireError> {
        let directory = Directory::new();
        decode_message(&encode_message(message.clone(), &directory), &directory)
    }

    #[test]
    fn tokens_arrive_as_they_were_sent_and_in_no_log() {
        let question = Message::AskToken {
            id: 7,
            key: key("https://registry.test/"),
            rejected: Some(TokenHash::of("old")),
            anonymous: true,
        };
        let offer = Message::OfferToken {
            key: key("https://registry.test/"),
            token: token(TOKEN_BYTES_MAX),
        };
        let answers = [
            TokenAnswer::Granted(token(2)),
            TokenAnswer::LoggingIn,
            TokenAnswer::None,
        ];
        let answers = answers.map(|answer| Message::Token { id: 7, answer });
        for message in answers.into_iter().chain([question, offer]) {
            assert_eq!(there_and_back(&message).unwrap(), message);
            assert!(!format!("{message:?}").contains("zz"), "{message:?}");
        }
    }

    #[test]
    fn news_of_any_length_arrive_as_they_were_sent() {
        let blob = Digest::sha256([7; 32]);
        for (blobs, chunks) in [(0, 0), (1, 0), (1, 8), (1, 9), (3, 300)] {
            let news = News {
                blob,
                chunks: (0..chunks).collect(),
            };
            let message = Message::Have {
                news: vec![news; blobs].into(),
                queue_ms: 5,
            };
            assert_eq!(there_and_back(&message).unwrap(), message);
        }
    }

    #[test]
    fn tokens_and_urls_beyond_their_bounds_are_refused() {
        let offer = |registry: &str, len| Message::OfferToken {
            key: key(registry),
            token: token(len),
        };
        let answer = Message::Token {
            id: 7,
            answer: TokenAnswer::Granted(token(TOKEN_BYTES_MAX + 1)),
        };
        let long = "r".repeat(REGISTRY_URL_BYTES_MAX + 1);
        let url = offer(&long, 1);
        for message in [offer("r", TOKEN_BYTES_MAX + 1), answer, url] {
            let refused = there_and_back(&message);
            assert!(matches!(refused, Err(WireError::OutOfBounds(_))));
        }
    }
}
