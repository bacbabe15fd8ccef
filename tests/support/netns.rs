//! A network of hosts on one machine: network namespaces on a bridge, with shaped links.
//!
//! Every host is a namespace with one interface, `eth0`, whose peer is a port of a bridge in a
//! namespace of its own: nothing passes through the machine's real interfaces or its routing
//! tables. Both directions of a link are shaped with a token bucket: the host's own end for what
//! it sends, the bridge's port for what it receives.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::place::Place;

/// Names begin with this, then the process id of the test run, so that stale ones can be told.
const PREFIX: &str = "shoal-e2e-";

/// How long a shaped link queues before it drops: enough for TCP to fill it, little enough that
/// control messages do not drown.
const QUEUE_MS: u64 = 50;

/// How TCP shares a link: as Linux has it where nobody changes it, on every machine. Namespaces take
/// over what their machine has, and may choose among what it allows.
const CONGESTION: &str = "cubic";
const CONGESTION_ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// The rate of a host's link in each direction, in Mbit/s; `None` is as fast as the machine.
pub(crate) type LinkRate = Option<u64>;

/// A set of hosts on one bridge. Dropping it kills what runs there and deletes everything.
pub(crate) struct Lab {
    switch: String,
    hosts: Vec<Place>,
    names: Vec<String>,
}

impl Lab {
    /// `count` hosts, numbered from 0, each with a link of `rate`.
    pub(crate) fn new(count: usize, rate: LinkRate) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        sweep();
        allow_congestion();
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{lab}", std::process::id());
        let mut lab = Self {
            switch: format!("{name}-switch"),
            hosts: Vec::new(),
            names: Vec::new(),
        };
        lab.add_namespace(lab.switch.clone());
        ip(&["-n", &lab.switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &lab.switch, "link", "set", "br0", "up"]);
        for number in 0..count {
            lab.add_host(format!("{name}-h{number}"), rate);
        }
        lab
    }

    /// The hosts, in order.
    pub(crate) fn hosts(&self) -> &[Place] {
        &self.hosts
    }

    /// From now on, what a host sends leaves at this rate.
    pub(crate) fn limit(&self, host: usize, rate: LinkRate) {
        let name = &self.names[host + 1];
        match rate {
            Some(rate) => shape(name, "eth0", rate),
            None => run("tc", &["-n", name, "qdisc", "del", "dev", "eth0", "root"]),
        }
    }

    fn add_namespace(&mut self, name: String) {
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        let choose = format!("echo {CONGESTION} > /proc/sys/net/ipv4/tcp_congestion_control");
        ip(&["netns", "exec", &name, "sh", "-c", &choose]);
        self.names.push(name);
    }

    fn add_host(&mut self, name: String, rate: LinkRate) {
        let number = u8::try_from(self.hosts.len() + 1).expect("a lab has fewer than 255 hosts");
        let address = Ipv4Addr::new(10, 77, 0, number);
        let (port, cidr) = (format!("port{number}"), format!("{address}/24"));
        let switch = self.switch.clone();
        self.add_namespace(name.clone());
        ip(&[
            "link", "add", "eth0", "netns", &name, "type", "veth", "peer", "name", &port, "netns",
            &switch,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0"]);
        ip(&["-n", &switch, "link", "set", &port, "up"]);
        ip(&["-n", &name, "addr", "add", &cidr, "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        if let Some(rate) = rate {
            shape(&name, "eth0", rate);
            shape(&switch, &port, rate);
        }
        self.hosts.push(Place::host(name, address));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            delete(name);
        }
    }
}

/// Limits what leaves `device` to `rate` Mbit/s. The bucket holds 4 ms of it, but never less than
/// two of the largest segments that the kernel hands over at once.
fn shape(namespace: &str, device: &str, rate: u64) {
    let burst = (rate * 1_000_000 / 8 * 4 / 1000).max(128 * 1024);
    let arguments = format!(
        "-n {namespace} qdisc replace dev {device} root tbf rate {rate}mbit burst {burst} latency {QUEUE_MS}ms"
    );
    run("tc", &arguments.split(' ').collect::<Vec<_>>());
}

/// Lets namespaces choose [`CONGESTION`]; nothing else on this machine changes by it.
fn allow_congestion() {
    let allowed = fs::read_to_string(CONGESTION_ALLOWED).expect("Linux says what it allows");
    if !allowed.split_whitespace().any(|name| name == CONGESTION) {
        let more = format!("{} {CONGESTION}", allowed.trim());
        fs::write(CONGESTION_ALLOWED, more).expect("these tests build networks and need root");
    }
}

/// Deletes the namespaces of test runs that are no more.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            delete(&name);
        }
    }
}

/// Kills what runs in a namespace and deletes it. A veth pair goes with either of its ends.
fn delete(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            let _ = Command::new("kill")
                .args(["-KILL", pid])
                .stderr(Stdio::null())
                .status();
        }
    }
    let _ = Command::new("ip")
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot start `{program}` (Debian package iproute2): {error}")
        });
    assert!(
        output.status.success(),
        "`{program} {}` failed: {}; these tests build networks and need root with \
         CAP_NET_ADMIN and CAP_SYS_ADMIN",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim(),
    );
}

#[test]
fn hosts_of_a_lab_reach_each_other_and_nothing_else() {
    let lab = Lab::new(2, None);
    let refuses = |address: &str| {
        let connect = format!("exec 3<>/dev/tcp/{address}/9");
        let output = lab.hosts()[0]
            .command("bash")
            .args(["-c", &connect])
            .output();
        String::from_utf8_lossy(&output.expect("bash runs").stderr).contains("refused")
    };
    assert!(
        refuses("10.77.0.2"),
        "the neighbour answers that nobody listens"
    );
    assert!(!refuses("192.0.2.1"), "there is no way out of the lab");
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::new(1, Some(100));
    let names = lab.names.clone();
    let left = |name: &String| Path::new("/run/netns").join(name).exists();
    assert!(
        names.iter().all(left),
        "the namespaces exist while the lab does"
    );
    drop(lab);
    assert!(!names.iter().any(left), "and are gone with it");
}
