use std::{collections::BTreeMap, path::Path};

use super::*;

const CLIENTS: [Client; 7] = [
    Client::Docker,
    Client::Containerd,
    Client::Podman,
    Client::Crio,
    Client::Buildkit,
    Client::K3s,
    Client::Rke2,
];

fn plain(address: &str) -> Mirror {
    Mirror {
        address: address.to_owned(),
        tls: false,
        authority: None,
    }
}

fn site(root: &Path) -> Site {
    Site {
        root: root.to_owned(),
        mirror: plain("127.0.0.1:5005"),
        registries: ["docker.io", "quay.io"]
            .map(|name| name.parse().unwrap())
            .to_vec(),
    }
}

/// Every file under a directory, and what is in it.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            }
        }
    }
    found
}

fn host(given: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in given {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn apply(plan: &Plan) {
    for change in plan.files.iter().filter(|change| !change.is_none()) {
        change.apply().unwrap();
    }
}

/// Sets a client up on a host with these files; what the file at `path` is then. Undoing it must
/// leave nothing, and doing it twice must be like doing it once.
fn set_up(client: Client, given: &[(&str, &str)], path: &str) -> String {
    let root = host(given);
    let site = site(root.path());
    set_up_for(client, &site, path)
}

/// The same for another mirror.
fn set_up_for(client: Client, site: &Site, path: &str) -> String {
    let root = &site.root;
    let before = files(root);
    apply(&client.plan(site).unwrap());
    let after = files(root);
    assert_ne!(before, after, "{client}: something was written");

    let again = client.plan(site).unwrap();
    assert!(
        again.files.iter().all(Change::is_none),
        "{client}: {again:?}"
    );

    let other = Site {
        mirror: Mirror {
            address: "127.0.0.1:6000".to_owned(),
            ..site.mirror.clone()
        },
        ..site.clone()
    };
    if client != Client::Docker {
        apply(&client.plan(&other).unwrap());
        let moved = &files(root)[Path::new(path)];
        assert!(
            moved.contains(":6000") && !moved.contains(":5005"),
            "{moved}"
        );
        apply(&client.plan(site).unwrap());
        assert_eq!(files(root), after, "{client}: the address can be changed");
    }

    apply(&client.undo(site).unwrap());
    assert_eq!(files(root), before, "{client}: nothing is left");
    assert!(client.undo(site).unwrap().files.is_empty());
    after[Path::new(path)].clone()
}

const DAEMON: &str = "etc/docker/daemon.json";
const HOSTS: &str = "etc/containerd/certs.d/_default/hosts.toml";
const SHOAL_CONF: &str = "etc/containers/registries.conf.d/50-shoal.conf";
const BUILDKITD: &str = "etc/buildkit/buildkitd.toml";
const K3S: &str = "etc/rancher/k3s/registries.yaml";

fn toml(text: &str) -> toml::Table {
    text.parse()
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_host_without_any_configuration_gets_it_and_loses_it_again() {
    for client in CLIENTS {
        let root = host(&[]);
        let site = site(root.path());
        apply(&client.plan(&site).unwrap());
        let written = files(root.path());
        assert_eq!(written.len(), 1, "{client}: {written:?}");
        let (path, text) = written.first_key_value().unwrap();
        assert!(text.contains("127.0.0.1:5005"), "{text}");
        set_up(client, &[], path.to_str().unwrap());
    }
}

#[test]
fn docker_keeps_its_other_settings_and_mirrors() {
    let url = "http://127.0.0.1:5005";
    for (given, mirrors) in [
        ("{}", vec![url]),
        ("{\n}\n", vec![url]),
        ("{\"debug\":true}", vec![url]),
        ("{\n    \"debug\": true,\n    \"mtu\": 1400\n}", vec![url]),
        ("{\"registry-mirrors\":[]}\n", vec![url]),
        ("{\"registry-mirrors\": [ ], \"debug\": true}", vec![url]),
        (
            "{ \"x\": {\"registry-mirrors\": [1]},\n \"registry-mirrors\": [\n  \"https://a.test\"\n ]\n}\n",
            vec![url, "https://a.test"],
        ),
    ] {
        let text = set_up(Client::Docker, &[(DAEMON, given)], DAEMON);
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json["registry-mirrors"],
            serde_json::json!(mirrors),
            "{text}"
        );
        let mut given: serde_json::Value = serde_json::from_str(given).unwrap();
        for json in [&mut json, &mut given] {
            json.as_object_mut().unwrap().remove("registry-mirrors");
        }
        assert_eq!(json, given, "{text}");
    }
}

#[test]
fn a_daemon_json_that_was_written_anew_is_not_guessed_at() {
    let root = host(&[(
        DAEMON,
        "{\"registry-mirrors\":[\"https://a.test\",\"http://127.0.0.1:5005\"]}",
    )]);
    let site = site(root.path());
    // It is there already, whoever wrote it.
    assert!(Client::Docker.plan(&site).unwrap().files[0].is_none());
    let error = Client::Docker.undo(&site).unwrap_err().to_string();
    assert!(error.contains("by hand"), "{error}");
}

#[test]
fn containerd_asks_the_mirror_first_in_every_directory() {
    let own = "etc/containerd/certs.d/registry.test/hosts.toml";
    let given = [
        (
            HOSTS,
            "server = \"https://x.test\"\n\n[host.\"https://y.test\"]\n  ca = \"/a.crt\"",
        ),
        (own, "server = \"https://registry.test\""),
        ("etc/containerd/certs.d/bare.test/ca.crt", "certificate"),
    ];
    let text = set_up(Client::Containerd, &given, HOSTS);
    let table = toml(&text);
    assert_eq!(table["server"].as_str(), Some("https://x.test"));
    assert_eq!(table["host"].as_table().unwrap().len(), 2);
    assert!(
        text.find("5005").unwrap() < text.find("y.test").unwrap(),
        "{text}"
    );
    let table = toml(&set_up(Client::Containerd, &given, own));
    assert_eq!(table["server"].as_str(), Some("https://registry.test"));
    let mirror = &table["host"]["http://127.0.0.1:5005"];
    assert_eq!(mirror["capabilities"].as_array().unwrap().len(), 2);

    let root = host(&given);
    let plan = Client::Containerd.plan(&site(root.path())).unwrap();
    let warnings = plan.warnings.join("\n");
    assert!(
        warnings.contains("bare.test") && warnings.contains("config_path"),
        "{warnings}"
    );
}

#[test]
fn containerd_is_told_of_its_config_path_only_where_that_is_missing() {
    for (configuration, missing) in [
        ("", Some("io.containerd.grpc.v1.cri")),
        ("version = 3\n", Some("io.containerd.cri.v1.images")),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
            None,
        ),
        (
            "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n",
            None,
        ),
    ] {
        let root = host(&[("etc/containerd/config.toml", configuration)]);
        let plan = Client::Containerd.plan(&site(root.path())).unwrap();
        let warnings = plan.warnings.join("\n");
        match missing {
            Some(plugin) => assert!(warnings.contains(plugin), "{warnings}"),
            None => assert!(plan.warnings.is_empty(), "{warnings}"),
        }
    }
}

#[test]
fn podman_gets_each_registry_but_those_that_are_configured_elsewhere() {
    let text = set_up(Client::Podman, &[], SHOAL_CONF);
    let registries = toml(&text)["registry"].as_array().unwrap().clone();
    assert_eq!(registries.len(), 2);
    assert_eq!(registries[0]["location"].as_str(), Some("docker.io"));
    let mirror = &registries[0]["mirror"][0];
    assert_eq!(
        mirror["location"].as_str(),
        Some("127.0.0.1:5005/docker.io")
    );
    assert_eq!(mirror["insecure"].as_bool(), Some(true));

    let other = "etc/containers/registries.conf.d/000-own.conf";
    let given = [(
        other,
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"hub.test\"\n",
    )];
    let text = set_up(Client::Crio, &given, SHOAL_CONF);
    assert!(!text.contains("docker.io"), "{text}");
    let root = host(&given);
    let warnings = Client::Crio
        .plan(&site(root.path()))
        .unwrap()
        .warnings
        .join("\n");
    assert!(warnings.contains("000-own.conf"), "{warnings}");
}

#[test]
fn buildkit_keeps_its_tables() {
    for given in [
        "",
        "debug = true\n[worker.oci]\n  gc = true",
        "[registry.\"docker.io\"]\n  mirrors = [\"a.test\"]\n",
    ] {
        let text = set_up(Client::Buildkit, &[(BUILDKITD, given)], BUILDKITD);
        let table = toml(&text);
        assert_eq!(
            table["registry"]["127.0.0.1:5005"]["http"].as_bool(),
            Some(true)
        );
        assert_eq!(
            table["registry"]["quay.io"]["mirrors"][0].as_str(),
            Some("127.0.0.1:5005")
        );
        let hub = table["registry"]["docker.io"]["mirrors"][0].as_str();
        let expected = if given.contains("a.test") {
            "a.test"
        } else {
            "127.0.0.1:5005"
        };
        assert_eq!(hub, Some(expected));
        for (key, value) in toml(given) {
            assert!(key == "registry" || table[&key] == value, "{text}");
        }
    }
}

#[test]
fn rancher_gets_an_entry_among_those_that_are_there() {
    let entry = |indent: &str| {
        format!("{indent}\"*\":\n{indent}  endpoint:\n{indent}    - \"http://127.0.0.1:5005\"\n")
    };
    for (given, indent) in [
        ("", "  "),
        ("configs:\n  a.test:\n    tls: {}", "  "),
        ("mirrors:\n", "  "),
        (
            "mirrors: # ours\n\n    # a comment\n    a.test:\n      endpoint: [x]\nconfigs: {}\n",
            "    ",
        ),
    ] {
        let text = set_up(Client::K3s, &[(K3S, given)], K3S);
        assert!(text.contains(&entry(indent)), "{text}");
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("mirrors:"))
                .count(),
            1,
            "{text}"
        );
        let at = text.find("\nmirrors:").map_or(0, |newline| newline + 1);
        let entry_at = text.find("\"*\"").unwrap();
        let configs = text.find("configs: {}").unwrap_or(text.len());
        assert!(at < entry_at && entry_at < configs, "{text}");
    }
    for (given, told) in [
        ("mirrors: {a.test: {endpoint: [x]}}\n", "one line"),
        ("mirrors:\n  '*':\n    endpoint: [x]\n", "by hand"),
    ] {
        let root = host(&[(K3S, given)]);
        let error = Client::K3s
            .plan(&site(root.path()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn what_the_client_itself_would_not_understand_is_an_error() {
    for (client, path, text) in [
        (Client::Docker, DAEMON, "{"),
        (Client::Docker, DAEMON, "[]"),
        (Client::Docker, DAEMON, "{\"registry-mirrors\": \"x\"}"),
        (Client::Containerd, HOSTS, "server = "),
        (Client::Buildkit, BUILDKITD, "= 1"),
    ] {
        let root = host(&[(path, text)]);
        let error = format!("{:#}", client.plan(&site(root.path())).unwrap_err());
        assert!(
            error.contains("daemon.json") || error.contains(path),
            "{error}"
        );
        assert_eq!(
            files(root.path())[Path::new(path)],
            text,
            "it is left as it is"
        );
    }
}

#[test]
fn half_of_our_lines_are_not_guessed_at() {
    let whole = block::insert(Some("a = 1\n"), 6, "b = 2\n", "");
    assert_eq!(block::remove(&whole).unwrap(), Some("a = 1\n".to_owned()));
    let lines: Vec<&str> = whole.lines().collect();
    for missing in [1, 3] {
        let mut rest = lines.clone();
        rest.remove(missing);
        assert!(block::remove(&rest.join("\n")).is_err());
    }
}

#[test]
fn a_changed_file_keeps_its_permissions_and_a_link_stays_one() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let root = host(&[("elsewhere.json", "{}")]);
    let link = root.path().join(DAEMON);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    let target = root.path().join("elsewhere.json");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&target, &link).unwrap();
    apply(&Client::Docker.plan(&site(root.path())).unwrap());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        fs::metadata(&target).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(fs::read_to_string(&target).unwrap().contains("5005"));
}

/// A mirror that speaks TLS, with an authority in a file.
fn tls_site(root: &Path, authority: &Path) -> Site {
    fs::write(authority, "-----BEGIN CERTIFICATE-----\n").unwrap();
    Site {
        mirror: Mirror {
            tls: true,
            authority: Some(authority.to_owned()),
            ..plain("127.0.0.1:5005")
        },
        ..site(root)
    }
}

#[test]
fn a_mirror_with_tls_is_named_by_https_and_its_authority_where_the_client_looks_for_it() {
    let other = tempfile::tempdir().unwrap();
    let ca = other.path().join("ca.pem");
    let shown = ca.to_str().unwrap();
    let copy = |directory: &str| format!("{directory}/127.0.0.1:5005/shoal-ca.crt");
    for (client, path, says) in [
        (Client::Docker, DAEMON, "https://127.0.0.1:5005".to_owned()),
        (
            Client::Docker,
            &copy("etc/docker/certs.d"),
            "BEGIN CERT".to_owned(),
        ),
        (
            Client::Containerd,
            HOSTS,
            format!(
                "[host.\"https://127.0.0.1:5005\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"{shown}\"\n"
            ),
        ),
        (
            Client::Podman,
            SHOAL_CONF,
            "location = \"127.0.0.1:5005/quay.io\"\n".to_owned(),
        ),
        (
            Client::Crio,
            &copy("etc/containers/certs.d"),
            "BEGIN CERT".to_owned(),
        ),
        (
            Client::Buildkit,
            BUILDKITD,
            format!("[registry.\"127.0.0.1:5005\"]\nca = [\"{shown}\"]\n"),
        ),
        (
            Client::K3s,
            K3S,
            format!("configs:\n  \"127.0.0.1:5005\":\n    tls:\n      ca_file: \"{shown}\"\n"),
        ),
    ] {
        let root = host(&[]);
        let site = tls_site(root.path(), &ca);
        apply(&client.plan(&site).unwrap());
        let written = files(root.path());
        let text = &written[Path::new(path)];
        assert!(text.contains(&says), "{client}: {text}");
        assert!(
            !text.contains("insecure") && !text.contains("http = true"),
            "{text}"
        );
        apply(&client.undo(&site).unwrap());
        if !path.contains("certs.d/127") {
            set_up_for(client, &site, path);
        }
        assert!(files(root.path()).is_empty(), "{client}");
    }
}

#[test]
fn a_mirror_that_goes_back_to_plain_http_leaves_no_authority_behind() {
    let other = tempfile::tempdir().unwrap();
    for client in [Client::Docker, Client::Podman] {
        let root = host(&[]);
        let site = tls_site(root.path(), &other.path().join("ca.pem"));
        apply(&client.plan(&site).unwrap());
        assert_eq!(files(root.path()).len(), 2);
        let back = Site {
            mirror: plain("127.0.0.1:5005"),
            ..site
        };
        apply(&client.plan(&back).unwrap());
        assert_eq!(files(root.path()).len(), 1, "{client}");
    }
}

#[test]
fn where_rancher_has_a_file_the_certificate_is_left_to_the_operator() {
    let other = tempfile::tempdir().unwrap();
    let root = host(&[(
        K3S,
        "mirrors:\n  docker.io:\n    endpoint: [\"https://a.test\"]\n",
    )]);
    let site = tls_site(root.path(), &other.path().join("ca.pem"));
    let plan = Client::K3s.plan(&site).unwrap();
    assert!(
        plan.warnings.iter().any(|told| told.contains("ca_file")),
        "{plan:?}"
    );
    let after = plan.files[0].after.as_ref().unwrap();
    assert!(after.contains("https://127.0.0.1:5005") && !after.contains("ca_file"));
}

#[test]
fn a_mirror_is_an_address_with_or_without_a_scheme() {
    let of = |text: &str| text.parse::<MirrorArg>();
    for (text, address, tls) in [
        ("127.0.0.1:5005", "127.0.0.1:5005", None),
        (
            "https://node-1.example:5005/",
            "node-1.example:5005",
            Some(true),
        ),
        ("http://[::1]:5005", "[::1]:5005", Some(false)),
    ] {
        let expected = MirrorArg {
            address: address.to_owned(),
            tls,
        };
        assert_eq!(of(text), Ok(expected));
    }
    for text in [
        "",
        "127.0.0.1",
        "ftp://a:1",
        "a:0",
        "a/b:1",
        "::1:5005x",
        "https://a:1/path",
    ] {
        assert!(of(text).unwrap_err().contains("HOST:PORT"), "{text}");
    }
}
