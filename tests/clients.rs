//! Real clients, configured by `shoal setup` alone, each with a machine of its own.

mod check;
mod host;
mod matrix;
mod programs;
mod site;
mod system;
mod table;

use programs::Client;
use system::System;

/// A test for each client on each system, and the list of them.
macro_rules! matrix {
    ($($name:ident: $client:ident,)*) => {
        const CLIENTS: &[Client] = &[$(programs::$client),*];
        mod pull {
            $(
                #[test]
                fn $name() {
                    super::matrix::take(&super::programs::$client, super::System::Debian12);
                }
            )*
        }
        mod newer {
            $(
                #[test]
                #[ignore = "fetches 1 GB of Debian 13 in about 40 s: tests/run --long, tests/matrix"]
                fn $name() {
                    super::matrix::take(&super::programs::$client, super::System::Debian13);
                }
            )*
        }
    };
}

matrix! {
    skopeo: SKOPEO,
    podman: PODMAN,
    buildah: BUILDAH,
    containerd: CTR,
    containerd_by_cri: CRI,
    docker_by_registry_mirrors: DOCKER,
    docker_by_path: DOCKER_BY_PATH,
    docker_build: BUILDKIT,
}

/// Every client and system of the matrix, in the order of the table.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let systems = [System::Debian12, System::Debian13];
    CLIENTS
        .iter()
        .flat_map(move |client| systems.map(|system| (client.name, system.name())))
}
