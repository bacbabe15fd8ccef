//! Buckets of S3, Google Cloud Storage and Azure Blob Storage, and of what speaks their protocols.
//!
//! All that is said of a bucket stands in its URL. What is not said there comes from where the cloud's
//! own tools have it: variables of the environment, a web identity, the pod, the instance.

mod client;
mod keys;

use std::{path::PathBuf, sync::Arc};

use object_store::{
    ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    path::Path as Key,
};
use url::Url;

use self::client::Connector;
use super::bucket::Bucket;
use crate::origin::transport::{Transport, chain};

/// Whose protocol a bucket's server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    Amazon,
    Google,
    Azure,
}

/// A bucket's URL, taken apart.
#[derive(Debug)]
pub(in crate::origin) struct BucketUrl {
    cloud: Cloud,
    /// The bucket's name; Azure's containers are buckets.
    name: String,
    /// What all keys begin with.
    prefix: Key,
    options: Options,
}

/// What a URL's query says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// The server, where it is not the cloud's own. Plain http is spoken with it alone.
    endpoint: Option<Url>,
    /// The bucket's region at S3.
    region: Option<String>,
    /// The storage account at Azure.
    account: Option<String>,
    /// A file with credentials.
    keys: Option<PathBuf>,
    /// Whether requests are not signed, for a bucket that everybody may read.
    anonymous: bool,
}

impl BucketUrl {
    /// Whether the URL is a bucket's.
    pub(in crate::origin) fn fits(url: &Url) -> bool {
        Cloud::of(url).is_some()
    }

    /// The bucket that a URL names. The error is for people.
    pub(in crate::origin) fn parse(url: &Url) -> Result<Self, String> {
        let cloud = Cloud::of(url).ok_or("its scheme is none of s3, gs and az")?;
        let name = url.host_str().unwrap_or_default();
        if name.is_empty() || url.port().is_some() {
            return Err("it names no bucket".to_owned());
        }
        let prefix = Key::from_url_path(url.path()).map_err(|problem| problem.to_string())?;
        Ok(Self {
            cloud,
            name: name.to_owned(),
            prefix,
            options: Options::parse(cloud, url)?,
        })
    }

    /// The URL without its options.
    pub(super) fn shown(&self) -> String {
        let Self {
            cloud,
            name,
            prefix,
            ..
        } = self;
        let slash = if prefix.as_ref().is_empty() { "" } else { "/" };
        format!("{}://{name}{slash}{prefix}", cloud.scheme())
    }

    /// The bucket. Nothing is connected to yet. The error is for people.
    pub(super) fn open(self, transport: Arc<Transport>) -> Result<Bucket, String> {
        let store = match self.cloud {
            Cloud::Amazon => self.amazon(AmazonS3Builder::from_env(), transport),
            Cloud::Google => self.google(transport),
            Cloud::Azure => self.azure(transport),
        };
        let store = store.map_err(|error| chain(&error))?;
        Ok(Bucket::remote(store, self.prefix))
    }

    /// S3's client, with what `builder` knows and the URL does not say.
    pub(super) fn amazon(
        &self,
        builder: AmazonS3Builder,
        transport: Arc<Transport>,
    ) -> object_store::Result<Arc<dyn ObjectStore>> {
        let Options {
            endpoint,
            region,
            keys,
            anonymous,
            ..
        } = &self.options;
        let mut builder = builder.with_bucket_name(&self.name);
        if let Some(endpoint) = endpoint {
            // The key that no variable goes before.
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, without_slash(endpoint));
        }
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if let Some(file) = keys {
            builder = builder.with_credentials(keys::amazon(file));
        }
        if *anonymous {
            builder = builder.with_skip_signature(true);
        }
        let endpoint = builder
            .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
            .or(builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
        let store = builder
            .with_http_connector(self.connector(transport, endpoint))
            .with_retry(no_retries())
            .build()?;
        Ok(Arc::new(store))
    }

    fn google(&self, transport: Arc<Transport>) -> object_store::Result<Arc<dyn ObjectStore>> {
        let Options {
            endpoint,
            keys,
            anonymous,
            ..
        } = &self.options;
        let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&self.name);
        if let Some(endpoint) = endpoint {
            builder = builder.with_base_url(&without_slash(endpoint));
        }
        if let Some(file) = keys {
            builder = builder.with_service_account_path(file.to_string_lossy());
        }
        if *anonymous {
            builder = builder.with_skip_signature(true);
        }
        let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
        let store = builder
            .with_http_connector(self.connector(transport, endpoint))
            .with_retry(no_retries())
            .build()?;
        Ok(Arc::new(store))
    }

    fn azure(&self, transport: Arc<Transport>) -> object_store::Result<Arc<dyn ObjectStore>> {
        let Options {
            endpoint,
            account,
            keys,
            anonymous,
            ..
        } = &self.options;
        let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(&self.name);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(without_slash(endpoint));
        }
        if let Some(account) = account {
            builder = builder.with_account(account);
        }
        if let Some(file) = keys {
            builder = builder.with_credentials(keys::azure(file));
        }
        if *anonymous {
            builder = builder.with_skip_signature(true);
        }
        let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
        let store = builder
            .with_http_connector(self.connector(transport, endpoint))
            .with_retry(no_retries())
            .build()?;
        Ok(Arc::new(store))
    }

    fn connector(&self, transport: Arc<Transport>, endpoint: Option<String>) -> Connector {
        let endpoint = endpoint.and_then(|endpoint| Url::parse(&endpoint).ok());
        Connector::new(self.cloud, &self.name, endpoint, transport)
    }
}

impl Cloud {
    fn of(url: &Url) -> Option<Self> {
        let all = [Self::Amazon, Self::Google, Self::Azure];
        all.into_iter().find(|cloud| cloud.scheme() == url.scheme())
    }

    fn scheme(self) -> &'static str {
        match self {
            Self::Amazon => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }

    /// Which options a URL may have.
    fn options(self) -> &'static str {
        match self {
            Self::Amazon => "endpoint, region, keys, anonymous",
            Self::Google => "endpoint, keys, anonymous",
            Self::Azure => "account, endpoint, keys, anonymous",
        }
    }
}

impl Options {
    fn parse(cloud: Cloud, url: &Url) -> Result<Self, String> {
        let mut options = Self::default();
        let mut seen = Vec::new();
        for (name, value) in url.query_pairs() {
            if seen.contains(&name) {
                return Err(format!("it says `{name}` twice"));
            }
            if value.is_empty() {
                return Err(format!("its option `{name}` has no value"));
            }
            let text = value.into_owned();
            match (cloud, name.as_ref()) {
                (_, "endpoint") => options.endpoint = Some(server(&text)?),
                (Cloud::Amazon, "region") => options.region = Some(text),
                (Cloud::Azure, "account") => options.account = Some(text),
                (_, "keys") => options.keys = Some(PathBuf::from(text)),
                (_, "anonymous") if text == "true" => options.anonymous = true,
                (_, "anonymous") => {
                    return Err(format!("`anonymous={text}` is not `anonymous=true`"));
                }
                _ => {
                    let known = cloud.options();
                    return Err(format!("it has no option `{name}`, but {known}"));
                }
            }
            seen.push(name);
        }
        if options.anonymous && options.keys.is_some() {
            return Err("it has keys and is anonymous; leave one of them out".to_owned());
        }
        Ok(options)
    }
}

fn server(text: &str) -> Result<Url, String> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .filter(|url| url.username().is_empty() && url.password().is_none())
        .filter(|url| url.query().is_none() && url.fragment().is_none())
        .ok_or_else(|| {
            "its endpoint is no server; write endpoint=https://HOST[:PORT], or http:// for one without \
             TLS"
            .to_owned()
        })
}

/// A server's URL to which a path can be added.
fn without_slash(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Whoever asks an origin decides when to ask again, and whom.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<BucketUrl, String> {
        BucketUrl::parse(&Url::parse(url).unwrap())
    }

    #[test]
    fn a_url_says_all_of_a_bucket() {
        let url = "s3://my.images/team/a%20b?region=eu-west-1&endpoint=https://s3.test:9000&keys=/run/keys";
        let bucket = parse(url).unwrap();
        assert_eq!(bucket.shown(), "s3://my.images/team/a b");
        assert_eq!(bucket.name, "my.images");
        let options = Options {
            endpoint: Some(Url::parse("https://s3.test:9000").unwrap()),
            region: Some("eu-west-1".to_owned()),
            keys: Some(PathBuf::from("/run/keys")),
            ..Options::default()
        };
        assert_eq!(bucket.options, options);
        let bucket = parse("az://images?account=corp&anonymous=true").unwrap();
        assert_eq!(bucket.options.account.as_deref(), Some("corp"));
        assert!(bucket.options.anonymous);
        assert_eq!(bucket.shown(), "az://images");
        for url in ["s3://images/", "gs://images?keys=/run/account.json"] {
            assert_eq!(parse(url).unwrap().options.endpoint, None);
        }
    }

    #[test]
    fn what_a_url_cannot_say_is_named() {
        for (url, problem) in [
            ("s3:///prefix", "no bucket"),
            ("s3://images:80", "no bucket"),
            ("s3://images?regoin=x", "no option `regoin`"),
            ("gs://images?region=x", "no option `region`"),
            ("s3://images?account=x", "no option `account`"),
            ("s3://images?region=a&region=b", "twice"),
            ("s3://images?region=", "no value"),
            ("s3://images?endpoint=s3.test", "endpoint=https://"),
            ("s3://images?endpoint=ftp://s3.test", "endpoint=https://"),
            (
                "s3://images?endpoint=https://a:b@s3.test",
                "endpoint=https://",
            ),
            ("s3://images?anonymous=yes", "anonymous=true"),
            ("s3://images?anonymous=true&keys=/k", "anonymous"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }

    #[test]
    fn what_a_builder_misses_is_told_at_the_start() {
        let transport = Arc::new(Transport::new(&[]).unwrap());
        let url = "gs://images?keys=/nonexistent/account.json";
        let error = parse(url).unwrap().open(transport).map(drop).unwrap_err();
        assert!(error.contains("/nonexistent/account.json"), "{error}");
    }
}
