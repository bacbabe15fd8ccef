//! The clients, as an operator types them.

use super::host::Host;
use crate::support::UPSTREAM;

/// A program that pulls, and one way in which it does.
pub(super) struct Client {
    /// What the table calls it.
    pub(super) name: &'static str,
    /// What the table says of how it pulls.
    pub(super) way: &'static str,
    /// What `shoal setup` calls it.
    pub(super) setup: &'static str,
    /// Prints its version.
    pub(super) version: &'static str,
    daemon: Option<Daemon>,
    /// The image's name.
    pub(super) image: &'static str,
    /// Pulls `$image`.
    pull: &'static str,
    /// Prints the SHA-256 of the file in the image `$image` that was pulled.
    print: &'static str,
    /// Whether it knows of the registry beside the mirror.
    pub(super) falls_back: bool,
}

/// What has to run for a client, and what succeeds when it does.
struct Daemon {
    command: &'static str,
    ready: &'static str,
}

const CONTAINERD: Option<Daemon> = Some(Daemon {
    command: "containerd",
    ready: "ctr version",
});

/// Containers of the tests have no network, so that its bridge and its rules for packets are not
/// needed. Where its mirror is gone it asks five times more, for 75 s in all: here once.
const DOCKERD: Option<Daemon> = Some(Daemon {
    command: "dockerd --iptables=false --ip6tables=false --bridge=none --max-download-attempts 1",
    ready: "docker version",
});

const IMAGE: &str = "registry.test/team/image:v1";
const HUB_IMAGE: &str = "docker.io/team/image:v1";

/// Calls containerd's CRI plugin as a kubelet does. The message has the name in an ImageSpec in a
/// PullImageRequest, each with its tag and length, after gRPC's own length.
const CRI_PULL: &str = r#"
    byte() { printf "\\$(printf %o "$1")"; }
    {
        printf '\0\0\0\0'; byte $((${#image} + 4))
        printf '\n'; byte $((${#image} + 2))
        printf '\n'; byte ${#image}; printf %s "$image"
    } > /tmp/request
    answer=$(curl -sS --http2-prior-knowledge --unix-socket /run/containerd/containerd.sock \
        -H 'Content-Type: application/grpc' -H 'TE: trailers' --data-binary @/tmp/request \
        -D - -o /dev/null http://localhost/runtime.v1.ImageService/PullImage)
    case "$answer" in
        *'grpc-status: 0'*) ;;
        *) echo "$answer" >&2; exit 1 ;;
    esac"#;

pub(super) const SKOPEO: Client = Client {
    name: "skopeo",
    way: "`skopeo copy`",
    setup: "podman",
    version: "skopeo --version",
    daemon: None,
    image: IMAGE,
    pull: "skopeo copy --quiet docker://$image dir:/var/lib/image",
    print: "for blob in /var/lib/image/*; do tar -xOf $blob weights.bin 2>/dev/null; done | sha256sum",
    falls_back: true,
};

pub(super) const PODMAN: Client = Client {
    name: "podman",
    way: "`podman pull`, `podman run`",
    setup: "podman",
    version: "podman --version",
    daemon: None,
    image: IMAGE,
    pull: "podman pull --quiet $image",
    print: "podman run --rm --pull never --network none $image",
    falls_back: true,
};

pub(super) const BUILDAH: Client = Client {
    name: "buildah",
    way: "`buildah from`, `buildah mount`",
    setup: "podman",
    version: "buildah --version",
    daemon: None,
    image: IMAGE,
    pull: "buildah from --quiet --name working $image",
    print: "sha256sum $(buildah mount working)/weights.bin",
    falls_back: true,
};

pub(super) const CTR: Client = Client {
    name: "containerd",
    way: "`ctr images pull --hosts-dir`, `ctr run`",
    setup: "containerd",
    version: "containerd --version",
    daemon: CONTAINERD,
    image: IMAGE,
    pull: "ctr images pull --hosts-dir /etc/containerd/certs.d $image",
    print: "ctr run --rm $image print",
    falls_back: true,
};

pub(super) const CRI: Client = Client {
    name: "containerd, CRI",
    way: "`PullImage`, `ctr run`",
    setup: "containerd",
    version: "containerd --version",
    daemon: CONTAINERD,
    image: IMAGE,
    pull: CRI_PULL,
    print: "ctr --namespace k8s.io run --rm $image print",
    falls_back: true,
};

pub(super) const DOCKER: Client = Client {
    name: "dockerd, `registry-mirrors`",
    way: "`docker pull`, `docker run`",
    setup: "docker",
    version: "dockerd --version",
    daemon: DOCKERD,
    image: HUB_IMAGE,
    pull: "docker pull --quiet $image",
    print: "docker run --rm --network none $image",
    falls_back: true,
};

pub(super) const DOCKER_BY_PATH: Client = Client {
    name: "dockerd, `localhost:5005/…`",
    way: "`docker pull`, `docker run`",
    setup: "docker",
    version: "dockerd --version",
    daemon: DOCKERD,
    image: "localhost:5005/registry.test/team/image:v1",
    pull: "docker pull --quiet $image",
    print: "docker run --rm --network none $image",
    falls_back: false,
};

pub(super) const BUILDKIT: Client = Client {
    name: "BuildKit in dockerd",
    way: "`docker build`, `FROM`",
    setup: "docker",
    version: "dockerd --version",
    daemon: DOCKERD,
    image: HUB_IMAGE,
    pull: "printf 'FROM %s\\nLABEL built=here\\n' $image | DOCKER_BUILDKIT=1 docker build --quiet --tag built -",
    print: "docker run --rm --network none built",
    falls_back: true,
};

pub(super) const BUILDKITD: Client = Client {
    name: "buildkitd",
    way: "`buildctl build`, `FROM`",
    setup: "buildkit",
    version: "buildkitd --version",
    daemon: Some(Daemon {
        command: "buildkitd",
        ready: "buildctl debug workers",
    }),
    image: IMAGE,
    pull: "printf 'FROM %s\\nLABEL built=here\\n' $image > /tmp/Dockerfile; \
           buildctl build --frontend dockerfile.v0 --local context=/tmp --local dockerfile=/tmp \
           --output type=tar,dest=/var/lib/built.tar",
    print: "tar -xOf /var/lib/built.tar weights.bin | sha256sum",
    falls_back: true,
};

impl Client {
    /// Has `shoal setup` write the mirror into the client's configuration, and starts the client.
    pub(super) fn start(&self, host: &mut Host) {
        let said = host.set_up(self.setup);
        // What it does not write itself it says, in lines that are set apart.
        if self.setup == "containerd" {
            let lines = said.lines().filter_map(|line| line.strip_prefix("  "));
            let lines = lines.collect::<Vec<_>>().join("\n");
            assert!(lines.contains("config_path"), "{said}");
            host.append("etc/containerd/config.toml", &format!("{lines}\n"));
        }
        self.start_daemon(host);
    }

    /// Starts what has to run for the client.
    pub(super) fn start_daemon(&self, host: &mut Host) {
        if let Some(daemon) = &self.daemon {
            host.start(daemon.command, daemon.ready);
        }
    }

    /// Pulls the image.
    ///
    /// # Errors
    ///
    /// What the client said.
    pub(super) fn pull(&self, host: &Host) -> Result<(), String> {
        host.run(&self.script(self.pull)).map(drop)
    }

    /// What the image's own program prints, or what stands for it.
    ///
    /// # Errors
    ///
    /// What the client said.
    pub(super) fn print(&self, host: &Host) -> Result<String, String> {
        host.run(&self.script(self.print))
    }

    /// The name of the upstream that it pulls from.
    pub(super) fn upstream(&self) -> &'static str {
        let (upstream, _) = self.image.split_once('/').expect("it has a registry");
        if self.falls_back { upstream } else { UPSTREAM }
    }

    fn script(&self, command: &str) -> String {
        format!("image={}; {command}", self.image)
    }
}
