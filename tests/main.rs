//! End-to-end tests: the built binary, real registries and clients, hosts as network namespaces.
//!
//! Nothing here knows the inside of Shoal. A test sees the `shoal` binary, HTTP, files and
//! processes, and the access log of the registry behind them: what an operator can see.
//!
//! The tests need root (namespaces, `tc`) and Debian's `docker-registry`, `docker.io`, `containerd`,
//! `podman`, `buildah`, `skopeo`, `busybox-static`, `iproute2` and `curl`, and s3s-fs and moto in the build
//! directory; without them they fail and say so, they are never skipped. `tests/run` installs all of it. They share two cores at most, so they run one after another
//! ([`support::machine`]).

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test has measured, and a failed node's log, belong in its output"
)]

mod access;
mod buckets;
mod carry;
mod check;
mod cli;
mod clients;
mod cluster;
mod conformance;
mod credentials;
mod demo;
mod failover;
mod faults;
mod hostile;
mod lazy;
mod limits;
mod mirror;
mod origin;
mod outage;
mod scaling;
mod storage;
mod support;
mod tags;
mod tls;
mod tokens;
mod trust;
