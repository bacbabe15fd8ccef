//! Origins against a registry in memory.

mod access;
mod addresses;
mod bodies;
mod check;
mod failover;
mod logins;
mod manifests;
mod sharing;
mod transfers;

use futures::{StreamExt, TryStreamExt};
use reqwest::StatusCode;
use shoal_protocol::limits::BLOB_BYTES_MAX;
use url::Url;

use super::{fake::Fake, *};

/// `team/app` of the upstream `registry.test`.
fn hint() -> Hint {
    Hint {
        upstream: "registry.test".parse().unwrap(),
        repository: "team/app".parse().unwrap(),
    }
}

fn spec(fake: &Fake) -> OriginSpec {
    OriginSpec::at(Url::parse(&fake.url()).unwrap())
}

fn with_spec(spec: OriginSpec) -> Origins {
    Origins::new(OriginsConfig {
        upstreams: BTreeMap::from([(hint().upstream, vec![spec])]),
        docker_config: None,
        ..OriginsConfig::default()
    })
    .unwrap()
}

/// Origins where `registry.test` is at `fake`.
fn at(fake: &Fake) -> Origins {
    with_spec(spec(fake))
}

async fn whole(body: OriginBody) -> Result<Bytes, OriginError> {
    let pieces: Vec<Bytes> = body.stream.try_collect().await?;
    Ok(pieces.concat().into())
}

/// The blob's bytes from `start` to `end`, as the origin gives them.
async fn read(
    origins: &Origins,
    digest: &Digest,
    start: u64,
    end: Option<u64>,
) -> Result<Bytes, OriginError> {
    let body = origins
        .read(digest, BlobKind::Blob, &hint(), start, end)
        .await?;
    whole(body).await
}
