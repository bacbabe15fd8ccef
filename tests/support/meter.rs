//! A TCP proxy that counts what comes back through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::ORIGIN_PORT;
use super::place::Place;

/// The proxy. Dropping it closes its port and every connection.
pub(crate) struct Meter {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    runtime: Option<Runtime>,
}

impl Meter {
    /// A way to the server at `host:port`.
    pub(crate) fn before(server: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let address = SocketAddr::new(Place::loopback().address.into(), ORIGIN_PORT);
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .expect("the port is free");
        let bytes = Arc::new(AtomicU64::new(0));
        runtime.spawn(accept(listener, server.to_owned(), Arc::clone(&bytes)));
        Self {
            address,
            bytes,
            runtime: Some(runtime),
        }
    }

    /// The URL at which the server is reached through it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the server has sent so far, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn accept(listener: TcpListener, server: String, bytes: Arc<AtomicU64>) {
    while let Ok((client, _)) = listener.accept().await {
        let (server, bytes) = (server.clone(), Arc::clone(&bytes));
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            let (mut from_client, to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            // Either end may leave first; the other sees its connection closed then.
            tokio::select! {
                _ = io::copy(&mut from_client, &mut to_server) => {}
                _ = count(from_server, to_client, &bytes) => {}
            }
        });
    }
}

async fn count(
    mut from: impl io::AsyncRead + Unpin,
    mut to: impl io::AsyncWrite + Unpin,
    bytes: &AtomicU64,
) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        bytes.fetch_add(read as u64, Ordering::Relaxed);
        to.write_all(&piece[..read]).await?;
    }
}
