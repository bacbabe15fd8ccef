//! Where a process of a test runs: on an address of this machine's loopback, or on a host of a
//! [`Lab`](super::netns::Lab).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs a program with the names of a directory; the process stays the same.
const USE_NAMES: &str = "mount --bind $0/hosts /etc/hosts && \
    mount --bind $0/resolv.conf /etc/resolv.conf && exec \"$@\"";

/// A host, as far as a process needs one: an address of its own and a way to start there.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    namespace: Option<String>,
    /// A directory with the files by which names are resolved here, where not the machine's own.
    names: Option<PathBuf>,
    /// The address under which other places reach this one.
    pub(crate) address: Ipv4Addr,
}

impl Place {
    /// An address of 127.0.0.0/8 that no other place of this test process has, so that ports
    /// never clash. The process id sets two concurrent test runs apart.
    pub(crate) fn loopback() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [.., second, third, fourth] = number.to_be_bytes();
        let block = 16 + (std::process::id() % 200) as u8;
        assert_eq!(second, 0, "65,535 places are enough for any test run");
        Self {
            namespace: None,
            names: None,
            address: Ipv4Addr::new(127, block, third, fourth),
        }
    }

    /// A host of a lab: a network namespace with an address of its own.
    pub(crate) fn host(namespace: String, address: Ipv4Addr) -> Self {
        Self {
            namespace: Some(namespace),
            names: None,
            address,
        }
    }

    /// The same, where names are resolved by the files `hosts` and `resolv.conf` of this directory; they
    /// may be written anew at any time.
    pub(crate) fn with_names(self, directory: &Path) -> Self {
        Self {
            names: Some(directory.to_owned()),
            ..self
        }
    }

    /// A command that will run here. `ip netns exec` becomes the program it starts, so the
    /// child's process id is the program's.
    pub(crate) fn command(&self, program: &str) -> Command {
        match (&self.namespace, &self.names) {
            (None, None) => Command::new(program),
            (None, Some(names)) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c", USE_NAMES]);
                command.arg(names).arg(program);
                command
            }
            (Some(namespace), _) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
        }
    }

    /// As [`command`](Self::command), on a host of a lab; with all else of the machine as it is, where
    /// `ip netns exec` puts a /sys without control groups.
    pub(crate) fn bare_command(&self, program: &str) -> Command {
        let namespace = self.namespace.as_ref().expect("it is a host of a lab");
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/run/netns/{namespace}"), program]);
        command
    }

    /// The address on which a service for this host alone listens: localhost where the host has
    /// a loopback interface of its own.
    pub(crate) fn local(&self) -> Ipv4Addr {
        match self.namespace {
            None => self.address,
            Some(_) => Ipv4Addr::LOCALHOST,
        }
    }
}
