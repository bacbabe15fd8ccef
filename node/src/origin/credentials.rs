//! Whom this node logs in as.

use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use url::Url;

use super::{
    config::{Credentials, Secret},
    limits::HELPER_TIMEOUT,
};

/// What a realm or registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// A user name and password.
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// What docker calls an identity token: an OAuth 2 refresh token.
    RefreshToken(String),
}

/// The name under which docker keeps Docker Hub's credentials, whatever the host.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The configured credentials, else those that docker has for the host of `base`; credentials
/// follow the host, so that those of one registry are never shown to its mirror. None where there
/// are none. The error is for people.
pub(super) async fn find(
    configured: Option<&Credentials>,
    docker_config: Option<&Path>,
    base: &Url,
) -> Result<Option<Login>, String> {
    match (configured, docker_config) {
        (Some(credentials), _) => from_config(credentials).await.map(Some),
        (None, Some(path)) => from_docker(path.to_owned(), docker_key(base)).await,
        (None, None) => Ok(None),
    }
}

async fn from_config(credentials: &Credentials) -> Result<Login, String> {
    let password = match &credentials.secret {
        Secret::Password(password) => password.clone(),
        Secret::File(path) => {
            let text = tokio::fs::read_to_string(path).await.map_err(|error| {
                format!("cannot read the password file {}: {error}", path.display())
            })?;
            text.lines().next().unwrap_or_default().to_owned()
        }
    };
    Ok(Login::Password {
        username: credentials.username.clone(),
        password,
    })
}

/// The key of a registry in docker's configuration.
fn docker_key(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match (host, base.port()) {
        ("registry-1.docker.io" | "index.docker.io" | "docker.io", None) => {
            DOCKER_HUB_KEY.to_owned()
        }
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}

async fn from_docker(path: PathBuf, key: String) -> Result<Option<Login>, String> {
    let shown = path.display().to_string();
    // Blocking: it runs credential helpers and waits for them.
    let lookup = tokio::task::spawn_blocking(move || {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        match docker_credential::get_credential_from_reader(bytes.as_slice(), &key) {
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                Ok(Some(Login::Password { username, password }))
            }
            Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::RefreshToken(token))),
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
            // What helpers say by convention when they know no credentials for a registry.
            Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
                if stdout.contains("credentials not found")
                    || stderr.contains("credentials not found") =>
            {
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    });
    let found = match tokio::time::timeout(HELPER_TIMEOUT, lookup).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err("the look-up failed".to_owned()),
        Err(_) => Err(format!(
            "the credential helper gave no answer in {} s",
            HELPER_TIMEOUT.as_secs()
        )),
    };
    found.map_err(|problem| format!("no credentials could be read with {shown}: {problem}"))
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;

    async fn look_up(config: &str, base: &str) -> Result<Option<(String, String)>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let found = find(None, Some(&path), &Url::parse(base).unwrap()).await?;
        Ok(found.map(|login| match login {
            Login::Password { username, password } => (username, password),
            Login::RefreshToken(token) => ("<token>".to_owned(), token),
        }))
    }

    #[tokio::test]
    async fn dockers_auths_are_found_by_host() {
        let auth = base64::engine::general_purpose::STANDARD.encode("amy:s3cret:x");
        let config = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{auth}"}},
                "registry.test:5000": {{"auth": "{auth}"}},
                "token.test": {{"auth": "{auth}", "identitytoken": "refresh"}}
            }}}}"#
        );
        let amy = Some(("amy".to_owned(), "s3cret:x".to_owned()));
        for (base, expected) in [
            ("https://registry-1.docker.io", amy.clone()),
            ("http://registry.test:5000", amy),
            ("http://registry.test:5001", None),
            ("https://elsewhere.test", None),
            (
                "https://token.test",
                Some(("<token>".to_owned(), "refresh".to_owned())),
            ),
        ] {
            assert_eq!(look_up(&config, base).await, Ok(expected), "{base}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_means_no_credentials_and_a_broken_one_is_named() {
        let base = Url::parse("https://a.test").unwrap();
        let missing = Path::new("/nonexistent/config.json");
        assert!(find(None, Some(missing), &base).await == Ok(None));
        let error = look_up("{", "https://a.test").await.unwrap_err();
        assert!(error.contains("config.json"), "{error}");
        let error = look_up(
            r#"{"credsStore": "shoal-test-no-such-helper"}"#,
            "https://a.test",
        )
        .await
        .unwrap_err();
        assert!(error.contains("helper"), "{error}");
    }

    #[tokio::test]
    async fn a_password_file_is_read_at_each_login() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let credentials = Credentials {
            username: "u".to_owned(),
            secret: Secret::File(path.clone()),
        };
        let base = Url::parse("https://a.test").unwrap();
        for password in ["first", "second"] {
            std::fs::write(&path, format!("{password}\n")).unwrap();
            let login = find(Some(&credentials), None, &base).await.unwrap();
            assert!(
                login
                    == Some(Login::Password {
                        username: "u".to_owned(),
                        password: password.to_owned()
                    })
            );
        }
    }
}
