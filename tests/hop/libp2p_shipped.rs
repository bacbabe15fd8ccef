//! libp2p's transports with the settings that they are shipped with, without a swarm around them.

use std::net::Ipv4Addr;

use futures::future::{Either, poll_fn, select};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::{Endpoint, Transport as _, upgrade::Version};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, noise, tcp, tls, yamux};

use super::{BLOCK, STEP, runtime};

type Transport = Boxed<(PeerId, StreamMuxerBox)>;

pub(crate) fn noise(blocks: usize) -> Result<(), String> {
    run(blocks, || {
        let noise = noise::Config::new(&Keypair::generate_ed25519()).map_err(said)?;
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        let secured = tcp.upgrade(Version::V1Lazy).authenticate(noise);
        Ok(secured.multiplex(yamux::Config::default()).boxed())
    })
}

pub(crate) fn tls(blocks: usize) -> Result<(), String> {
    run(blocks, || {
        let tls = tls::Config::new(&Keypair::generate_ed25519()).map_err(said)?;
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        let secured = tcp.upgrade(Version::V1Lazy).authenticate(tls);
        Ok(secured.multiplex(yamux::Config::default()).boxed())
    })
}

fn said(error: impl ToString) -> String {
    error.to_string()
}

fn run(blocks: usize, transport: impl Fn() -> Result<Transport, String>) -> Result<(), String> {
    let (sender, receiver) = (transport()?, transport()?);
    let (here, there) = (runtime()?, runtime()?);
    here.block_on(async {
        let (address, receiving) = listen(receiver, blocks).await?;
        let sending = there.spawn(send(sender, address, blocks));
        receiving.await.map_err(said)??;
        sending.abort();
        Ok(())
    })
}

/// A task that takes one connection and one stream, and reads so many blocks from it.
async fn listen(
    mut transport: Transport,
    blocks: usize,
) -> Result<(Multiaddr, tokio::task::JoinHandle<Result<(), String>>), String> {
    let local = Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(0));
    transport
        .listen_on(ListenerId::next(), local)
        .map_err(said)?;
    let address = loop {
        if let Some(TransportEvent::NewAddress { listen_addr, .. }) = transport.next().await {
            break listen_addr;
        }
    };
    let reading = tokio::spawn(async move {
        let upgrade = loop {
            if let Some(TransportEvent::Incoming { upgrade, .. }) = transport.next().await {
                break upgrade;
            }
        };
        let (_, mut muxer) = upgrade.await.map_err(said)?;
        let mut stream = poll_fn(|cx| {
            let _ = muxer.poll_unpin(cx);
            muxer.poll_inbound_unpin(cx)
        })
        .await
        .map_err(said)?;
        let read = async {
            let mut step = vec![0; STEP];
            let mut left = blocks * BLOCK;
            while left > 0 {
                let part = left.min(STEP);
                stream.read_exact(&mut step[..part]).await.map_err(said)?;
                left -= part;
            }
            Ok(())
        };
        while_driven(muxer, read).await
    });
    Ok((address, reading))
}

async fn send(mut transport: Transport, to: Multiaddr, blocks: usize) -> Result<(), String> {
    let options = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let (_, mut muxer) = transport
        .dial(to, options)
        .map_err(said)?
        .await
        .map_err(said)?;
    let mut stream: SubstreamBox = poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        muxer.poll_outbound_unpin(cx)
    })
    .await
    .map_err(said)?;
    let write = async {
        let block = vec![1; BLOCK];
        for _ in 0..blocks {
            for step in block.chunks(STEP) {
                stream.write_all(step).await.map_err(said)?;
            }
        }
        stream.flush().await.map_err(said)
    };
    let written = while_driven(muxer, write).await;
    // Until the receiver has all and the runtime ends: what closes takes unread bytes with it.
    written?;
    std::future::pending().await
}

/// A future, while the connection under it is moved on by a task of its own, as a swarm has it.
async fn while_driven<T>(
    mut muxer: StreamMuxerBox,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let driver = tokio::spawn(async move {
        loop {
            if let Err(error) = poll_fn(|cx| muxer.poll_unpin(cx)).await {
                return error.to_string();
            }
        }
    });
    match select(std::pin::pin!(work), driver).await {
        Either::Left((done, driver)) => {
            // Written is not sent: the driver goes on with what it holds.
            drop(driver);
            done
        }
        Either::Right((error, _)) => Err(error.unwrap_or_else(said)),
    }
}
