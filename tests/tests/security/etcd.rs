//! etcd with TLS, client certificates, and users.

use futures::TryStreamExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tranche_client::{Client, Options, v1};
use tranche_coordinator::store::etcd::{Etcd, EtcdConfig, EtcdFiles};
use tranche_coordinator::store::{Op, RangeOptions, Store as _, StoreError, Txn, WatchEvent};
use tranche_tests::cluster::batch_for;
use tranche_tests::etcd::{free_port, tool};
use tranche_tests::process::{Process, program};
use tranche_tests::wait::PATIENCE;
use tranche_tests::{Pki, eventually};

struct Secured {
    /// What clients have, and etcd when it starts.
    pki: Pki,
    endpoint: String,
    peer: String,
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Secured {
    fn start() -> Self {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().expect("a folder"));
        pki.issue("root", &["dns:client"]);
        let endpoint = format!("https://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut etcd = Self { pki, endpoint, peer, dir, process: None };
        etcd.spawn(&etcd.pki.text(""));
        etcd
    }

    /// Starts the server with the certificates of a folder.
    fn spawn(&mut self, folder: &str) {
        let (endpoint, peer) = (&self.endpoint, &self.peer);
        let mut command = Command::new(tool("etcd"));
        command.arg("--data-dir").arg(self.dir.path().join("data")).args(["--log-level", "error"]);
        command.args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"]);
        let file = |name: &str| format!("{folder}/{name}");
        command.args(["--cert-file", &file("server.pem"), "--key-file", &file("server.key")]);
        command.args(["--trusted-ca-file", &file("ca.pem")]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.process = Some(command.spawn().expect("etcd starts"));
    }

    /// Kills it, and starts it again with the certificates of this CA.
    async fn restart(&mut self, with: &Pki) {
        self.process.take().expect("running").kill().await.expect("killed");
        self.spawn(&with.text(""));
    }

    /// Clients have the certificates of this CA from now on.
    fn give(&self, from: &Pki) {
        for file in ["ca.pem", "root.pem", "root.key"] {
            self.pki.write(file, std::fs::read(from.path(file)).expect("issued"));
        }
    }

    fn files(&self, certificate: Option<&str>, password: Option<&str>) -> EtcdFiles {
        let pair =
            |name: &str| (self.pki.path(&format!("{name}.pem")), self.pki.path(&format!("{name}.key")));
        let user = password.map(|password| ("root".to_owned(), self.pki.write("password", password)));
        EtcdFiles { ca: Some(self.pki.path("ca.pem")), certificate: certificate.map(pair), user }
    }

    fn config(&self, files: EtcdFiles) -> EtcdConfig {
        EtcdConfig { files, ..EtcdConfig::new([self.endpoint.clone()]) }
    }

    async fn connect(&self, files: EtcdFiles) -> Result<Arc<Etcd>, StoreError> {
        Etcd::connect(self.config(files)).await
    }

    async fn ctl(&self, words: &[&str], input: &str) {
        let mut command = Command::new(tool("etcdctl"));
        command.args(["--endpoints", &self.endpoint]).arg("--cacert").arg(self.pki.path("ca.pem"));
        command.arg("--cert").arg(self.pki.path("root.pem")).arg("--key").arg(self.pki.path("root.key"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().expect("etcdctl runs");
        running.stdin.take().expect("piped").write_all(input.as_bytes()).await.expect("read");
        let ran = running.wait_with_output().await.expect("etcdctl runs");
        assert!(ran.status.success(), "{words:?}: {ran:?}");
    }

    /// From here on only root is let in, with this password.
    async fn enable_users(&self, password: &str) {
        self.ctl(&["user", "add", &format!("root:{password}")], "").await;
        self.ctl(&["user", "grant-role", "root", "root"], "").await;
        self.ctl(&["auth", "enable"], "").await;
    }

    async fn change_password(&self, old: &str, new: &str) {
        let user = format!("root:{old}");
        self.ctl(&["--user", &user, "user", "passwd", "root", "--interactive=false"], &format!("{new}\n"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_reached_with_a_certificate_and_a_password_and_not_without() {
    let etcd = Secured::start();
    let files = |password| etcd.files(Some("root"), password);
    let store = eventually("etcd answers", async || etcd.connect(files(None)).await.ok()).await;
    store.get("x").await.expect("answered");
    etcd.connect(etcd.files(None, None)).await.expect_err("no certificate");
    let other = Pki::new();
    let distrusts = EtcdFiles { ca: Some(other.path("ca.pem")), ..files(None) };
    etcd.connect(distrusts).await.expect_err("another CA");
    etcd.enable_users("right-password").await;
    let error = etcd.connect(files(Some("wrong-password"))).await.expect_err("refused");
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert!(!error.to_string().contains("wrong-password"), "{error}");
    let error =
        etcd.connect(EtcdFiles { ca: Some("/none".into()), ..files(None) }).await.expect_err("no file");
    assert!(matches!(&error, StoreError::Rejected(text) if text.contains("/none")), "{error}");
    let store = etcd.connect(files(Some("right-password"))).await.expect("let in");
    store.get("x").await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_used_whichever_changes_first() {
    let etcd = Secured::start();
    eventually("etcd answers", async || etcd.connect(etcd.files(Some("root"), None)).await.ok()).await;
    etcd.enable_users("first").await;
    let store = etcd.connect(etcd.files(Some("root"), Some("first"))).await.expect("let in");
    let now = store.range("k/", RangeOptions::default()).await.expect("read").revision;
    let mut watch = store.watch("k/", now).await.expect("watched");
    let answers = async || store.get("x").await.is_ok().then_some(());
    // etcd first: until the file changes nothing is answered, and nothing says that it never will be.
    etcd.change_password("first", "second").await;
    let error = eventually("the token isn't taken any more", async || store.get("x").await.err()).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(!error.to_string().contains("first"), "{error}");
    etcd.pki.write("password", "second\n");
    eventually("the new password is used", answers).await;
    // The file first: what was there before is used until etcd knows it, too.
    etcd.pki.write("password", "third");
    store.get("x").await.expect("answered");
    etcd.change_password("second", "third").await;
    let op = Op::Put { key: "k/1".into(), value: "x".into(), session: None };
    let put = Txn { compares: Vec::new(), ops: vec![op] };
    eventually("the newest password is used", async || store.txn(&put).await.ok()).await;
    // A watch from before goes on.
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(WatchEvent::Put(entry)) = watch.recv().await {
                return entry.key;
            }
        }
    });
    assert_eq!(told.await.expect("told"), "k/1");
}

/// The process, from its sessions to its watches.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_goes_on_with_new_certificates_of_a_new_ca() {
    let mut etcd = Secured::start();
    eventually("etcd answers", async || etcd.connect(etcd.files(Some("root"), None)).await.ok()).await;
    let data = etcd.dir.path().join("objects").display().to_string();
    let arguments: Vec<String> = [
        ("--listen", "127.0.0.1:0".to_owned()),
        ("--store", format!("etcd:{}", etcd.endpoint)),
        ("--objects", data),
        ("--etcd-ca", etcd.pki.text("ca.pem")),
        ("--etcd-cert", etcd.pki.text("root.pem")),
        ("--etcd-key", etcd.pki.text("root.key")),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    let mut coordinator = Process::spawn("c", &program("tranche-coordinator"), &arguments, etcd.dir.path());
    let address = coordinator.said("listening on ").await.expect("started");
    let options = Options { retry_for: Duration::ZERO, ..Options::default() };
    let client = Client::connect_lazy(format!("http://{address}"), options).expect("a URL");
    let create = async || {
        let request = v1::CreateBatchRequest { batch: Some(batch_for("noop")), ..Default::default() };
        client.create(request).await.map(|batch| batch.name)
    };
    let mut made = vec![create().await.expect("made")];

    // First the files, then etcd: until then it is called as before.
    let second = Pki::new();
    second.issue("root", &["dns:client"]);
    etcd.give(&second);
    eventually("they were tried", async || {
        coordinator.log().contains("etcd can't be called with what the files hold now").then_some(())
    })
    .await;
    made.push(create().await.expect("made"));
    etcd.restart(&second).await;
    made.push(eventually("it goes on", async || create().await.ok()).await);

    // First etcd, then the files: until then it isn't reached.
    let third = Pki::new();
    third.issue("root", &["dns:client"]);
    etcd.restart(&third).await;
    eventually("it isn't reached", async || create().await.err()).await;
    etcd.give(&third);
    made.push(eventually("it goes on", async || create().await.ok()).await);

    let listed: Vec<_> = client.list(v1::ListBatchesRequest::default()).try_collect().await.expect("listed");
    for name in made {
        assert!(listed.iter().any(|batch| batch.name == name), "{name}: {listed:?}");
    }
    assert!(!coordinator.log().contains("PRIVATE KEY"));
}
