//! A registry that exchanges a refresh token, as Azure's does: it checks logins, and sends those who are
//! let in to another registry for everything.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderName, LOCATION, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use url::form_urlencoded;

use super::ORIGIN_PORT;
use super::place::Place;

/// What the realm gives for the refresh token.
const TOKEN: &str = "short-lived";

/// The server. Dropping it closes its port and every connection.
pub(crate) struct Realm {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Realm {
    /// Lets in whoever has `refresh_token`, and has the content of the registry at `url`.
    pub(crate) fn before(url: &str, refresh_token: &str) -> Self {
        let address = SocketAddr::new(Place::loopback().address.into(), ORIGIN_PORT);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .expect("the port is free");
        let (url, refresh_token) = (url.to_owned(), refresh_token.to_owned());
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (url, refresh_token) = (url.clone(), refresh_token.clone());
                let answer = service_fn(move |request| {
                    let (url, refresh_token) = (url.clone(), refresh_token.clone());
                    async move {
                        Ok::<_, Infallible>(answer(request, address, &url, &refresh_token).await)
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                let connection = server.serve_connection(TokioIo::new(connection), answer);
                tokio::spawn(connection);
            }
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Realm {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    own: SocketAddr,
    url: &str,
    refresh_token: &str,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/oauth2/token" {
        let body = body.collect().await.unwrap_or_default().to_bytes();
        let fields: BTreeMap<_, _> = form_urlencoded::parse(&body).collect();
        let says = |name: &str, value: &str| fields.get(name).is_some_and(|said| said == value);
        let right = head.method == Method::POST
            && says("grant_type", "refresh_token")
            && says("refresh_token", refresh_token);
        return if right {
            let token = format!(r#"{{"access_token":"{TOKEN}"}}"#);
            reply(StatusCode::OK, None, token)
        } else {
            reply(StatusCode::UNAUTHORIZED, None, String::new())
        };
    }
    let bearer = format!("Bearer {TOKEN}");
    if head
        .headers
        .get(AUTHORIZATION)
        .is_some_and(|said| said == bearer.as_str())
    {
        let location = format!("{url}{}", head.uri);
        return reply(
            StatusCode::TEMPORARY_REDIRECT,
            Some((LOCATION, location)),
            String::new(),
        );
    }
    let challenge = format!(r#"Bearer realm="http://{own}/oauth2/token",service="{own}""#);
    reply(
        StatusCode::UNAUTHORIZED,
        Some((WWW_AUTHENTICATE, challenge)),
        String::new(),
    )
}

fn reply(
    status: StatusCode,
    header: Option<(HeaderName, String)>,
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    if let Some((name, value)) = header {
        let value = value.parse().expect("the test wrote it");
        response.headers_mut().insert(name, value);
    }
    response
}
