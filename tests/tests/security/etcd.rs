//! etcd with TLS, client certificates, and users.

use std::process::Stdio;
use tokio::process::{Child, Command};
use tranche_coordinator::store::Store as _;
use tranche_coordinator::store::etcd::{Etcd, EtcdConfig, EtcdTls, EtcdUser};
use tranche_tests::etcd::{free_port, tool};
use tranche_tests::{Pki, eventually};

struct Secured {
    pki: Pki,
    endpoint: String,
    _dir: tempfile::TempDir,
    _process: Child,
}

impl Secured {
    fn start() -> Self {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().expect("a folder"));
        pki.issue("root", &["dns:client"]);
        let endpoint = format!("https://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut command = Command::new(tool("etcd"));
        command.arg("--data-dir").arg(dir.path()).args(["--log-level", "error"]);
        command.args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"]);
        command.arg("--cert-file").arg(pki.path("server.pem")).arg("--key-file").arg(pki.path("server.key"));
        command.arg("--trusted-ca-file").arg(pki.path("ca.pem"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let process = command.spawn().expect("etcd starts");
        Self { pki, endpoint, _dir: dir, _process: process }
    }

    fn config(&self, certificate: Option<&str>, user: Option<&str>) -> EtcdConfig {
        let read = |name: &str| std::fs::read(self.pki.path(name)).expect("written");
        let mut config = EtcdConfig::new([self.endpoint.clone()]);
        let identity = certificate.map(|name| (read(&format!("{name}.pem")), read(&format!("{name}.key"))));
        config.tls = Some(EtcdTls { ca: read("ca.pem"), identity });
        config.user = user.map(|password| EtcdUser { name: "root".into(), password: password.into() });
        config
    }

    async fn ctl(&self, words: &[&str]) {
        let mut command = Command::new(tool("etcdctl"));
        command.args(["--endpoints", &self.endpoint]).arg("--cacert").arg(self.pki.path("ca.pem"));
        command.arg("--cert").arg(self.pki.path("root.pem")).arg("--key").arg(self.pki.path("root.key"));
        let ran = command.args(words).output().await.expect("etcdctl runs");
        assert!(ran.status.success(), "{words:?}: {ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_reached_with_a_certificate_and_a_password_and_not_without() {
    let etcd = Secured::start();
    let store =
        eventually("etcd answers", async || Etcd::connect(etcd.config(Some("root"), None)).await.ok()).await;
    store.get("x").await.expect("answered");
    Etcd::connect(etcd.config(None, None)).await.expect_err("no certificate");
    let other = Pki::new();
    let mut distrusts = etcd.config(Some("root"), None);
    distrusts.tls.as_mut().expect("given").ca = std::fs::read(other.path("ca.pem")).expect("written");
    Etcd::connect(distrusts).await.expect_err("another CA");
    etcd.ctl(&["user", "add", "root:right-password"]).await;
    etcd.ctl(&["user", "grant-role", "root", "root"]).await;
    etcd.ctl(&["auth", "enable"]).await;
    let error = Etcd::connect(etcd.config(Some("root"), Some("wrong-password"))).await.expect_err("refused");
    assert!(!error.to_string().contains("wrong-password"), "{error}");
    let store = Etcd::connect(etcd.config(Some("root"), Some("right-password"))).await.expect("let in");
    store.get("x").await.expect("answered");
}
