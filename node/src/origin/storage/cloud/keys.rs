//! Credentials in a file, read again for each request, so that it can be replaced at any time.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use object_store::{
    CredentialProvider, Error,
    aws::{AwsCredential, AwsCredentialProvider},
    azure::{AzureAccessKey, AzureCredential, AzureCredentialProvider},
};

use crate::origin::error::OriginError;

/// A file of `name = value` lines with credentials.
#[derive(Debug)]
struct KeysFile<T> {
    path: PathBuf,
    read: fn(&str) -> Option<T>,
    /// What has to be in it.
    needs: &'static str,
}

/// Keys as AWS's tools write them.
pub(super) fn amazon(path: &Path) -> AwsCredentialProvider {
    Arc::new(KeysFile {
        path: path.to_owned(),
        read: read_amazon,
        needs: "lines `aws_access_key_id = …` and `aws_secret_access_key = …`",
    })
}

/// The key of a storage account.
pub(super) fn azure(path: &Path) -> AzureCredentialProvider {
    Arc::new(KeysFile {
        path: path.to_owned(),
        read: read_azure,
        needs: "a line `azure_storage_account_key = …`, in base64",
    })
}

#[async_trait]
impl<T: fmt::Debug + Send + Sync> CredentialProvider for KeysFile<T> {
    type Credential = T;

    async fn get_credential(&self) -> Result<Arc<T>, Error> {
        let problem = match tokio::fs::read_to_string(&self.path).await {
            Ok(text) => match (self.read)(&text) {
                Some(credential) => return Ok(Arc::new(credential)),
                None => format!("it needs {}", self.needs),
            },
            Err(error) => error.to_string(),
        };
        let problem = format!(
            "no keys could be read from {}: {problem}",
            self.path.display()
        );
        Err(Error::Generic {
            store: "keys",
            source: Box::new(OriginError::Denied(problem)),
        })
    }
}

fn read_amazon(text: &str) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: value(text, "aws_access_key_id")?,
        secret_key: value(text, "aws_secret_access_key")?,
        token: value(text, "aws_session_token"),
    })
}

fn read_azure(text: &str) -> Option<AzureCredential> {
    let key = value(text, "azure_storage_account_key")?;
    AzureAccessKey::try_new(&key)
        .ok()
        .map(AzureCredential::AccessKey)
}

/// What a file says of `name`, in the profile `default` where it has profiles.
fn value(text: &str, name: &str) -> Option<String> {
    let mut mine = true;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            mine = line == "[default]";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| mine)
            && key.trim() == name
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_default_profile() {
        let text = "# mine\n[other]\naws_access_key_id = x\n[default]\naws_access_key_id=a\n\
                    aws_secret_access_key = b=\n";
        let keys = read_amazon(text).unwrap();
        assert_eq!(
            (keys.key_id.as_str(), keys.secret_key.as_str()),
            ("a", "b=")
        );
        assert!(keys.token.is_none());
        let text = format!("{text}aws_session_token = c\n");
        assert_eq!(read_amazon(&text).unwrap().token.as_deref(), Some("c"));
        for text in [
            "aws_access_key_id = a",
            "[default]\naws_access_key_id =\naws_secret_access_key = b",
            "[other]\naws_access_key_id = a\naws_secret_access_key = b",
        ] {
            assert!(read_amazon(text).is_none(), "{text}");
        }
        assert!(read_azure("azure_storage_account_key = a2V5").is_some());
        assert!(read_azure("azure_storage_account_key = not base64").is_none());
    }

    #[tokio::test]
    async fn a_file_is_read_again_and_named_where_it_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let keys = amazon(&path);
        let said = async || {
            let error = keys.get_credential().await.unwrap_err();
            crate::origin::transport::chain(&error)
        };
        assert!(said().await.contains(path.to_str().unwrap()));
        for id in ["first", "second"] {
            let text = format!("aws_access_key_id = {id}\naws_secret_access_key = b\n");
            std::fs::write(&path, text).unwrap();
            assert_eq!(keys.get_credential().await.unwrap().key_id, id);
        }
        std::fs::write(&path, "").unwrap();
        assert!(said().await.contains("aws_access_key_id"));
    }
}
