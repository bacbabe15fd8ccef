//! Finding the swarm: the `--join` addresses, dialled for ever.
//!
//! Names are resolved again each time, and every address behind them is dialled: a headless service
//! of Kubernetes has one per pod, and they change. An address that is connected is looked at again
//! from time to time, because a swarm that was split heals only if somebody dials across.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    str::FromStr,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use shoal_protocol::directory::Peer;
use tracing::{debug, info, warn};

use super::{ConnectError, Network};

/// The first pause after a failure; it doubles from there,
const RETRY_MIN: Duration = Duration::from_millis(500);

/// up to this.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The pause while connected.
const RECHECK: Duration = Duration::from_secs(30);

/// Addresses behind one name that are used: more than enough ways into one swarm.
const ADDRESSES_PER_NAME_MAX: usize = 256;

/// Dials that one name may have under way at once.
const DIALS_AT_ONCE: usize = 16;

/// Where to find members: `host:port` or `ip:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JoinAddress(String);

/// The text is not a join address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address to join; write host:port, 10.0.0.1:7000 or [fd00::1]:7000")]
pub struct JoinAddressError(String);

impl FromStr for JoinAddress {
    type Err = JoinAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = text.rsplit_once(':').is_some_and(|(host, port)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !host.is_empty()
                && host.len() <= 253
                && host.chars().all(plain)
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        let numeric = text
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.port() != 0);
        if named || numeric {
            Ok(Self(text.to_owned()))
        } else {
            Err(JoinAddressError(text.to_owned()))
        }
    }
}

impl std::fmt::Display for JoinAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl JoinAddress {
    /// All addresses behind the name, now.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host(&self.0).await?;
        Ok(found.take(ADDRESSES_PER_NAME_MAX).collect())
    }
}

/// Keeps this node connected to whoever answers at these addresses, as long as the network lives.
pub async fn run(network: Network, join: Vec<JoinAddress>) {
    let each = join.into_iter().map(|name| keep(network.clone(), name));
    futures::future::join_all(each).await;
}

async fn keep(network: Network, name: JoinAddress) {
    let mut known: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut ours: HashSet<SocketAddr> = HashSet::new();
    let mut pause = RETRY_MIN;
    let mut failing = false;
    loop {
        let failure = match name.resolve().await {
            Ok(found) => {
                known.retain(|address, _| found.contains(address));
                let missing = found.into_iter().filter(|address| {
                    let connected = known
                        .get(address)
                        .is_some_and(|peer| network.is_connected(*peer));
                    !connected && !ours.contains(address)
                });
                let dials = missing.map(|address| {
                    let network = &network;
                    async move { (address, network.connect(address).await) }
                });
                let outcomes: Vec<_> = stream::iter(dials.collect::<Vec<_>>())
                    .buffer_unordered(DIALS_AT_ONCE)
                    .collect()
                    .await;
                let mut failure = None;
                for (address, outcome) in outcomes {
                    match outcome {
                        Ok(peer) => {
                            info!(%name, %address, "joined");
                            known.insert(address, peer);
                        }
                        Err(ConnectError::OurOwn) => {
                            ours.insert(address);
                        }
                        Err(ConnectError::Shutdown) => return,
                        Err(error) => failure = Some(format!("{address}: {error}")),
                    }
                }
                failure
            }
            Err(error) => Some(format!("the name does not resolve: {error}")),
        };
        if let Some(reason) = failure {
            // The first failure is news, its repetitions are not.
            if failing {
                debug!(%name, "cannot join: {reason}");
            } else {
                warn!(%name, "cannot join yet, trying on: {reason}");
            }
            failing = true;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        } else {
            failing = false;
            pause = RETRY_MIN;
            tokio::time::sleep(RECHECK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_addresses_are_names_or_numbers_with_a_port() {
        for good in [
            "shoal:7000",
            "a.b-c.svc:1",
            "10.0.0.1:7000",
            "[fd00::1]:7000",
        ] {
            assert!(good.parse::<JoinAddress>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "shoal",
            "shoal:",
            ":7000",
            "shoal:0",
            "a b:1",
            "fd00::1:7000",
            "x:99999",
        ] {
            assert!(bad.parse::<JoinAddress>().is_err(), "{bad}");
        }
    }
}
