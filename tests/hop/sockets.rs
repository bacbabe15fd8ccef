//! Plain TCP, and TLS 1.3 with AES-128 and nothing else, between two threads.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite::TLS13_AES_128_GCM_SHA256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::{BLOCK, STEP};

pub(crate) fn tcp(blocks: usize) -> Result<(), String> {
    between(blocks, Ok, Ok).map_err(|error| error.to_string())
}

pub(crate) fn tls(blocks: usize) -> Result<(), String> {
    let (client, server) = configs().map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let dial = move |socket| {
        let connection = ClientConnection::new(client, name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, socket))
    };
    let listen = move |socket| {
        let connection = ServerConnection::new(server).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, socket))
    };
    between(blocks, dial, listen).map_err(|error| error.to_string())
}

/// Sends so many blocks from a thread that dials to this one.
fn between<D: Write + Send + 'static, L: Read>(
    blocks: usize,
    dial: impl FnOnce(TcpStream) -> io::Result<D> + Send + 'static,
    listen: impl FnOnce(TcpStream) -> io::Result<L>,
) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sender = thread::spawn(move || {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut stream = dial(socket)?;
        let block = vec![1; BLOCK];
        for _ in 0..blocks {
            for step in block.chunks(STEP) {
                stream.write_all(step)?;
            }
        }
        stream.flush()?;
        // Closed with bytes unread, such as a session's tickets, it would take what is on its way
        // along.
        Ok(stream)
    });
    let (socket, _) = listener.accept()?;
    let mut stream = listen(socket)?;
    let mut step = vec![0; STEP];
    let mut left = blocks * BLOCK;
    while left > 0 {
        let part = left.min(STEP);
        stream.read_exact(&mut step[..part])?;
        left -= part;
    }
    let sent: io::Result<D> = sender
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))?;
    sent.map(drop)
}

fn configs()
-> Result<(Arc<ClientConfig>, Arc<ServerConfig>), Box<dyn std::error::Error + Send + Sync>> {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
        certified.signing_key.serialize_der(),
    ));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    });
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok((Arc::new(client), Arc::new(server)))
}
