//! Real daemons on this machine: processes of the running binary, each with an address, a store
//! and a log of its own.
//!
//! None of them outlives the demo. Dropping the [`Swarm`] kills and reaps them, which covers
//! errors, panics and Ctrl-C; each also stops by itself when its stdin ends, which it does however
//! the demo dies.

use std::{
    env, fs,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Deserialize;
use shoal_node::clock;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::client::Client;

/// The name under which the daemons know the embedded origin.
pub(crate) const UPSTREAM: &str = "demo.test";

/// How long all daemons together may take to start and to see each other.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often they are asked, and how long an answer may take.
const POLL_EVERY: Duration = Duration::from_millis(100);
const POLL_TIMEOUT: Duration = Duration::from_secs(2);

/// How much of a log's end goes into an error.
const TAIL_LINES: usize = 10;

/// Variables that would send the daemons' reads of the origin elsewhere.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

/// Running daemons that know each other.
#[derive(Debug)]
pub(crate) struct Swarm {
    /// Fields are dropped in this order: the directory after those who write to it.
    nodes: Vec<Node>,
    _dir: TempDir,
}

#[derive(Debug)]
struct Node {
    number: usize,
    process: Process,
    addresses: Addresses,
    log: PathBuf,
}

/// A child that is killed and reaped when it goes out of scope. Holds the pipe to its stdin.
#[derive(Debug)]
struct Process(Child);

#[derive(Clone, Copy, Debug)]
struct Addresses {
    mirror: SocketAddr,
    admin: SocketAddr,
    swarm: SocketAddr,
}

#[derive(Deserialize)]
struct NodeStatus {
    members_alive: usize,
}

impl Swarm {
    /// Starts `count` daemons with empty stores and waits until every one sees all of them.
    ///
    /// Logs go to `logs` if given, and stay; else they go with the rest.
    pub(crate) async fn start(
        count: usize,
        origin: SocketAddr,
        logs: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let program = env::current_exe().context("cannot find the running binary")?;
        let dir = tempfile::Builder::new()
            .prefix("shoal-demo-")
            .tempdir()
            .with_context(|| format!("cannot make a directory in {}", env::temp_dir().display()))?;
        let logs = match logs {
            Some(logs) => logs.join(format!("{count}-nodes")),
            None => dir.path().join("logs"),
        };
        fs::create_dir_all(&logs)
            .with_context(|| format!("cannot make the directory {}", logs.display()))?;
        let key = dir.path().join("cluster.key");
        make_cluster_key(&program, &key)?;

        let mut nodes: Vec<Node> = Vec::new();
        for number in 1..=count {
            let addresses = Addresses::pick(number).context("cannot find free ports")?;
            let log = logs.join(format!("node-{number}.log"));
            let mut command = Command::new(&program);
            command
                .args(["node", "--exit-with-parent", "--config", "/dev/null"])
                .arg("--data-dir")
                .arg(dir.path().join(format!("node-{number}")))
                .arg("--cluster-key")
                .arg(&key)
                .arg(format!("--mirror={}", addresses.mirror))
                .arg(format!("--admin={}", addresses.admin))
                .arg(format!("--listen={}", addresses.swarm))
                .arg(format!("--advertise={}", addresses.swarm))
                .arg(format!("--origin={UPSTREAM}=http://{origin}"))
                .arg("--min-free=0B")
                .arg(format!(
                    "--log={}",
                    env::var("SHOAL_LOG").unwrap_or("info".into())
                ));
            if let Some(first) = nodes.first() {
                command.arg(format!("--join={}", first.addresses.swarm));
            }
            nodes.push(Node {
                number,
                process: Process::spawn(command, &log)
                    .with_context(|| format!("cannot start node {number}"))?,
                addresses,
                log,
            });
        }
        let mut swarm = Self { nodes, _dir: dir };
        swarm.wait_until_ready().await?;
        Ok(swarm)
    }

    /// Where each daemon's clients pull from.
    pub(crate) fn mirrors(&self) -> Vec<SocketAddr> {
        self.nodes
            .iter()
            .map(|node| node.addresses.mirror)
            .collect()
    }

    /// Ends all daemons. Names those that had ended before.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.nodes.iter_mut().filter_map(Node::casualty).collect()
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let client = Client::new();
        let deadline = clock::instant() + READY_WITHIN;
        let count = self.nodes.len();
        for node in &mut self.nodes {
            loop {
                if let Some(casualty) = node.casualty() {
                    bail!(casualty);
                }
                let Err(problem) = node.ready(&client, count).await else {
                    break;
                };
                if clock::instant() > deadline {
                    bail!(
                        "node {} was not ready within {} s: {problem}; its log ends with\n{}",
                        node.number,
                        READY_WITHIN.as_secs(),
                        tail(&node.log)
                    );
                }
                sleep(POLL_EVERY).await;
            }
        }
        Ok(())
    }
}

impl Node {
    /// Whether it serves and sees `count` members; otherwise what is missing.
    async fn ready(&self, client: &Client, count: usize) -> Result<(), String> {
        let admin = self.addresses.admin;
        let get = |path: &'static str| async move {
            match timeout(POLL_TIMEOUT, client.get(admin, path)).await {
                Ok(reply) => reply.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer to GET http://{admin}{path}")),
            }
        };
        get("/readyz").await?;
        let status = get("/v1/node").await?;
        let status: NodeStatus = serde_json::from_slice(&status)
            .map_err(|error| format!("GET http://{admin}/v1/node: {error}"))?;
        if status.members_alive == count {
            Ok(())
        } else {
            Err(format!(
                "it sees {} of {count} members",
                status.members_alive
            ))
        }
    }

    /// How it ended, if it has.
    fn casualty(&mut self) -> Option<String> {
        let ended = self.process.ended()?;
        Some(format!(
            "node {} ended by itself ({ended}); its log ends with\n{}",
            self.number,
            tail(&self.log)
        ))
    }
}

impl Process {
    /// Starts a program with its output in a file and its stdin open for as long as this lives.
    fn spawn(mut command: Command, log: &Path) -> io::Result<Self> {
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("SHOAL_") {
                command.env_remove(name);
            }
        }
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        let log = File::create(log)?;
        command
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map(Self)
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        // An error means that there is no such child, which `spawn` rules out.
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that was reaped already. Its store is thrown away, so it need
        // not stop cleanly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Addresses {
    /// Free ports on the node's own loopback address: 127.0.0.2 for the first node. Systems that
    /// have only 127.0.0.1 get that.
    fn pick(number: usize) -> io::Result<Self> {
        let last = u8::try_from(number + 1).unwrap_or(1);
        let own = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let bind = |_| TcpListener::bind((own, 0)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
        // Held together, so that the three differ; the daemon takes them over when they close.
        let held: Vec<TcpListener> = (0..3).map(bind).collect::<io::Result<_>>()?;
        let address = |index: usize| held[index].local_addr();
        Ok(Self {
            mirror: address(0)?,
            admin: address(1)?,
            swarm: address(2)?,
        })
    }
}

fn make_cluster_key(program: &Path, key: &Path) -> anyhow::Result<()> {
    let made = Command::new(program)
        .args(["cluster", "init", "--cluster-key"])
        .arg(key)
        .stdin(Stdio::null())
        .output()
        .context("cannot run `shoal cluster init`")?;
    if !made.status.success() {
        bail!(
            "`shoal cluster init` failed: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );
    }
    Ok(())
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return "  (it is empty)".to_owned();
    }
    let indented: Vec<String> = last.iter().map(|line| format!("  {line}")).collect();
    indented.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command, log).unwrap()
    }

    fn node(script: &str, dir: &Path) -> Node {
        let log = dir.join("log");
        Node {
            number: 3,
            process: shell(script, &log),
            addresses: Addresses::pick(3).unwrap(),
            log,
        }
    }

    fn exists(process: u32) -> bool {
        Path::new(&format!("/proc/{process}")).exists()
    }

    #[test]
    fn dropping_a_process_kills_and_reaps_it() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 1000", &dir.path().join("log"));
        let id = process.0.id();
        assert!(exists(id));
        drop(process);
        assert!(!exists(id), "a zombie would still be listed");
    }

    #[test]
    fn a_panic_kills_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 1000", &dir.path().join("log"));
        let id = process.0.id();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = process;
            panic!("in the middle of a demo");
        }));
        assert!(panicked.is_err() && !exists(id));
    }

    #[test]
    fn stdin_stays_open_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("cat; echo the end", &dir.path().join("log"));
        assert!(process.ended().is_none());
        drop(process.0.stdin.take());
        assert!(process.0.wait().unwrap().success());
        assert_eq!(tail(&dir.path().join("log")), "  the end");
    }

    #[tokio::test]
    async fn a_node_that_ends_at_once_is_reported_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut swarm = Swarm {
            nodes: vec![node("seq 100; echo port in use >&2; exit 7", dir.path())],
            _dir: dir,
        };
        let error = swarm.wait_until_ready().await.unwrap_err().to_string();
        assert!(
            error.starts_with("node 3 ended by itself (exit status: 7)"),
            "{error}"
        );
        assert!(error.ends_with("  100\n  port in use"), "{error}");
        assert!(!error.contains("  90\n"), "{error}");
    }

    #[tokio::test]
    async fn a_node_is_ready_when_it_sees_all_members() {
        use http_body_util::Full;
        use hyper::{Response, server::conn::http1, service::service_fn};
        use hyper_util::rt::TokioIo;

        let dir = tempfile::tempdir().unwrap();
        let mut node = node("exec sleep 1000", dir.path());
        let client = Client::new();
        assert!(node.ready(&client, 2).await.is_err());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        node.addresses.admin = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service_fn(|_| async {
                    let body = bytes::Bytes::from(r#"{"id":"x","members_alive":2}"#);
                    Ok::<_, hyper::Error>(Response::new(Full::new(body)))
                });
                let connection = http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(socket), service));
            }
        });
        assert_eq!(node.ready(&client, 2).await, Ok(()));
        let alone = node.ready(&client, 3).await.unwrap_err();
        assert_eq!(alone, "it sees 2 of 3 members");
    }

    #[test]
    fn every_node_has_ports_of_its_own() {
        let first = Addresses::pick(1).unwrap();
        let second = Addresses::pick(2).unwrap();
        let all = [
            first.mirror,
            first.admin,
            first.swarm,
            second.mirror,
            second.admin,
        ];
        let distinct: std::collections::BTreeSet<_> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(first.mirror.ip().to_string(), "127.0.0.2");
    }
}
