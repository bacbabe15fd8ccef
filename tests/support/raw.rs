//! Requests byte by byte over a socket of this process, where `curl` is too polite.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take: longer than anything that the mirror lets a client wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(75);

/// Bytes that are read at once.
const PIECE: usize = 64 * 1024;

/// A connection.
pub(crate) struct Raw {
    stream: TcpStream,
}

/// An answer, as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// The status; 0 where nothing came.
    pub(crate) status: u16,
    /// The status line and the headers.
    pub(crate) head: String,
    /// What followed.
    pub(crate) body: Vec<u8>,
}

impl Raw {
    /// Connects to `host:port`.
    pub(crate) fn connect(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("it is an address");
        let stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT);
        let stream = stream.expect("the service accepts connections");
        let limited = stream.set_read_timeout(Some(ANSWER_LIMIT));
        limited.expect("sockets have read timeouts");
        Self { stream }
    }

    /// Sends these bytes; the other side may have closed already.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends no more, and goes on listening.
    pub(crate) fn end_sending(&mut self) {
        // It fails where the other side has closed.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// At most so many bytes, as they come; none at the end, however it came.
    pub(crate) fn read_some(&mut self, most: usize) -> Vec<u8> {
        let mut buffer = vec![0; most.min(PIECE)];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    buffer.truncate(count);
                    return buffer;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("the connection is neither answered nor closed in {ANSWER_LIMIT:?}")
                }
                Err(_) => return Vec::new(),
            }
        }
    }

    /// Exactly so many bytes, or those that come before the end.
    pub(crate) fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            let some = self.read_some(count - all.len());
            if some.is_empty() {
                break;
            }
            all.extend(some);
        }
        all
    }

    /// All that comes until the connection ends.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        self.read_exactly(usize::MAX)
    }
}

impl Answer {
    /// The first answer in these bytes, and whatever follows it as its body.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            return Self::default();
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or_default(),
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// A header that is there once at most.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(have, _)| have.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value);
        assert!(values.next().is_none(), "{name} twice: {}", self.head);
        value
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.head))
    }

    /// The code of an error in the specification's form.
    pub(crate) fn error_code(&self) -> String {
        let error = &self.json()["errors"][0];
        assert!(error["message"].is_string(), "{error}");
        error["code"].as_str().expect("a code").to_owned()
    }
}

/// The head of a request after which the connection is to be closed.
pub(crate) fn head(request_line: &str, headers: &[&str]) -> Vec<u8> {
    let mut text = format!("{request_line}\r\nHost: x\r\nConnection: close\r\n");
    for line in headers {
        text += line;
        text += "\r\n";
    }
    (text + "\r\n").into_bytes()
}

/// Sends one request, with these header lines and this body, and reads until the connection ends.
pub(crate) fn ask(
    address: &str,
    method: &str,
    target: &str,
    headers: &[&str],
    body: &[u8],
) -> Answer {
    let length = format!("Content-Length: {}", body.len());
    let length = (!body.is_empty()).then_some(&*length);
    let headers: Vec<&str> = headers.iter().copied().chain(length).collect();
    let mut connection = Raw::connect(address);
    connection.send(
        &[
            &*head(&format!("{method} {target} HTTP/1.1"), &headers),
            body,
        ]
        .concat(),
    );
    Answer::parse(&connection.read_to_end())
}

/// A GET.
pub(crate) fn get(address: &str, target: &str, headers: &[&str]) -> Answer {
    ask(address, "GET", target, headers, b"")
}
