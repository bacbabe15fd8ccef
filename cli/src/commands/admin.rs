//! Talking to a daemon's admin endpoint.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::{BodyExt, BodyStream, Empty, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use shoal_node::{
    admin::token_file,
    config::{Config, RawConfig},
};

/// How long a daemon may take to answer; it gives its swarm a few seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest answer that is read: 10,000 members and as many blobs take about 20 MB.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The longest line of a stream of events: the manifest of an image of thousands of layers.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Which daemon to ask.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AdminArgs {
    /// Admin address of the daemon to ask
    #[arg(
        long = "admin",
        value_name = "ADDR",
        env = "SHOAL_ADMIN",
        default_value = "127.0.0.1:5006"
    )]
    address: String,
}

/// Which daemon on this host to ask, as one who may read its data directory.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OwnerArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Where the daemon keeps its data, and the token that this needs [default: as for `shoal node`]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

/// What is sent with a request.
pub(crate) type Upload = UnsyncBoxBody<Bytes, io::Error>;

/// A client of one daemon's admin endpoint. Speaks plain HTTP and ignores proxies.
#[derive(Clone)]
pub(crate) struct AdminClient {
    http: Client<HttpConnector, Upload>,
    address: String,
    token: Option<HeaderValue>,
}

impl AdminClient {
    pub(crate) fn new(args: &AdminArgs) -> Self {
        let address = args.address.trim_end_matches('/');
        let address = address.strip_prefix("http://").unwrap_or(address);
        Self {
            http: Client::builder(TokioExecutor::new()).build_http(),
            address: address.to_owned(),
            token: None,
        }
    }

    /// A client with the daemon's token, which its data directory has.
    pub(crate) fn of_owner(args: &OwnerArgs) -> anyhow::Result<Self> {
        let flags = RawConfig {
            data_dir: args.data_dir.clone(),
            ..RawConfig::default()
        };
        let dir = Config::load(flags, None, &|name| std::env::var_os(name))?.data_dir;
        Ok(Self {
            token: Some(read_token(&dir)?),
            ..Self::new(&args.admin)
        })
    }

    /// Reads the JSON at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.read(path).await?;
        serde_json::from_slice(&body).with_context(|| {
            format!(
                "what answers at {} is not a Shoal daemon of this version; check --admin",
                self.address
            )
        })
    }

    /// Reads the text at `path`.
    pub(crate) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let body = self.read(path).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn read(&self, path: &str) -> anyhow::Result<Bytes> {
        let answer = async {
            let response = self.send(Method::GET, path, &[], nothing()).await?;
            self.body(response).await
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| {
                let seconds = ANSWER_TIMEOUT.as_secs();
                anyhow!(
                    "the daemon at {} did not answer within {seconds} s",
                    self.address
                )
            })?
    }

    /// Posts to `path` and reads the answer line by line.
    pub(crate) async fn post(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Lines> {
        let response = self.send(Method::POST, path, query, nothing()).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        })
    }

    /// Reads the bytes at `path`, as they come.
    pub(crate) async fn download(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Bytes>> + Unpin + use<>> {
        let response = self.send(Method::GET, path, query, nothing()).await?;
        let frames = BodyStream::new(response.into_body());
        Ok(Box::pin(frames.filter_map(|frame| async {
            match frame.context("the daemon's answer broke off") {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(error)),
            }
        })))
    }

    /// Puts bytes at `path`; the answer.
    pub(crate) async fn put(
        &self,
        path: &str,
        query: &[(&str, String)],
        upload: Upload,
    ) -> anyhow::Result<Bytes> {
        let response = self.send(Method::PUT, path, query, upload).await?;
        self.body(response).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        upload: Upload,
    ) -> anyhow::Result<Response<Incoming>> {
        let address = &self.address;
        let mut url =
            reqwest::Url::parse(&format!("http://{address}{path}")).with_context(|| {
                format!("`{address}` is not an address; write --admin HOST:PORT, as 127.0.0.1:5006")
            })?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let uri: Uri = url.as_str().parse()?;
        let mut request = Request::builder().method(method).uri(uri).body(upload)?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let response = self.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                anyhow!(
                    "no daemon answers at {address}; start one with `shoal node`, or name its \
                     admin address with --admin"
                )
            } else {
                anyhow!(error).context(format!("cannot ask the daemon at {address}"))
            }
        })?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await?;
        let reason = String::from_utf8_lossy(&body);
        bail!(
            "the daemon at {address} answered {status}: {}",
            reason.trim()
        );
    }

    async fn body(&self, response: Response<Incoming>) -> anyhow::Result<Bytes> {
        Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("the answer of the daemon at {} broke off", self.address))
    }
}

/// A request without a body.
pub(crate) fn nothing() -> Upload {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn read_token(dir: &Path) -> anyhow::Result<HeaderValue> {
    let file = token_file(dir);
    let token = fs::read_to_string(&file).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            anyhow!(
                "no daemon has run with the data directory {}; start one with `shoal node`, or name \
                 its data directory with --data-dir",
                dir.display()
            )
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            anyhow!(
                "{} is not yours to read; run this as the user that the daemon runs as",
                file.display()
            )
        } else {
            anyhow!(error).context(format!("cannot read {}", file.display()))
        }
    })?;
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .with_context(|| format!("{} is no token; restart the daemon", file.display()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The lines of an answer, as they arrive.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line without its end; `None` after the last. Cut off by the end of the answer, a
    /// line is given as it is.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                return Ok(Some(String::from_utf8(line)?));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("the daemon sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.context("the daemon's answer broke off")?;
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(String::from_utf8(std::mem::take(&mut self.buffer))?)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use futures::{StreamExt, stream, stream::BoxStream};
    use shoal_node::{
        admin::{
            Admin, BlobBody, ImportBody, ImportError, Manifest, PullError, PullEvent, PullLayer,
            PullOptions, Token, serve,
        },
        stats::{NodeStats, SwarmStats},
    };
    use shoal_protocol::{
        digest::Digest,
        message::{BlobKind, Hint, TagKey},
        reference::Reference,
    };
    use tokio::net::{TcpListener, TcpSocket};
    use tokio_util::sync::{CancellationToken, DropGuard};

    use crate::commands::{
        pull::{self, PullArgs},
        stats::{self, StatsArgs},
    };

    /// A daemon whose every pull fails for images called `broken` and breaks off for `cut`.
    struct TestAdmin;

    impl Admin for TestAdmin {
        fn readiness(&self) -> Result<(), String> {
            Ok(())
        }

        fn metrics(&self) -> String {
            String::new()
        }

        async fn node_stats(&self) -> NodeStats {
            NodeStats::default()
        }

        async fn swarm_stats(&self) -> SwarmStats {
            SwarmStats::merge(vec![NodeStats::default()], 1)
        }

        fn pull(&self, reference: Reference, _: PullOptions) -> BoxStream<'static, PullEvent> {
            let manifest = PullEvent::Manifest {
                digest: "sha256:00".into(),
                layers: vec![PullLayer {
                    digest: "sha256:01".into(),
                    size: 7,
                    media_type: String::new(),
                }],
            };
            let progress = PullEvent::Progress {
                digest: "sha256:01".into(),
                have_bytes: 7,
                from_origin: 7,
                from_peers: 0,
            };
            let end = match reference.repository.as_str() {
                "library/cut" => None,
                "library/broken" => Some(PullEvent::Failed {
                    error: "the origin is gone".into(),
                }),
                _ => Some(PullEvent::Done {
                    bytes: 7,
                    seconds: 0.1,
                }),
            };
            stream::iter([manifest, progress].into_iter().chain(end)).boxed()
        }

        async fn export_manifest(&self, reference: Reference) -> Result<Manifest, PullError> {
            Err(PullError::NotFound(reference.to_string()))
        }

        async fn export_blob(&self, digest: Digest, _: Hint) -> Result<BlobBody, PullError> {
            Err(PullError::NotFound(digest.to_string()))
        }

        async fn import_blob(
            &self,
            _: Digest,
            _: BlobKind,
            _: u64,
            _: ImportBody,
        ) -> Result<(), ImportError> {
            Ok(())
        }

        async fn import_tag(&self, _: TagKey, _: Digest) -> Result<u64, ImportError> {
            Ok(3)
        }
    }

    async fn daemon() -> (String, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let dir = tempfile::TempDir::new().unwrap();
        let token = Token::create(dir.path()).unwrap();
        tokio::spawn(serve(listener, Arc::new(TestAdmin), token, stop.clone()));
        (address, stop.drop_guard())
    }

    #[derive(Parser)]
    struct Stats {
        #[command(flatten)]
        args: StatsArgs,
    }

    #[derive(Parser)]
    struct Pull {
        #[command(flatten)]
        args: PullArgs,
    }

    async fn run_stats(args: &[&str]) -> anyhow::Result<()> {
        stats::run(Stats::parse_from(args).args).await
    }

    async fn run_pull(args: &[&str]) -> anyhow::Result<()> {
        pull::run(Pull::parse_from(args).args).await
    }

    #[tokio::test]
    async fn the_commands_succeed_where_the_daemon_does() {
        let (address, _stop) = daemon().await;
        run_stats(&["stats", "--admin", &address]).await.unwrap();
        let url = format!("http://{address}/");
        run_stats(&["stats", "--json", "--admin", &url])
            .await
            .unwrap();
        for more in [
            &["--json"][..],
            &["--quiet"],
            &["--platform", "linux/arm64"],
        ] {
            let args = [&["pull", "redis:7", "--admin", &address], more].concat();
            run_pull(&args).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_failed_pull_says_why() {
        let (address, _stop) = daemon().await;
        for (image, part) in [
            (
                "broken",
                "docker.io/library/broken:latest: the origin is gone",
            ),
            ("cut", "stopped reporting before docker.io/library/cut"),
        ] {
            let error = run_pull(&["pull", image, "--admin", &address, "-q"])
                .await
                .unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }

    #[tokio::test]
    async fn without_a_daemon_there_is_one_line_that_says_what_to_do() {
        // Bound, so that no other test gets the port, but not listening.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = silent.local_addr().unwrap().to_string();
        for error in [
            run_stats(&["stats", "--admin", &address])
                .await
                .unwrap_err(),
            run_pull(&["pull", "redis", "--admin", &address])
                .await
                .unwrap_err(),
        ] {
            let line = format!("{error:#}");
            assert!(line.contains("start one with `shoal node`"), "{line}");
            assert!(line.contains(&address) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn arguments_that_mean_nothing_are_refused() {
        for args in [
            &["pull"][..],
            &["pull", "Not An Image"],
            &["pull", "redis", "--platform", "linux"],
            &["pull", "redis", "--json", "--quiet"],
        ] {
            assert!(Pull::try_parse_from(args).is_err(), "{args:?}");
        }
    }
}
