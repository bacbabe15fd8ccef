//! Real clients, configured by `shoal setup` alone, each with a machine of its own.

mod check;
mod host;
mod matrix;
mod programs;
mod site;
mod system;
mod table;

use programs::Client;
use system::System::{self, Debian12, Debian13};

/// A test for each client on each system that has it, and the list of them.
macro_rules! matrix {
    (
        both: { $($name:ident: $client:ident,)* }
        newer: { $($new_name:ident: $new_client:ident,)* }
    ) => {
        const CLIENTS: &[(&Client, &[System])] = &[
            $((&programs::$client, &[Debian12, Debian13]),)*
            $((&programs::$new_client, &[Debian13]),)*
        ];
        mod pull {
            $(matrix!(#[test], $name, $client, Debian12);)*
        }
        mod newer {
            $(matrix!(#[test] #[ignore = "fetches Debian 13, 1.4 GB: tests/run --long"], $name, $client, Debian13);)*
            $(matrix!(#[test] #[ignore = "fetches Debian 13, 1.4 GB: tests/run --long"], $new_name, $new_client, Debian13);)*
        }
    };
    ($(#[$mark:meta])*, $name:ident, $client:ident, $system:ident) => {
        $(#[$mark])*
        fn $name() {
            super::matrix::take(&super::programs::$client, super::System::$system);
        }
    };
}

matrix! {
    both: {
        skopeo: SKOPEO,
        podman: PODMAN,
        buildah: BUILDAH,
        containerd: CTR,
        containerd_by_cri: CRI,
        docker_by_registry_mirrors: DOCKER,
        docker_by_path: DOCKER_BY_PATH,
        docker_build: BUILDKIT,
    }
    newer: {
        buildkitd: BUILDKITD,
    }
}

/// The keys of the matrix's rows, in the order of the table.
fn rows() -> Vec<String> {
    let row = |client: &Client, system: &System| format!("{} {}", client.name, system.name());
    let rows = CLIENTS
        .iter()
        .map(|(client, systems)| systems.iter().map(|system| row(client, system)));
    rows.flatten().collect()
}
