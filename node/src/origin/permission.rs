//! Whether an origin lets somebody read, asked without reading.

use std::sync::Arc;

use futures::FutureExt as _;
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use shoal_protocol::{
    digest::Digest,
    message::Hint,
    reference::{Selector, Upstream},
};

use super::{
    Origins,
    asking::Asking,
    body,
    error::OriginError,
    failover,
    limits::CHALLENGE_BYTES_MAX,
    place::{Place, Source},
    refusal,
    registry::refuses_method,
    site::{Answer, Site},
};

/// What somebody wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// A manifest of the repository.
    Manifest(Selector),
    /// A blob of the repository.
    Blob(Digest),
    /// What the repository lists: tags, referrers.
    Lists,
}

/// Who wants to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader<'a> {
    /// A client with its own `Authorization`, or none. This node's logins are not used for it.
    Client(Option<&'a HeaderValue>),
    /// This node, with its own logins.
    Node,
}

/// Why somebody may not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The origin said so.
    Told(Told),
    /// It could not be asked, or does not have it.
    Origin(OriginError),
}

/// What an origin says to those who may not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// 401 or 403.
    pub(crate) status: StatusCode,
    /// Its `WWW-Authenticate`, word for word.
    pub(crate) challenges: Vec<HeaderValue>,
}

impl From<OriginError> for Refusal {
    fn from(error: OriginError) -> Self {
        Self::Origin(error)
    }
}

impl Origins {
    /// Whether the origin gives `object` of the repository to this reader: whether it has it, too.
    ///
    /// # Errors
    /// [`Refusal::Told`] where the registry itself refuses a client; for this node that is
    /// [`OriginError::Denied`].
    pub(crate) async fn permits(
        &self,
        hint: &Hint,
        object: &Object,
        reader: Reader<'_>,
    ) -> Result<(), Refusal> {
        let reader = match reader {
            Reader::Client(authorization) => Some(authorization.cloned()),
            Reader::Node => None,
        };
        let about = (object.clone(), reader);
        let told = self.first(hint, about, |place, hint, (object, reader)| {
            async move {
                let reader = match &reader {
                    Some(authorization) => Reader::Client(authorization.as_ref()),
                    None => Reader::Node,
                };
                match permits(&place, &hint, &object, reader).await {
                    Ok(()) => Ok(Ok(())),
                    // An answer, too: where clients are judged, there is no other origin to ask.
                    Err(Refusal::Told(told)) => Ok(Err(told)),
                    Err(Refusal::Origin(error)) => Err(error),
                }
            }
            .boxed()
        });
        told.await?.map_err(Refusal::Told)
    }

    /// Whether the origin of `upstream` takes a client with this `Authorization` at all, as clients
    /// ask at `/v2/`.
    ///
    /// # Errors
    /// As for [`permits`](Self::permits).
    pub(crate) async fn greets(
        &self,
        upstream: &Upstream,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), Refusal> {
        let places = self.places(upstream)?;
        let Some(place) = places.into_iter().find(|place| place.site().is_some()) else {
            return Ok(());
        };
        let (asked, authorization) = (Arc::clone(&place), authorization.cloned());
        let greeted = async move {
            let Some(site) = asked.site() else {
                return Ok(Ok(()));
            };
            let authorization = authorization.as_ref();
            match greet(site, authorization).await {
                Ok(()) => Ok(Ok(())),
                Err(Refusal::Told(told)) => Ok(Err(told)),
                Err(Refusal::Origin(error)) => Err(error),
            }
        };
        let turn = place.health().turn();
        let told = failover::in_turn(turn, place, greeted.boxed()).await?;
        told.map_err(Refusal::Told)
    }
}

async fn greet(site: &Site, authorization: Option<&HeaderValue>) -> Result<(), Refusal> {
    let subject = format!("asking {} for /v2/", site.base);
    let answer = site
        .follow(
            &Method::GET,
            &site.url(""),
            &HeaderMap::new(),
            authorization,
            &subject,
        )
        .await?;
    judge(answer, Reader::Client(authorization), &subject).await
}

async fn permits(
    place: &Place,
    hint: &Hint,
    object: &Object,
    reader: Reader<'_>,
) -> Result<(), Refusal> {
    let registry = match place.source(hint) {
        Source::Registry(registry) => registry,
        // No client's credentials mean anything there: the node's own reading is all there is.
        Source::Storage(storage) => return Ok(storage.holds(hint, object).await?),
    };
    let repository = &hint.repository;
    let (mut asking, method) = match object {
        Object::Manifest(selector) => {
            let path = format!("{repository}/manifests/{selector}");
            let asking = registry.asking(&path, &format!("manifest {selector}"));
            (asking.accepting_manifests(), Method::HEAD)
        }
        Object::Blob(digest) => (registry.asking_blob(digest), Method::HEAD),
        Object::Lists => {
            let mut asking = registry.asking(&format!("{repository}/tags/list"), "the tags");
            asking.url.set_query(Some("n=1"));
            (asking, Method::GET)
        }
    };
    let mut answer = ask(&asking, &method, reader).await?;
    let status = answer.response.status();
    // As for `blob_size`: what HEAD cannot tell, the first byte does.
    if method == Method::HEAD
        && (refuses_method(status) || (answer.elsewhere && status == StatusCode::FORBIDDEN))
    {
        if matches!(object, Object::Blob(_)) {
            asking = asking.with_range("bytes=0-0");
        }
        answer = ask(&asking, &Method::GET, reader).await?;
    }
    judge(answer, reader, &asking.subject).await
}

async fn ask(
    asking: &Asking<'_>,
    method: &Method,
    reader: Reader<'_>,
) -> Result<Answer, OriginError> {
    match reader {
        Reader::Client(authorization) => asking.follow(method, authorization).await,
        Reader::Node => asking.send(method.clone()).await,
    }
}

async fn judge(answer: Answer, reader: Reader<'_>, subject: &str) -> Result<(), Refusal> {
    let Answer {
        response,
        elsewhere,
    } = answer;
    let status = response.status();
    match status {
        // Every range lies outside an empty blob.
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            if !elsewhere && matches!(reader, Reader::Client(_)) =>
        {
            let challenges: Vec<HeaderValue> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .cloned()
                .collect();
            body::collect_refusal(response).await;
            let bytes: usize = challenges.iter().map(HeaderValue::len).sum();
            if bytes > CHALLENGE_BYTES_MAX {
                return Err(Refusal::Origin(OriginError::Invalid(format!(
                    "{subject}: a challenge of {bytes} bytes"
                ))));
            }
            Err(Refusal::Told(Told { status, challenges }))
        }
        _ => Err(Refusal::Origin(refusal::error(response, subject).await)),
    }
}
