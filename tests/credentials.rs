//! Logins that a credential helper gives, as the helpers of the large clouds do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::support::daemon::{Node, Options};
use crate::support::image::Image;
use crate::support::place::Place;
use crate::support::realm::Realm;
use crate::support::registry::Registry;
use crate::support::{MIB, machine};

/// Whom the clouds have one log in as, with a token or a key: `docker-credential-ecr-login`,
/// `docker-credential-gcloud`, and a Google service account.
const LOGINS: [(&str, &str); 3] = [
    ("AWS", "ecr.token"),
    ("oauth2accesstoken", "ya29.token"),
    (
        "_json_key",
        r#"{"type": "service_account", "private_key": "-----\n"}"#,
    ),
];

/// The same, as `htpasswd -B` writes them.
pub(crate) const HTPASSWD: &str = "\
AWS:$2b$04$ELxy6v/Z.ofOAeLMQs9i1OUdtwhIhMqKajbL8FerIvq43azT0TGP6
oauth2accesstoken:$2b$04$IcPRDOCfowEUWcO9psPaJ.vbdfisGZPwtJ/HL/rbJfPZKtIJfDFsC
_json_key:$2b$04$hzcouM44AyYBjAhnW.elC..JWEtX9JboXRJhp8Q81ucecy84dnd5K
";

/// A node whose docker configuration names a helper for one registry, which gives this login.
fn node_with_helper(registry: &str, username: &str, secret: &str, directory: &TempDir) -> Node {
    let login =
        serde_json::json!({ "ServerURL": registry, "Username": username, "Secret": secret });
    let answer = directory.path().join("login.json");
    fs::write(&answer, login.to_string()).expect("it is writable");
    let helper = directory.path().join("docker-credential-cloud");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {registry} ] && exec cat {}\n\
         echo credentials not found in native keychain\nexit 1\n",
        answer.display()
    );
    fs::write(&helper, script).expect("it is writable");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o700)).expect("it is one's own");
    let config = directory.path().join("config.json");
    let helpers = serde_json::json!({ "credHelpers": { registry: "cloud" } });
    fs::write(&config, helpers.to_string()).expect("it is writable");
    let path = std::env::var("PATH").expect("programs are found by it");
    let options = Options {
        origin: format!("http://{registry}"),
        arguments: vec!["--docker-config".to_owned(), config.display().to_string()],
        environment: vec![("PATH", format!("{}:{path}", directory.path().display()))],
        ..Options::default()
    };
    Node::start(&Place::loopback(), options)
}

#[test]
fn what_a_helper_gives_for_amazon_or_google_is_a_password() {
    let _machine = machine();
    let image = Image::generate(720, &[MIB]);
    let registry = Registry::behind_a_login(&image, &Place::loopback(), HTPASSWD);
    for (username, secret) in LOGINS {
        let directory = TempDir::new().expect("temporary directories can be made");
        let node = node_with_helper(&registry.address(), username, secret, &directory);
        let pulled = node.pull(&image);
        pulled.unwrap_or_else(|problem| panic!("{username}: {problem}"));
    }
    let directory = TempDir::new().expect("temporary directories can be made");
    let node = node_with_helper(&registry.address(), "AWS", "another", &directory);
    assert!(node.pull(&image).is_err(), "the registry checks passwords");
}

#[test]
fn what_a_helper_gives_for_azure_is_exchanged_for_a_token() {
    let _machine = machine();
    let image = Image::generate(721, &[MIB]);
    let registry = Registry::serving(&image, &Place::loopback());
    let realm = Realm::before(&registry.url(), "refresh+/=");
    let directory = TempDir::new().expect("temporary directories can be made");
    let node = node_with_helper(&realm.address(), "<token>", "refresh+/=", &directory);
    node.pull(&image).expect("the token lets the node in");
}
