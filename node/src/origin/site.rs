//! Where one upstream is, and which hosts it may lead this node to.

use std::{path::PathBuf, sync::Arc};

use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
};
use shoal_protocol::reference::{DEFAULT_UPSTREAM, Upstream};
use tokio::sync::OnceCell;
use url::{Host, Url};

use super::{
    address, body,
    config::{Credentials, OriginSpec},
    error::OriginError,
    limits::REDIRECTS_MAX,
    page,
    transport::{Reach, Request, Transport},
};

/// Docker Hub's registry does not live at its name.
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";

/// The registry that an upstream's content comes from.
pub(super) struct Site {
    pub(super) base: Url,
    pub(super) credentials: Option<Credentials>,
    pub(super) docker_config: Option<PathBuf>,
    transport: Arc<Transport>,
    /// Whether the operator named it, and so vouches for its address.
    configured: bool,
    /// Whether none of its addresses is public; looked up when it matters.
    private: OnceCell<bool>,
}

/// An answer, and how it came about.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Whether another server than the registry gave it, to which no authorization was sent.
    pub(super) elsewhere: bool,
}

impl Site {
    /// One that the operator configured.
    pub(super) fn configured(
        spec: OriginSpec,
        docker_config: Option<PathBuf>,
        transport: Arc<Transport>,
    ) -> Self {
        Self {
            base: spec.url,
            credentials: spec.credentials,
            docker_config,
            transport,
            configured: true,
            private: OnceCell::new(),
        }
    }

    /// One that lives at its own name on the public internet.
    pub(super) fn public(
        upstream: &Upstream,
        docker_config: Option<PathBuf>,
        transport: Arc<Transport>,
    ) -> Result<Self, OriginError> {
        let url = match upstream.as_str() {
            DEFAULT_UPSTREAM | "index.docker.io" => DOCKER_HUB_URL.to_owned(),
            name => format!("https://{name}"),
        };
        let base = Url::parse(&url).map_err(|problem| {
            OriginError::Invalid(format!("upstream {upstream}: {url} is no URL: {problem}"))
        })?;
        Ok(Self {
            base,
            credentials: None,
            docker_config,
            transport,
            configured: false,
            private: OnceCell::new(),
        })
    }

    /// The URL of `path` under the registry's `/v2/`.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!(
            "{}/v2/{path}",
            self.base.path().trim_end_matches('/')
        ));
        url
    }

    /// Sends a request and follows its redirects. The authorization goes to the registry's own
    /// scheme, host and port, and is not sent again once the chain has left them.
    pub(super) async fn follow(
        &self,
        method: &Method,
        start: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        subject: &str,
    ) -> Result<Answer, OriginError> {
        let mut url = start.clone();
        let mut elsewhere = false;
        for _ in 0..=REDIRECTS_MAX {
            elsewhere |= url.origin() != start.origin();
            let mut headers = headers.clone();
            if let Some(authorization) = authorization.filter(|_| !elsewhere) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let request = Request {
                method: method.clone(),
                url: url.clone(),
                headers,
                form: None,
            };
            let response = self.send(&request, subject).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let answer = Answer {
                    response,
                    elsewhere,
                };
                return self.genuine(method, answer, subject).await;
            }
            url = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| {
                    OriginError::Invalid(format!(
                        "{subject}: {} redirects without saying where",
                        url.host_str().unwrap_or_default()
                    ))
                })?;
            body::collect_refusal(response).await;
        }
        Err(OriginError::Invalid(format!(
            "{subject}: more than {REDIRECTS_MAX} redirects"
        )))
    }

    /// The answer, unless it is a page that something in between gave.
    async fn genuine(
        &self,
        method: &Method,
        answer: Answer,
        subject: &str,
    ) -> Result<Answer, OriginError> {
        let Answer {
            response,
            elsewhere,
        } = &answer;
        if !page::is_page(response) {
            return Ok(answer);
        }
        let genuine = match response.status() {
            StatusCode::NOT_FOUND if !elsewhere => self.is_registry(subject).await?,
            // Presigned URLs refuse methods so; whoever asked goes on with GET.
            StatusCode::FORBIDDEN if *elsewhere => method == Method::HEAD,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => false,
            status => !status.is_success(),
        };
        if genuine {
            return Ok(answer);
        }
        Err(page::in_between(response, subject))
    }

    /// Whether it is a registry that answers at its URL.
    async fn is_registry(&self, subject: &str) -> Result<bool, OriginError> {
        let request = Request {
            method: Method::GET,
            url: self.url(""),
            headers: HeaderMap::new(),
            form: None,
        };
        let response = self.send(&request, subject).await?;
        let known = !page::is_page(&response)
            && matches!(response.status(), StatusCode::OK | StatusCode::UNAUTHORIZED);
        body::collect_refusal(response).await;
        Ok(known)
    }

    /// Sends a request, without following redirects, where this site may lead.
    pub(super) async fn send(
        &self,
        request: &Request,
        subject: &str,
    ) -> Result<Response, OriginError> {
        let reach = self
            .reach(&request.url)
            .await
            .map_err(|refusal| OriginError::Unreachable(format!("{subject}: {refusal}")))?;
        self.transport.send(reach, request, subject).await
    }

    /// Which addresses a request to `target` may go to; `target` is the registry itself, or what
    /// it redirects to or names as its token realm.
    ///
    /// - Nobody configured the upstream: https and public addresses, always.
    /// - The registry's own host, on any port: any address, as the operator chose it.
    /// - Another host: any address if the registry itself has private addresses only (a registry
    ///   and its store on one private network), else public addresses.
    /// - Plain http only where the operator configured the registry with plain http.
    async fn reach(&self, target: &Url) -> Result<Reach, String> {
        let host = target.host_str().unwrap_or_default();
        match target.scheme() {
            "https" => {}
            "http" if self.configured && self.base.scheme() == "http" => {}
            "http" => {
                return Err(format!(
                    "plain http to {host} is not trusted, since the registry was not configured \
                     with http"
                ));
            }
            scheme => return Err(format!("{scheme} to {host} is not supported")),
        }
        if !self.configured {
            Ok(Reach::Public)
        } else if target.host() == self.base.host() || self.is_private().await {
            Ok(Reach::Any)
        } else {
            Ok(Reach::Public)
        }
    }

    /// Whether all addresses of the registry are private. Where that cannot be found out (behind
    /// a proxy that resolves names), it counts as public, and is asked again the next time.
    async fn is_private(&self) -> bool {
        let looked_up = self.private.get_or_try_init(|| async {
            let addresses: Vec<_> = match self.base.host() {
                Some(Host::Ipv4(address)) => vec![address.into()],
                Some(Host::Ipv6(address)) => vec![address.into()],
                Some(Host::Domain(name)) => tokio::net::lookup_host((name, 0))
                    .await?
                    .map(|address| address.ip())
                    .collect(),
                None => Vec::new(),
            };
            let private = addresses
                .iter()
                .all(|address| !address::is_public(*address));
            Ok::<_, std::io::Error>(private && !addresses.is_empty())
        });
        looked_up.await.copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport() -> Arc<Transport> {
        Arc::new(Transport::new(&[]).unwrap())
    }

    fn configured(url: &str) -> Site {
        let spec = OriginSpec::at(Url::parse(url).unwrap());
        Site::configured(spec, None, transport())
    }

    async fn reach(site: &Site, target: &str) -> Option<Reach> {
        site.reach(&Url::parse(target).unwrap()).await.ok()
    }

    #[tokio::test]
    async fn an_upstream_that_nobody_configured_leads_to_the_public_internet_over_https_only() {
        let site = Site::public(&"ghcr.io".parse().unwrap(), None, transport()).unwrap();
        assert_eq!(reach(&site, "https://ghcr.io/").await, Some(Reach::Public));
        assert_eq!(reach(&site, "https://10.0.0.1/").await, Some(Reach::Public));
        assert_eq!(reach(&site, "http://ghcr.io/").await, None);
        assert_eq!(reach(&site, "ftp://ghcr.io/").await, None);
    }

    #[tokio::test]
    async fn a_configured_upstream_leads_to_its_own_host_and_to_private_ones_if_it_is_private() {
        let private = configured("http://10.0.0.1:5000");
        assert_eq!(
            reach(&private, "http://10.0.0.1:9000/x").await,
            Some(Reach::Any)
        );
        assert_eq!(reach(&private, "http://10.0.0.2/x").await, Some(Reach::Any));
        let public = configured("https://1.1.1.1");
        assert_eq!(
            reach(&public, "https://1.1.1.1:444/x").await,
            Some(Reach::Any)
        );
        assert_eq!(
            reach(&public, "https://10.0.0.1/x").await,
            Some(Reach::Public)
        );
        assert_eq!(reach(&public, "http://1.1.1.1/x").await, None);
    }

    #[test]
    fn upstreams_live_at_their_names_but_for_docker_hub() {
        for (upstream, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/x"),
            ("ghcr.io", "https://ghcr.io/v2/x"),
            ("registry.test:5000", "https://registry.test:5000/v2/x"),
        ] {
            let site = Site::public(&upstream.parse().unwrap(), None, transport()).unwrap();
            assert_eq!(site.url("x").as_str(), url);
        }
        let prefixed = configured("https://mirror.test/cache/");
        assert_eq!(prefixed.url("x").as_str(), "https://mirror.test/cache/v2/x");
    }
}
