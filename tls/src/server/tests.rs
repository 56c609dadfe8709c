use super::*;
use crate::{ClientFiles, Credentials, San, endpoint};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use std::path::Path;
use std::time::{Instant, SystemTime};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_stream_less::listener;

const PATIENCE: Duration = Duration::from_secs(30);

mod tokio_stream_less {
    use super::*;

    /// The connections of a listener.
    pub(super) fn listener(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send {
        stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        })
    }
}

/// The server's certificate, and the connection.
type Dialled = (Vec<u8>, tokio_rustls::client::TlsStream<TcpStream>);

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("ASCII"))
}

fn names(sans: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = sans.to_vec();
    params
}

/// Writes `NAME.pem` and `NAME.key`.
fn issue(dir: &Path, name: &str, ca: &Ca, params: CertificateParams) {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, ca).expect("signed");
    std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("written");
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
}

struct World {
    dir: TempDir,
    ca: Ca,
    address: std::net::SocketAddr,
    connections: Pin<Box<dyn Stream<Item = io::Result<TlsConnection<TcpStream>>> + Send>>,
}

impl World {
    async fn new(client_required: bool) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ca = ca("ours");
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).expect("written");
        issue(
            dir.path(),
            "server",
            &ca,
            names(&[dns("localhost"), SanType::IpAddress([127, 0, 0, 1].into())]),
        );
        let files = ServerFiles {
            cert: dir.path().join("server.pem"),
            key: dir.path().join("server.key"),
            client_ca: Some(dir.path().join("ca.pem")),
            client_required,
        };
        let listening = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listening.local_addr().expect("bound");
        let connections = Box::pin(accept(listener(listening), files.start().expect("our files")));
        Self { dir, ca, address, connections }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, ca: &str, client: Option<&str>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.expect("TLS 1.3").with_root_certificates(roots(&self.path(ca)).expect("a CA"));
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (cert, key_file) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
                let chain = certificates(&cert).expect("a certificate");
                builder.with_client_auth_cert(chain, key(&key_file).expect("a key")).expect("a pair")
            }
        };
        config.alpn_protocols = vec![H2.to_vec()];
        config
    }

    /// Connects, and reads until the server says a byte, or that the handshake failed: with TLS 1.3 a client hears
    /// only then that its certificate was refused.
    fn dial(&self, ca: &str, client: Option<&str>) -> tokio::task::JoinHandle<io::Result<Dialled>> {
        let (config, address) = (self.config(ca, client), self.address);
        tokio::spawn(async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            let served = stream.get_ref().1.peer_certificates().expect("one")[0].to_vec();
            stream.read_u8().await?;
            Ok((served, stream))
        })
    }

    /// The next connection that made its handshake, which is greeted.
    async fn next(&mut self) -> TlsConnection<TcpStream> {
        let next = tokio::time::timeout(PATIENCE, self.connections.next()).await;
        let mut connection = next.expect("in time").expect("one").expect("a connection");
        connection.write_u8(1).await.expect("written");
        connection
    }

    /// What the server certificate is for a new connection.
    async fn served(&mut self) -> Vec<u8> {
        let dialled = self.dial("ca.pem", None);
        let _connection = self.next().await;
        dialled.await.expect("joined").expect("served").0
    }
}

#[tokio::test]
async fn a_client_is_who_its_certificate_names_in_any_order() {
    let mut world = World::new(true).await;
    let sans = [uri("spiffe://corp/ns/a"), dns("Importer.a.svc"), uri("dns:importer")];
    for turn in 0..3 {
        let mut sans = sans.to_vec();
        sans.rotate_left(turn);
        issue(world.dir.path(), "client", &world.ca, names(&sans));
        let dialled = world.dial("ca.pem", Some("client"));
        let certificate = world.next().await.certificate.clone().expect("one");
        let mut found = certificate.sans.clone();
        found.sort();
        let want = [
            San::Uri("dns:importer".into()),
            San::Uri("spiffe://corp/ns/a".into()),
            San::Dns("importer.a.svc".into()),
        ];
        assert_eq!(found, want);
        dialled.await.expect("joined").expect("let in");
    }
}

#[tokio::test]
async fn without_a_right_certificate_nobody_is_let_in() {
    let world = World::new(true).await;
    let other = ca("other");
    std::fs::write(world.path("other-ca.pem"), other.pem()).expect("written");
    issue(world.dir.path(), "foreign", &other, names(&[uri("spiffe://corp/ns/a")]));
    let mut expired = names(&[uri("spiffe://corp/ns/a")]);
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    issue(world.dir.path(), "expired", &world.ca, expired);
    let mut early = names(&[uri("spiffe://corp/ns/a")]);
    early.not_before = date_time_ymd(2120, 1, 1);
    early.not_after = date_time_ymd(2121, 1, 1);
    issue(world.dir.path(), "early", &world.ca, early);
    // The subject is right, and no CA says so.
    let key = KeyPair::generate().expect("a key");
    let own = names(&[uri("spiffe://corp/ns/a")]).self_signed(&key).expect("signed");
    std::fs::write(world.path("own.pem"), own.pem()).expect("written");
    std::fs::write(world.path("own.key"), key.serialize_pem()).expect("written");
    for client in [None, Some("foreign"), Some("expired"), Some("early"), Some("own")] {
        let refused = world.dial("ca.pem", client).await.expect("joined");
        refused.expect_err(client.unwrap_or("no certificate"));
    }
    // And the client doesn't believe a server of another CA.
    let error = world.dial("other-ca.pem", None).await.expect("joined").expect_err("another CA");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn new_files_are_used_and_wrong_ones_are_not() {
    let mut world = World::new(false).await;
    let first = world.served().await;
    issue(world.dir.path(), "server", &world.ca, names(&[dns("localhost")]));
    let deadline = Instant::now() + PATIENCE;
    let mut second = first.clone();
    while second == first {
        assert!(Instant::now() < deadline, "the new certificate isn't served");
        second = world.served().await;
    }
    // Neither a file that is none, nor a key of another certificate.
    let right = std::fs::read(world.path("server.key")).expect("read");
    for wrong in ["nothing", &KeyPair::generate().expect("a key").serialize_pem()] {
        std::fs::write(world.path("server.key"), wrong).expect("written");
        let until = Instant::now() + 3 * Duration::from_secs(1);
        while Instant::now() < until {
            assert_eq!(world.served().await, second);
        }
    }
    std::fs::write(world.path("server.key"), right).expect("written");
    // A CA that is added is asked next.
    let other = ca("other");
    issue(world.dir.path(), "foreign", &other, names(&[uri("spiffe://x/y")]));
    std::fs::write(world.path("ca.pem"), world.ca.pem() + &other.pem()).expect("written");
    loop {
        assert!(Instant::now() < deadline + PATIENCE, "the new CA isn't asked");
        let mut dialled = world.dial("ca.pem", Some("foreign"));
        tokio::select! {
            connection = world.next() => {
                assert_eq!(connection.certificate.as_ref().expect("one").sans, [San::Uri("spiffe://x/y".into())]);
                break;
            }
            refused = &mut dialled => drop(refused.expect("joined").expect_err("not known yet")),
        }
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let mut world = World::new(true).await;
    let mut brief = names(&[uri("spiffe://corp/ns/a")]);
    brief.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    issue(world.dir.path(), "brief", &world.ca, brief);
    let dialled = world.dial("ca.pem", Some("brief"));
    let mut connection = world.next().await;
    let (_, _client) = dialled.await.expect("joined").expect("let in");
    let read = tokio::time::timeout(PATIENCE, connection.read(&mut [0; 64])).await;
    let error = read.expect("it ends").expect_err("not by the client");
    assert!(error.to_string().contains("expired"), "{error}");
}

/// Connects, and says nothing.
async fn stuck(world: &World, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(TcpStream::connect(world.address).await.expect("connected"));
    }
    all
}

#[tokio::test]
async fn stuck_handshakes_slow_nobody_and_one_too_many_ends_the_oldest() {
    let mut world = World::new(false).await;
    let mut all = stuck(&world, MAX_HANDSHAKES - 1).await;
    world.served().await;
    for stream in &mut all {
        let quiet = stream.try_read(&mut [0; 1]).expect_err("open");
        assert_eq!(quiet.kind(), io::ErrorKind::WouldBlock);
    }
    all.extend(stuck(&world, 1).await);
    world.served().await;
    let ended = tokio::time::timeout(PATIENCE, all[0].read_u8()).await.expect("the oldest is ended");
    ended.expect_err("closed");
    let open = all[1].try_read(&mut [0; 1]).expect_err("the others aren't");
    assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time() {
    let world = World::new(false).await;
    let config = ServerFiles {
        cert: world.path("server.pem"),
        key: world.path("server.key"),
        client_ca: None,
        client_required: false,
    };
    let (mut client, server) = tokio::io::duplex(1024);
    let one = stream::iter([Ok(server)]).chain(stream::pending());
    let mut ready = Box::pin(accept(one, config.start().expect("our files")));
    let begun = tokio::time::Instant::now();
    tokio::select! {
        _ = ready.next() => panic!("nobody made a handshake"),
        closed = client.read_u8() => drop(closed.expect_err("closed")),
    }
    assert!(
        begun.elapsed() >= HANDSHAKE_TIME && begun.elapsed() < 2 * HANDSHAKE_TIME,
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn what_is_wrong_is_told_at_the_start_with_its_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let ca = ca("ours");
    issue(dir.path(), "a", &ca, names(&[]));
    issue(dir.path(), "b", &ca, names(&[]));
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("empty.pem"), "").expect("written");
    let files = |cert: &str, key: &str, client_ca: Option<&str>| ServerFiles {
        cert: path(cert),
        key: path(key),
        client_ca: client_ca.map(path),
        client_required: false,
    };
    for (files, wrong) in [
        (files("gone.pem", "a.key", None), "gone.pem"),
        (files("empty.pem", "a.key", None), "empty.pem: has no certificate"),
        (files("a.pem", "a.pem", None), "a.pem: has no private key"),
        (files("a.pem", "b.key", None), "a.pem: doesn't go with"),
        (files("a.pem", "a.key", Some("empty.pem")), "empty.pem: has no certificate"),
    ] {
        let error = files.load().expect_err(wrong).to_string();
        assert!(error.contains(wrong), "{error}");
    }
    let client = |files| Credentials::load(files).expect_err("wrong").to_string();
    let none = ClientFiles::default();
    assert!(client(ClientFiles { cert: Some(path("a.pem")), ..none.clone() }).contains("without a key"));
    assert!(
        client(ClientFiles { key: Some(path("a.key")), ..none.clone() }).contains("without a certificate")
    );
    assert!(
        client(ClientFiles { ca: Some(path("empty.pem")), ..none.clone() }).contains("has no certificate")
    );
    for token in ["", " \n", "a b", "a\u{e9}", &"x".repeat(8 * 1024 + 1)] {
        std::fs::write(path("token"), token).expect("written");
        let error = client(ClientFiles { token: Some(path("token")), ..none.clone() });
        assert!(error.contains("visible ASCII") && (token.is_empty() || !error.contains(token)), "{error}");
    }
    std::fs::write(path("token"), "x".repeat(8 * 1024)).expect("written");
    let secret = Credentials::load(ClientFiles { token: Some(path("token")), ..none }).expect("the longest");
    assert!(!format!("{secret:?}").contains("xxx"));
    for url in ["https://h:1", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
        secret.check(url).expect(url);
    }
    assert!(secret.check("http://h:1").expect_err("clear text").to_string().contains("https"));
    for url in ["", "h:1", "ftp://h:1", "https://", "http://"] {
        endpoint(url).expect_err(url);
    }
}

#[test]
fn a_client_uses_new_files_and_keeps_the_old_ones_when_they_are_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let ca = ca("ours");
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| {
        std::fs::write(path("new"), text).expect("written");
        std::fs::rename(path("new"), path(name)).expect("renamed");
    };
    write("ca.pem", &ca.pem());
    write("token", "first\n");
    issue(dir.path(), "a", &ca, names(&[]));
    let files = ClientFiles {
        ca: Some(path("ca.pem")),
        cert: Some(path("a.pem")),
        key: Some(path("a.key")),
        token: Some(path("token")),
    };
    let credentials = Credentials::load(files).expect("right");
    let first = credentials.config().expect("right");
    assert!(Arc::ptr_eq(&first, &credentials.config().expect("right")), "nothing changed");
    let key = std::fs::read_to_string(path("a.key")).expect("read");
    write("a.key", "no key");
    assert!(Arc::ptr_eq(&first, &credentials.config().expect("the old one")));
    write("a.key", &key);
    let second = credentials.config().expect("right");
    assert!(!Arc::ptr_eq(&first, &second), "made anew");
    // The token is looked at once a second.
    let until = |wanted: &str| {
        let deadline = Instant::now() + PATIENCE;
        while credentials.bearer().expect("there") != wanted {
            assert!(Instant::now() < deadline, "the token isn't {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("Bearer first");
    write("token", "");
    write("token", "second");
    until("Bearer second");
    assert!(credentials.bearer().expect("there").is_sensitive());
}
