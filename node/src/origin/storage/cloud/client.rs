//! The HTTP that buckets are read with: the client that registries are asked with too, so that time
//! limits, proxies and certificates are the same. What a server refuses becomes an [`OriginError`] here,
//! where its status and words are still known; it comes out again as a cause of the store's own error.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
};
use tokio::time::timeout;
use url::Url;

use super::Cloud;
use crate::origin::{
    body,
    error::OriginError,
    limits::METADATA_TIMEOUT,
    refusal,
    transport::{Reach, Request, Transport},
};

/// Makes the clients of one bucket.
#[derive(Clone)]
pub(super) struct Connector {
    shared: Arc<Shared>,
}

struct Shared {
    cloud: Cloud,
    bucket: String,
    /// The bucket's server, where it is not the cloud's own.
    endpoint: Option<Url>,
    transport: Arc<Transport>,
}

impl Connector {
    pub(super) fn new(
        cloud: Cloud,
        bucket: &str,
        endpoint: Option<Url>,
        transport: Arc<Transport>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                cloud,
                bucket: bucket.to_owned(),
                endpoint,
                transport,
            }),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector")
            .field(&self.shared.bucket)
            .finish()
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut headers = head.headers;
        // The transport gives a form these.
        headers.remove(CONTENT_TYPE);
        headers.remove(CONTENT_LENGTH);
        let url = Url::parse(&head.uri.to_string());
        let request = Request {
            url: url.map_err(|problem| HttpError::new(HttpErrorKind::Unknown, problem))?,
            method: head.method,
            headers,
            form: (!body.is_empty()).then(|| String::from_utf8_lossy(&body).into_owned()),
        };
        let answer = self.shared.ask(&request).await;
        let response = answer.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let (head, body) = hyper::Response::<reqwest::Body>::from(response).into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

impl Shared {
    /// The answer, if it is of use.
    async fn ask(&self, request: &Request) -> Result<Response, OriginError> {
        if self.is_metadata(&request.url) {
            let asking = self.ask_metadata(request);
            let answer = timeout(METADATA_TIMEOUT, asking).await.unwrap_or_else(|_| {
                let seconds = METADATA_TIMEOUT.as_secs();
                let host = request.url.host_str().unwrap_or_default();
                Err(OriginError::Unreachable(format!(
                    "{host} gave no answer in {seconds} s"
                )))
            });
            return answer.map_err(|error| self.no_credentials(&error));
        }
        let subject = format!("asking for bucket {}", self.bucket);
        let transport = &self.transport;
        let response = transport.send(Reach::Any, request, &subject).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    async fn ask_metadata(&self, request: &Request) -> Result<Response, OriginError> {
        let response = self.transport.send_near(request, "credentials").await?;
        // Version 2 of AWS's service may refuse the token that a PUT asks for, and still answer
        // version 1.
        if response.status().is_success() || request.method == Method::PUT {
            Ok(response)
        } else {
            Err(refusal::error(response, "credentials").await)
        }
    }

    /// Whether it is the service that gives credentials to what runs on a host or in a pod: nothing else
    /// but the operator's own endpoint speaks plain http.
    fn is_metadata(&self, url: &Url) -> bool {
        let own = |endpoint: &Url| endpoint.origin() == url.origin();
        url.scheme() == "http" && !self.endpoint.as_ref().is_some_and(own)
    }

    fn no_credentials(&self, problem: &OriginError) -> OriginError {
        let variables = match self.cloud {
            Cloud::Amazon => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Cloud::Google => "GOOGLE_APPLICATION_CREDENTIALS",
            Cloud::Azure => "AZURE_STORAGE_ACCOUNT_KEY",
        };
        OriginError::Denied(format!(
            "no credentials are configured for bucket {}, and this host's cloud gives none ({problem}); \
             add keys=FILE to the origin's URL, set {variables}, give the instance or pod a role that may \
             read the bucket, or add anonymous=true if everybody may",
            self.bucket
        ))
    }

    /// What an answer without success means.
    async fn refusal(&self, response: Response) -> OriginError {
        let status = response.status();
        let host = response.url().host_str().unwrap_or_default().to_owned();
        let retry_after = refusal::retry_after(&response);
        let headers = response.headers().clone();
        let body = body::collect_refusal(response).await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let code = word(&headers, "x-ms-error-code", &body, "Code").unwrap_or_default();
        let region = word(&headers, "x-amz-bucket-region", &body, "Region");
        let mut reason = format!("{host} answered {status}");
        if !code.is_empty() {
            reason = format!("{reason} ({code})");
        }
        let bucket = &self.bucket;
        match code.as_str() {
            "NoSuchBucket" | "ContainerNotFound" => OriginError::Unreachable(format!(
                "{reason}: there is no bucket {bucket}; check its name, and the endpoint, region or \
                 account in the origin's URL"
            )),
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IncorrectEndpoint" => elsewhere(&reason, bucket, region),
            _ if status.is_redirection() => elsewhere(&reason, bucket, region),
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                OriginError::Denied(format!("{reason}: renew the session token of the keys"))
            }
            "RequestTimeTooSkewed" => {
                OriginError::Denied(format!("{reason}: set the clock of this host"))
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthenticationFailed" => {
                OriginError::Denied(format!("{reason}: check the keys"))
            }
            _ if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                OriginError::Denied(format!("{reason}: {}", self.permissions()))
            }
            _ => refusal::meaning(status, reason, retry_after),
        }
    }

    fn permissions(&self) -> &'static str {
        match self.cloud {
            Cloud::Amazon => {
                "the keys must be right and allow s3:GetObject and s3:ListBucket; without the latter, \
                 what does not exist is refused too"
            }
            Cloud::Google => {
                "the account needs the role Storage Object Viewer (roles/storage.objectViewer)"
            }
            Cloud::Azure => {
                "the identity needs the role Storage Blob Data Reader, or the key is wrong"
            }
        }
    }
}

fn elsewhere(reason: &str, bucket: &str, region: Option<String>) -> OriginError {
    let advice = region.map_or_else(
        || "say where it is with region= or endpoint= in the origin's URL".to_owned(),
        |region| format!("add region={region} to the origin's URL"),
    );
    OriginError::Unreachable(format!("{reason}: bucket {bucket} is elsewhere; {advice}"))
}

/// A name that an answer gives in a header or in an element of its XML.
fn word(headers: &HeaderMap, header: &str, body: &str, element: &str) -> Option<String> {
    let header = headers.get(header).and_then(|value| value.to_str().ok());
    let element = || {
        let (_, rest) = body.split_once(&format!("<{element}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let name = header.or_else(element)?;
    let fits = |character: char| character.is_ascii_alphanumeric() || character == '-';
    Some(name.to_owned()).filter(|name| name.len() <= 64 && name.chars().all(fits))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn ask_metadata(url: String) -> OriginError {
        let transport = Arc::new(Transport::new(&[]).unwrap());
        let connector = Connector::new(Cloud::Amazon, "images", None, transport);
        let request = Request {
            method: Method::PUT,
            url: Url::parse(&url).unwrap(),
            headers: HeaderMap::new(),
            form: None,
        };
        connector.shared.ask(&request).await.unwrap_err()
    }

    fn says_what_to_set(error: &OriginError) -> bool {
        matches!(error, OriginError::Denied(text)
            if ["bucket images", "keys=FILE", "AWS_ACCESS_KEY_ID", "anonymous=true"]
                .iter()
                .all(|advice| text.contains(advice)))
    }

    #[tokio::test]
    async fn a_host_without_a_metadata_service_says_what_to_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/latest/api/token", listener.local_addr().unwrap());
        drop(listener);
        let error = ask_metadata(url).await;
        assert!(says_what_to_set(&error), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_metadata_service_that_does_not_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/latest/api/token", listener.local_addr().unwrap());
        let error = ask_metadata(url).await;
        assert!(says_what_to_set(&error), "{error}");
        assert!(error.to_string().contains("no answer in 2 s"), "{error}");
        drop(listener);
    }
}
