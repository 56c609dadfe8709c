use super::*;

fn load(
    file: Option<&str>,
    env: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file.map(|text| {
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).expect("written");
        path
    });
    let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let flags = flags.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    Config::load(path.as_deref(), env, flags)
}

/// The only problem, as text.
fn problem(result: Result<Config, ConfigError>) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.0.len(), 1, "{error}");
    error.0[0].to_string()
}

fn fields(error: &ConfigError) -> Vec<&str> {
    error.0.iter().map(|problem| problem.field.as_str()).collect()
}

#[test]
fn nothing_given_is_the_documented_default() {
    let config =
        load(None, &[("PATH", "/bin"), ("TRANCHE_WORKER_X", "1"), ("TRANCHE_COORDINATOR_CONFIG", "f")], &[])
            .expect("right");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.to_string(), "127.0.0.1:7070");
    assert_eq!(config.heartbeat(), Duration::from_millis(2500));
    assert_eq!(config.idle_heartbeat(), Duration::from_millis(6500));
    assert_eq!(config.silence(), Duration::from_secs(9));
    assert_eq!(config.objects_dir(), PathBuf::from("tranche-data/objects"));
    assert_eq!(config.max_append_inflight_bytes, 32 * 1024 * 1024);
    assert_eq!(config.endpoint(config.listen), "http://127.0.0.1:7070");
    Config::embedded("/x".into()).check().expect("right");
    assert_eq!(Config::embedded("/x".into()).objects_dir(), PathBuf::from("/x/objects"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "lease_ttl = '1s'\nretry_pause = '2s'\nshutdown_grace = '3s'\nhandlers = ['a', 'b-c']\nmax_watchers = 7";
    let config = load(
        Some(file),
        &[("TRANCHE_COORDINATOR_RETRY_PAUSE", "20ms"), ("TRANCHE_COORDINATOR_SHUTDOWN_GRACE", "30ms")],
        &[("shutdown_grace", "300ms")],
    )
    .expect("right");
    assert_eq!(config.lease_ttl, Duration::from_secs(1));
    assert_eq!(config.retry_pause, Duration::from_millis(20));
    assert_eq!(config.shutdown_grace, Duration::from_millis(300));
    assert_eq!(config.handlers, ["a", "b-c"]);
    assert_eq!(config.max_watchers, 7);
}

#[test]
fn every_field_can_be_given_in_every_way() {
    let values = [
        ("listen", "0.0.0.0:1"),
        ("ops_listen", "127.0.0.1:2"),
        ("otlp_endpoint", "http://o:1"),
        ("advertise", "https://a:1"),
        ("insecure", "true"),
        ("tls_cert", "/tc"),
        ("tls_key", "/tk"),
        ("tls_client_ca", "/tcc"),
        ("ops_client_ca", "/occ"),
        ("identities", "/i"),
        ("open_services", "reflection,health"),
        ("tls_ca", "/ta"),
        ("token_file", "/tf"),
        ("store", "etcd:https://a:1,https://b:2"),
        ("prefix", "/x/"),
        ("session_ttl", "7s"),
        ("call_timeout", "8s"),
        ("etcd_ca", "/ea"),
        ("etcd_cert", "/ec"),
        ("etcd_key", "/ek"),
        ("etcd_user", "root"),
        ("etcd_password_file", "/ep"),
        ("objects", "/o"),
        ("start_timeout", "9s"),
        ("lease_ttl", "11s"),
        ("heartbeat_interval", "1s"),
        ("handlers", "a,b"),
        ("request_timeout", "12s"),
        ("max_concurrent_requests", "13"),
        ("max_calls_per_second", "0"),
        ("max_call_burst", "5"),
        ("max_connections", "130"),
        ("max_peer_connections", "131"),
        ("peer_timeout", "13s"),
        ("max_watchers", "14"),
        ("max_append_streams", "15"),
        ("max_watchers_per_namespace", "6"),
        ("max_append_streams_per_namespace", "7"),
        ("max_workers", "8"),
        ("max_workers_per_identity", "9"),
        ("max_batches_per_namespace", "0"),
        ("max_bytes_per_namespace", "3GiB"),
        ("append_idle_timeout", "15s"),
        ("max_append_inflight_bytes", "16MiB"),
        ("shutdown_grace", "17s"),
        ("retry_pause", "18s"),
        ("backup_after", "19s"),
        ("late_sweep_after", "21s"),
        ("log", "debug"),
        ("log_format", "json"),
    ];
    assert_eq!(values.map(|(name, _)| name).to_vec(), FIELDS.iter().map(|f| f.name).collect::<Vec<_>>());
    let wanted = Config {
        listen: "0.0.0.0:1".parse().expect("an address"),
        ops_listen: Some("127.0.0.1:2".parse().expect("an address")),
        otlp_endpoint: Some("http://o:1".into()),
        advertise: Some("https://a:1".into()),
        insecure: true,
        security: Security {
            tls_cert: Some("/tc".into()),
            tls_key: Some("/tk".into()),
            tls_client_ca: Some("/tcc".into()),
            ops_client_ca: Some("/occ".into()),
            identities: Some("/i".into()),
            open_services: vec![OpenService::Reflection, OpenService::Health],
            tls_ca: Some("/ta".into()),
            token_file: Some("/tf".into()),
            etcd_ca: Some("/ea".into()),
            etcd_cert: Some("/ec".into()),
            etcd_key: Some("/ek".into()),
            etcd_user: Some("root".into()),
            etcd_password_file: Some("/ep".into()),
        },
        store: StoreConfig::Etcd {
            endpoints: vec!["https://a:1".into(), "https://b:2".into()],
            prefix: "/x/".into(),
            session_ttl: Duration::from_secs(7),
            call_timeout: Duration::from_secs(8),
        },
        objects: Some("/o".into()),
        start_timeout: Duration::from_secs(9),
        lease_ttl: Duration::from_secs(11),
        heartbeat_interval: Some(Duration::from_secs(1)),
        handlers: vec!["a".into(), "b".into()],
        request_timeout: Duration::from_secs(12),
        max_concurrent_requests: 13,
        max_calls_per_second: 0,
        max_call_burst: Some(5),
        max_watchers: 14,
        max_append_streams: 15,
        max_watchers_per_namespace: Some(6),
        max_append_streams_per_namespace: Some(7),
        max_workers: 8,
        max_workers_per_identity: Some(9),
        max_batches_per_namespace: 0,
        max_bytes_per_namespace: 3 << 30,
        max_connections: 130,
        max_peer_connections: Some(131),
        peer_timeout: Duration::from_secs(13),
        append_idle_timeout: Duration::from_secs(15),
        max_append_inflight_bytes: 16 << 20,
        shutdown_grace: Duration::from_secs(17),
        retry_pause: Duration::from_secs(18),
        backup_after: Duration::from_secs(19),
        late_sweep_after: Duration::from_secs(21),
        log: "debug".into(),
        log_format: LogFormat::Json,
    };
    let toml = values.map(|(name, value)| format!("{name} = {value:?}\n")).concat();
    let names = values.map(|(name, _)| format!("{ENV_PREFIX}{}", name.to_ascii_uppercase()));
    let env: Vec<_> = names.iter().zip(&values).map(|(name, (_, value))| (name.as_str(), *value)).collect();
    let loads = [load(Some(&toml), &[], &[]), load(None, &env, &[]), load(None, &[], &values)];
    for loaded in loads {
        match loaded {
            Ok(config) => assert_eq!(config, wanted),
            Err(error) => {
                assert_eq!((fields(&error), cfg!(feature = "etcd")), (vec!["store"], false), "{error}");
            }
        }
    }
}

#[test]
fn unknown_names_are_refused_wherever_they_are() {
    let text = problem(load(Some("lease_tll = '5s'"), &[], &[]));
    assert!(
        text.contains("lease_tll in ") && text.contains("c.toml") && text.contains("lease_ttl"),
        "{text}"
    );
    let text = problem(load(Some("[store]\npath = 'x'"), &[], &[]));
    assert!(text.starts_with("store in"), "{text}");
    let text = problem(load(Some("[stroe]\npath = 'x'"), &[], &[]));
    assert!(text.starts_with("stroe in") && text.contains("is unknown"), "{text}");
    let text = problem(load(None, &[("TRANCHE_COORDINATOR_LEASETTL", "5s")], &[]));
    assert!(text.starts_with("TRANCHE_COORDINATOR_LEASETTL = \"5s\": is unknown"), "{text}");
    let text = problem(load(None, &[], &[("nope", "1")]));
    assert!(text.starts_with("--nope"), "{text}");
}

#[test]
fn values_that_cannot_be_read_are_named_with_their_origin() {
    let text = problem(load(None, &[("TRANCHE_COORDINATOR_LEASE_TTL", "soon")], &[]));
    assert!(text.starts_with("TRANCHE_COORDINATOR_LEASE_TTL = \"soon\": is no time"), "{text}");
    let text = problem(load(Some("max_watchers = -1"), &[], &[]));
    assert!(text.contains("max_watchers in") && text.contains("\"-1\""), "{text}");
    for (name, value) in [
        ("listen", "localhost"),
        ("ops_listen", "7071"),
        ("insecure", "perhaps"),
        ("store", "sqlite:x"),
        ("log_format", "xml"),
        ("max_append_inflight_bytes", "32 MB"),
        ("max_append_inflight_bytes", "99999999999999GiB"),
        ("log", "a=b=c"),
    ] {
        let text = problem(load(None, &[], &[(name, value)]));
        assert!(text.contains(&name.replace('_', "-")) || text.starts_with(name), "{text}");
        assert!(text.contains(value), "{text}");
    }
    let missing = Config::load(Some(Path::new("/nonexistent/c.toml")), [], Texts::new());
    assert!(problem(missing).contains("/nonexistent/c.toml"));
    problem(load(Some("lease_ttl = "), &[], &[]));
}

#[test]
fn all_problems_are_listed() {
    let error = load(
        Some("unknown = 1"),
        &[("TRANCHE_COORDINATOR_LISTEN", "x")],
        &[("prefix", "/x/"), ("lease_ttl", "?")],
    )
    .expect_err("refused");
    let mut found = fields(&error);
    found[0] = &found[0][..7];
    assert_eq!(found, ["unknown", "TRANCHE_COORDINATOR_LISTEN", "--prefix", "--lease-ttl"]);
    let error =
        Config { max_watchers: 0, max_append_streams: 0, ..Config::default() }.check().expect_err("no");
    assert_eq!(fields(&error), ["max_watchers", "max_append_streams"]);
}

#[test]
fn bounds_hold_at_n_and_refuse_n_plus_one() {
    for (name, good, bad) in [
        ("start_timeout", ["100ms", "1h"], ["99ms", "3600001ms"]),
        ("lease_ttl", ["200ms", "10m"], ["199ms", "600001ms"]),
        ("heartbeat_interval", ["20ms", "3333ms"], ["19ms", "3334ms"]),
        ("request_timeout", ["100ms", "10m"], ["99ms", "600001ms"]),
        ("shutdown_grace", ["0s", "10m"], ["600001ms", "600001ms"]),
        ("retry_pause", ["10ms", "30s"], ["9ms", "30001ms"]),
        ("backup_after", ["10ms", "1h"], ["9ms", "3600001ms"]),
        ("late_sweep_after", ["0s", "24h"], ["86400001ms", "25h"]),
        ("max_concurrent_requests", ["1", "1000000"], ["0", "1000001"]),
        ("max_calls_per_second", ["0", "1000000"], ["1000001", "1000001"]),
        ("max_call_burst", ["1", "1000000"], ["0", "1000001"]),
        ("max_connections", ["1", "1000000"], ["0", "1000001"]),
        ("max_peer_connections", ["1", "1000000"], ["0", "1000001"]),
        ("peer_timeout", ["100ms", "10m"], ["99ms", "601s"]),
        ("append_idle_timeout", ["100ms", "24h"], ["99ms", "86401s"]),
        ("max_watchers", ["1", "100000"], ["0", "100001"]),
        ("max_append_streams", ["1", "10000"], ["0", "10001"]),
        ("max_watchers_per_namespace", ["1", "100000"], ["0", "100001"]),
        ("max_append_streams_per_namespace", ["1", "10000"], ["0", "10001"]),
        ("max_workers", ["1", "100000"], ["0", "100001"]),
        ("max_workers_per_identity", ["1", "100000"], ["0", "100001"]),
        ("max_batches_per_namespace", ["0", "100000"], ["100001", "100001"]),
        ("max_bytes_per_namespace", ["0", "1048576GiB"], ["1125899906842625", "1048577GiB"]),
        ("max_append_inflight_bytes", ["4MiB", "1GiB"], ["4194303", "1073741825"]),
    ] {
        for value in good {
            load(None, &[], &[(name, value)]).unwrap_or_else(|error| panic!("{name} = {value}: {error}"));
        }
        for value in bad {
            let text = problem(load(None, &[], &[(name, value)]));
            assert!(text.starts_with(name), "{text}");
        }
    }
    let names = |n: usize| (0..n).map(|i| format!("h{i}")).collect::<Vec<_>>().join(",");
    load(None, &[], &[("handlers", &names(64))]).expect("64 handlers");
    problem(load(None, &[], &[("handlers", &names(65))]));
    assert_eq!(load(None, &[], &[("handlers", "")]).expect("none").handlers, [""; 0]);
    for handlers in ["a,a", "A", "a,", &"x".repeat(64)] {
        assert!(problem(load(None, &[], &[("handlers", handlers)])).starts_with("handlers"));
    }
    load(None, &[], &[("handlers", &"x".repeat(63))]).expect("63 characters");
}

#[test]
fn a_share_leaves_some_to_others_where_there_are_others() {
    let all = Config { max_watchers: 7, max_workers: 9, ..Config::default() };
    assert_eq!((all.watchers_share().most, all.workers_share().most), (7, 9));
    let security = Security { identities: Some("/i".into()), ..Security::default() };
    let shared = Config { security, ..all };
    assert_eq!((shared.watchers_share().most, shared.appenders_share().most), (4, 128));
    let given = Config { max_watchers_per_namespace: Some(7), max_workers_per_identity: Some(1), ..shared };
    assert_eq!((given.watchers_share().most, given.workers_share().most), (7, 1));
}

#[test]
fn another_address_than_loopback_needs_insecure() {
    for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        load(None, &[], &[("listen", listen)]).expect("loopback");
    }
    let text = problem(load(None, &[], &[("listen", "10.0.0.1:1")]));
    assert!(text.starts_with("listen = \"10.0.0.1:1\"") && text.contains("--insecure"), "{text}");
    load(None, &[], &[("listen", "10.0.0.1:1"), ("insecure", "true")]).expect("asked for");
    load(None, &[], &[("ops_listen", "[::1]:1")]).expect("loopback");
    let text = problem(load(None, &[], &[("ops_listen", "10.0.0.1:1")]));
    assert!(text.starts_with("ops_listen = \"10.0.0.1:1\"") && text.contains("--insecure"), "{text}");
    load(None, &[], &[("ops_listen", "0.0.0.0:1"), ("insecure", "true")]).expect("asked for");
    load(None, &[], &[("ops_listen", "10.0.0.1:1"), ("tls_cert", "/c"), ("tls_key", "/k")]).expect("by TLS");
    let text = problem(load(None, &[], &[("listen", "0.0.0.0:1"), ("insecure", "true")]));
    assert!(text.starts_with("advertise: is required"), "{text}");
    let all = [("listen", "[::]:1"), ("insecure", "true"), ("advertise", "http://h:1")];
    assert_eq!(load(None, &[], &all).expect("right").endpoint(([1, 1, 1, 1], 1).into()), "http://h:1");
    for url in ["h:1", "ftp://h:1", "http://h", "http://h:1/x", "http://", "grpc://h:1", "a b"] {
        assert!(problem(load(None, &[], &[("advertise", url)])).starts_with("advertise"), "{url}");
        assert!(problem(load(None, &[], &[("otlp_endpoint", url)])).starts_with("otlp_endpoint"), "{url}");
    }
}

#[test]
fn with_tls_and_identities_every_address_is_right_and_nothing_is_forgotten() {
    let tls = [("tls_cert", "c"), ("tls_key", "k")];
    let with = |more: &[(&'static str, &'static str)]| load(None, &[], &[&tls[..], more].concat());
    let all = [("listen", "10.0.0.1:1"), ("identities", "i")];
    let config = with(&all).expect("right");
    assert_eq!(config.endpoint(config.listen), "https://10.0.0.1:1");
    let text = problem(with(&all[..1]));
    assert!(text.contains("nobody is asked who they are: give identities"), "{text}");
    let text = problem(load(None, &[], &all));
    assert!(text.contains("in clear text: give tls_cert"), "{text}");
    assert!(problem(load(None, &[], &tls[..1])).starts_with("tls_key: is missing"));
    assert!(problem(load(None, &[], &tls[1..])).starts_with("tls_cert: is missing"));
    assert!(problem(load(None, &[], &[("tls_client_ca", "c")])).starts_with("tls_client_ca"));
    for with in [&all[..0], &[("ops_listen", "127.0.0.1:0")], &tls] {
        let given = [with, &[("ops_client_ca", "c")]].concat();
        assert!(problem(load(None, &[], &given)).starts_with("ops_client_ca"), "{with:?}");
    }
    assert!(problem(with(&[("advertise", "http://h:1")])).contains("must begin with https://"));
    assert!(problem(load(None, &[], &[("tls_ca", "")])).contains("path of a file"));
    assert!(problem(load(None, &[], &[("open_services", "health,admin")])).contains("health and reflection"));
    assert_eq!(load(None, &[], &[("open_services", "")]).expect("none").security.open_services, []);
    assert_eq!(Config::default().security.open_services, [OpenService::Health]);
    let etcd = |url: &str, more: &[(&'static str, &'static str)]| {
        let store = [("store", url), ("objects", "o")];
        let error = load(None, &[], &[&store[..], more].concat()).err();
        error.map(|error| error.0[0].to_string()).unwrap_or_default()
    };
    if cfg!(feature = "etcd") {
        assert_eq!(etcd("etcd:https://a:1", &[("etcd_ca", "c")]), "");
        assert!(etcd("etcd:https://a:1", &[]).starts_with("etcd_ca: is required"));
        let with = [("etcd_ca", "c"), ("etcd_user", "u")];
        assert!(etcd("etcd:https://a:1", &with).starts_with("etcd_password_file: is missing"));
        assert!(
            etcd("etcd:https://a:1", &[("etcd_ca", "c"), ("etcd_key", "k")])
                .starts_with("etcd_cert: is missing")
        );
        assert!(etcd("etcd:http://a:1", &[("etcd_ca", "c")]).contains("needs https://"));
    }
    assert!(problem(load(None, &[], &[("etcd_ca", "c")])).contains("only for an etcd store"));
}

#[test]
fn stores_are_checked() {
    for store in ["embedded:", "etcd:", "etcd:a", "etcd:http://a:1/x"] {
        let error = load(None, &[], &[("store", store), ("objects", "/o")]).expect_err("refused");
        assert!(error.0.iter().all(|problem| problem.field == "store"), "{error}");
    }
    let text = problem(load(None, &[], &[("session_ttl", "5s")]));
    assert!(text.contains("only for an etcd store"), "{text}");
    let etcd = |prefix: &str, session_ttl, call_timeout, objects: Option<&str>| Config {
        store: StoreConfig::Etcd {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            prefix: prefix.into(),
            session_ttl: Duration::from_millis(session_ttl),
            call_timeout: Duration::from_millis(call_timeout),
        },
        objects: objects.map(PathBuf::from),
        ..Config::default()
    };
    let found = |config: Config| match config.check() {
        Ok(()) => vec![],
        Err(error) => error.0.into_iter().map(|p| p.field).filter(|field| field != "store").collect(),
    };
    let none: [&str; 0] = [];
    assert_eq!(found(etcd("/a/", 1000, 100, Some("o"))), none);
    assert_eq!(found(etcd("/a/", 600_000, 60_000, Some("o"))), none);
    assert_eq!(found(etcd("/a/", 999, 99, Some("o"))), ["session_ttl", "call_timeout"]);
    assert_eq!(found(etcd("/a/", 600_001, 60_001, Some("o"))), ["session_ttl", "call_timeout"]);
    assert_eq!(found(etcd("/a/", 5000, 5000, None)), ["objects"]);
    assert_eq!(found(etcd("/a/", 5000, 5000, Some(""))), ["objects"]);
    for prefix in ["", "/", "//", "a/", "/a"] {
        assert_eq!(found(etcd(prefix, 5000, 5000, Some("o"))), ["prefix"], "{prefix}");
    }
}

#[test]
#[cfg(not(feature = "etcd"))]
fn etcd_in_a_build_without_it_is_said() {
    let text = problem(load(None, &[], &[("store", "etcd:http://a:1"), ("objects", "/o")]));
    assert!(text.contains("this build has no etcd store"), "{text}");
}

#[test]
fn a_lease_that_ends_before_a_take_over_is_hinted_at() {
    let config = |lease_ttl, session_ttl| {
        let endpoints = vec!["http://127.0.0.1:2379".to_owned()];
        let (prefix, call_timeout) = (DEFAULT_PREFIX.to_owned(), DEFAULT_CALL_TIMEOUT);
        let session_ttl = Duration::from_millis(session_ttl);
        Config {
            store: StoreConfig::Etcd { endpoints, prefix, session_ttl, call_timeout },
            lease_ttl: Duration::from_millis(lease_ttl),
            heartbeat_interval: Some(Duration::from_secs(1)),
            ..Config::default()
        }
    };
    assert_eq!(config(7000, 5000).hint(), None);
    let hint = config(6999, 5000).hint().expect("a millisecond too short");
    assert!(hint.contains("lease_ttl is 6.999s") && hint.contains("(7s)"), "{hint}");
    let alone = Config { lease_ttl: Duration::from_millis(200), ..Config::default() };
    assert_eq!(alone.hint(), None, "nobody takes over");
    let defaults = Config { heartbeat_interval: None, ..config(10_000, 5000) };
    assert_eq!(defaults.hint(), None);
}

/// A third of those of a worker that holds leases, and no fewer than its silence allows.
#[test]
fn idle_workers_send_a_third_of_the_heartbeats() {
    let idle = |interval: u64| {
        let heartbeat_interval = Some(Duration::from_millis(interval));
        Config { lease_ttl: Duration::from_secs(9), heartbeat_interval, ..Config::default() }.idle_heartbeat()
    };
    let ms = Duration::from_millis;
    assert_eq!([20, 1000, 2250, 3000].map(idle), [ms(60), ms(3000), ms(5850), ms(5850)]);
}
