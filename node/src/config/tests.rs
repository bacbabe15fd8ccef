use super::*;

/// Runs `load` with a file of this text and these variables.
fn load(flags: RawConfig, variables: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shoal.toml");
    fs::write(&path, file).unwrap();
    let environment = |name: &str| {
        variables
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| OsString::from(value))
            .or_else(|| (name == "HOME").then(|| OsString::from("/home/someone")))
    };
    Config::load(flags, Some(&path), &environment)
}

fn error(flags: RawConfig, variables: &[(&str, &str)], file: &str) -> String {
    load(flags, variables, file).unwrap_err().to_string()
}

#[test]
fn with_nothing_said_a_node_mirrors_on_loopback() {
    let config = load(RawConfig::default(), &[], "").unwrap();
    assert_eq!(config.mirror.to_string(), "127.0.0.1:5005");
    assert_eq!(config.admin.to_string(), "127.0.0.1:5006");
    assert_eq!(config.listen, ["0.0.0.0:5004".parse().unwrap()]);
    assert!(config.origins.is_empty() && config.join.is_empty());
    assert_eq!(config.log, "info");
    assert_eq!(config.origin_reserve, Reserve::Percent(10));
}

#[test]
fn a_flag_wins_over_a_variable_and_that_over_the_file() {
    let flags = RawConfig {
        mirror: Some("127.0.0.1:1".to_owned()),
        ..RawConfig::default()
    };
    let variables = [
        ("SHOAL_MIRROR", "127.0.0.1:2"),
        ("SHOAL_ADMIN", "127.0.0.1:20"),
    ];
    let file = "mirror = '127.0.0.1:3'\nadmin = '127.0.0.1:30'\nquota = '200GB'";
    let config = load(flags, &variables, file).unwrap();
    assert_eq!(config.mirror.port(), 1);
    assert_eq!(config.admin.port(), 20);
    assert_eq!(config.quota, Some(ByteSize(200_000_000_000)));
}

#[test]
fn a_node_says_where_it_is() {
    let file = "zone = 'fra-1'\nrack = 'a07'";
    let config = load(RawConfig::default(), &[("SHOAL_RACK", " b12 ")], file).unwrap();
    assert_eq!(config.zone.as_deref(), Some("fra-1"));
    assert_eq!(config.rack.as_deref(), Some("b12"));
}

#[test]
fn a_list_is_taken_whole_from_the_strongest_place() {
    let file = "cluster_key = '/k'\njoin = ['a:1', 'b:2']";
    assert_eq!(
        load(RawConfig::default(), &[], file).unwrap().join,
        ["a:1", "b:2"]
    );
    let config = load(
        RawConfig::default(),
        &[("SHOAL_JOIN", "c:3, [::1]:4")],
        file,
    )
    .unwrap();
    assert_eq!(config.join, ["c:3", "[::1]:4"]);
}

#[test]
fn origins_come_with_their_certificates() {
    let flags = RawConfig {
        origin: Some(
            RawConfig::flag_lists("origin", &["registry.test=http://10.0.0.1:5000".to_owned()])
                .unwrap(),
        ),
        ..RawConfig::default()
    };
    let file = "[origin_ca]\n'own.example' = '/ca.pem'\n'registry.test' = '/test.pem'";
    let config = load(flags, &[], file).unwrap();
    let spec = |name: &str| &config.origins[&name.parse().unwrap()][0];
    assert_eq!(spec("registry.test").url.as_str(), "http://10.0.0.1:5000/");
    assert_eq!(
        spec("registry.test").ca_file,
        Some(PathBuf::from("/test.pem"))
    );
    assert_eq!(spec("own.example").url.as_str(), "https://own.example/");
}

#[test]
fn an_upstream_has_its_origins_in_order() {
    let urls = |config: &Config, upstream: &str| -> Vec<String> {
        let list = &config.origins[&upstream.parse().unwrap()];
        list.iter().map(|spec| spec.url.to_string()).collect()
    };
    let file = "[origin]\n'a.test' = ['https://b', 'http://a']\n'c.test' = 'http://c'";
    let from_file = load(RawConfig::default(), &[], file).unwrap();
    assert_eq!(urls(&from_file, "a.test"), ["https://b/", "http://a/"]);
    assert_eq!(urls(&from_file, "c.test"), ["http://c/"]);

    let variable = "a.test=http://z, c.test=http://c, a.test=http://y";
    let from_variable = load(RawConfig::default(), &[("SHOAL_ORIGIN", variable)], file).unwrap();
    assert_eq!(urls(&from_variable, "a.test"), ["http://z/", "http://y/"]);

    let items = ["a.test=https://second", "a.test=file:///first"].map(str::to_owned);
    let flags = RawConfig {
        origin: Some(RawConfig::flag_lists("origin", &items).unwrap()),
        ..RawConfig::default()
    };
    let authority = [("SHOAL_ORIGIN_CA", "a.test=/ca.pem")];
    let from_flags = load(flags, &authority, file).unwrap();
    let list = &from_flags.origins[&"a.test".parse().unwrap()];
    assert_eq!(list[0].ca_file, Some(PathBuf::from("/ca.pem")));
    assert_eq!(
        (list[1].url.as_str(), &list[1].ca_file),
        ("file:///first", &None)
    );

    for (wrong, needed) in [
        ("[]", "is empty"),
        ("5", "a list of URLs"),
        ("['x']", "is not an"),
    ] {
        let said = error(
            RawConfig::default(),
            &[],
            &format!("[origin]\n'a.test' = {wrong}"),
        );
        assert!(said.contains(needed), "{said}");
    }
}

#[test]
fn an_origin_may_be_a_directory() {
    let config = load(
        RawConfig::default(),
        &[],
        "[origin]\n'a.test' = 'file:///srv/images'",
    );
    let config = config.unwrap();
    let spec = &config.origins[&"a.test".parse().unwrap()][0];
    assert_eq!(spec.url.as_str(), "file:///srv/images");
    for text in ["/srv/images", "file:srv", "file://host/srv", "ftp://host/"] {
        let file = format!("[origin]\n'a.test' = '{text}'");
        let said = error(RawConfig::default(), &[], &file);
        assert!(said.contains("file:///PATH"), "{said}");
    }
}

#[test]
fn an_error_names_the_place_and_the_value_and_what_to_write() {
    let flags = RawConfig {
        mirror: Some("5005".to_owned()),
        ..RawConfig::default()
    };
    assert_eq!(
        error(flags, &[], ""),
        "--mirror: `5005` is not an address; write IP:PORT, such as 127.0.0.1:5005 or [::]:5004"
    );
    assert!(
        error(RawConfig::default(), &[("SHOAL_MIN_FREE", "lots")], "")
            .starts_with("SHOAL_MIN_FREE: `lots` is not a size; write a number and a unit")
    );
    let message = error(RawConfig::default(), &[], "tag_ttl = 'soon'");
    assert!(message.starts_with("tag_ttl in /"), "{message}");
    assert!(
        message.contains("`soon` is not a length of time"),
        "{message}"
    );
    for (variable, value) in [
        ("SHOAL_ORIGIN", "registry.test"),
        ("SHOAL_ORIGIN", "registry.test=ftp://x"),
        ("SHOAL_ORIGIN", "a b=http://x"),
        ("SHOAL_JOIN", "::1:5004"),
        ("SHOAL_JOIN", "host"),
        ("SHOAL_LISTEN", "host:1"),
        ("SHOAL_DATA_DIR", ""),
        ("SHOAL_ZONE", ""),
        ("SHOAL_RACK", " "),
    ] {
        let message = error(
            RawConfig::default(),
            &[("SHOAL_CLUSTER_KEY", "k"), (variable, value)],
            "",
        );
        assert!(message.starts_with(variable), "{message}");
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_line() {
    let message = error(RawConfig::default(), &[], "quota = '1GB'\nmirorr = 'x'");
    assert!(
        message.contains("shoal.toml, line 2: unknown field `mirorr`"),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_named_file_must_exist() {
    let missing = Config::load(
        RawConfig::default(),
        Some(Path::new("/nonexistent/shoal.toml")),
        &|_| None,
    );
    assert!(matches!(missing, Err(ConfigError::Unreadable { .. })));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let both = [("SHOAL_CLUSTER_KEY", "/k"), ("SHOAL_TICKET", "/t")];
    assert!(error(RawConfig::default(), &both, "").contains("--ticket"));
    let stranger = [("SHOAL_JOIN", "host:5004")];
    assert!(error(RawConfig::default(), &stranger, "").contains("shoal cluster init"));
}

#[test]
fn the_mirror_speaks_tls_with_a_certificate_of_ones_own_or_a_generated_one() {
    let of = |file: &str| load(RawConfig::default(), &[], file).map(|config| config.mirror_tls);
    assert_eq!(of("").unwrap(), None);
    let names = "mirror_tls = 'generated'\nmirror_tls_name = ['Node-1.example', '10.0.0.1', '::1']";
    assert_eq!(
        of(names).unwrap(),
        Some(MirrorTls::Generated {
            names: ["node-1.example", "10.0.0.1", "::1"]
                .map(String::from)
                .into()
        })
    );
    assert_eq!(
        of("mirror_tls = '/c.pem'\nmirror_tls_key = '/c.key'").unwrap(),
        Some(MirrorTls::Files {
            certificate: "/c.pem".into(),
            key: "/c.key".into()
        })
    );
    for (file, told) in [
        ("mirror_tls = '/c.pem'", "needs --mirror-tls-key"),
        ("mirror_tls_key = '/c.key'", "needs --mirror-tls FILE"),
        (
            "mirror_tls = 'generated'\nmirror_tls_key = '/k'",
            "needs --mirror-tls FILE",
        ),
        ("mirror_tls_name = ['a']", "--mirror-tls generated"),
        (
            "mirror_tls = 'generated'\nmirror_tls_name = ['*.a']",
            "`*.a` is not a host name",
        ),
    ] {
        let error = of(file).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn an_upstream_is_open_or_read_by_its_origins_leave() {
    let access = |file: &str| load(RawConfig::default(), &[], file).map(|config| config.access);
    assert!(access("").unwrap().is_empty());
    let rules = access("[access]\n'registry.test' = 'origin'\n'docker.io' = 'open'").unwrap();
    assert_eq!(rules[&"registry.test".parse().unwrap()], Access::Origin);
    assert_eq!(rules[&"docker.io".parse().unwrap()], Access::Open);
    let error = access("[access]\n'registry.test' = 'private'").unwrap_err();
    assert!(
        error.to_string().contains("`private` is not a rule"),
        "{error}"
    );
}
