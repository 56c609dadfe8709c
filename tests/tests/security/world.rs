//! A coordinator with TLS and identities, and calls to it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http_body::Body as _;
use prost::Message;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Mutex, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Service as _, ServiceExt as _};
use tranche_client::{Client, ClientFiles, Credentials, Options};
use tranche_coordinator::Server;
use tranche_coordinator::config::{Config, Security};
use tranche_coordinator::identity::Role;
use tranche_proto::Rpc;
use tranche_tests::{Pki, eventually, sha256_hex};
use tranche_tls::Authorized;

/// Tokens of the file of identities: one for each role, and two namespaces' clients.
pub(crate) const TEAMS: [(&str, &str); 2] = [("token-of-a", "team-a"), ("token-of-b", "team-b")];

/// What coordinators of this process warned of.
struct Warnings;

static WARNINGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

impl Write for Warnings {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WARNINGS.lock().expect("nobody panics with it").write(line)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until a warning names this.
pub(crate) async fn warned(of: &str) {
    eventually(&format!("a warning of {of}"), async || {
        let said = WARNINGS.lock().expect("nobody panics with it");
        String::from_utf8_lossy(&said).contains(of).then_some(())
    })
    .await;
}

/// The token of an identity that holds this role alone.
pub(crate) fn token_of(role: Role) -> String {
    format!("token-of-{}", role.name())
}

/// The token, and name, of an identity that holds this role in one namespace.
pub(crate) fn of_team(role: Role, namespace: &str) -> String {
    format!("{}-of-{namespace}", role.name())
}

/// The file of identities.
pub(crate) fn identities() -> String {
    let mut text = String::new();
    let mut add = |name: &str, credential: String, namespace: &str, roles: &str| {
        let entry = format_args!(
            "[[identity]]\nname = {name:?}\n{credential}\nnamespace = {namespace:?}\nroles = [{roles}]"
        );
        writeln!(text, "{entry}").expect("memory");
    };
    let token = |token: &str| format!("token_sha256 = {:?}", sha256_hex(token));
    for role in Role::ALL {
        let roles = format!("{:?}", role.name());
        add(role.name(), token(&token_of(role)), "*", &roles);
    }
    for (secret, namespace) in TEAMS {
        add(namespace, token(secret), namespace, "'submitter', 'reader'");
    }
    for name in ["worker-1", "worker-2"] {
        add(name, token(name), "*", "'worker'");
    }
    for (_, namespace) in TEAMS {
        for role in [Role::Worker, Role::Admin] {
            let name = of_team(role, namespace);
            add(&name, token(&name), namespace, &format!("{:?}", role.name()));
        }
    }
    add("coordinators", "certificate_san = 'dns:localhost'".into(), "*", "'replica'");
    add("importer", "certificate_san = 'spiffe://corp/ns/a/importer'".into(), "team-a", "'reader'");
    text
}

/// A coordinator in this process, on a port of its own.
pub(crate) struct World {
    pub(crate) pki: Pki,
    pub(crate) url: String,
    pub(crate) issuer: Issuer,
    stop: CancellationToken,
    _running: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with another configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        static LOGS: Once = Once::new();
        LOGS.call_once(|| {
            tracing_subscriber::fmt()
                .with_env_filter("warn")
                .with_ansi(false)
                .with_writer(|| Warnings)
                .init();
        });
        let (pki, issuer) = (Pki::new(), Issuer::new());
        pki.write("jwks.json", issuer.jwks());
        let jwt = "[jwt]\njwks = 'jwks.json'\nissuer = 'https://issuer'\naudience = 'tranche'\n";
        pki.write("identities.toml", identities() + jwt);
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = Config { security: security(&pki), ..Config::embedded(dir.path().to_owned()) };
        change(&mut config);
        let (url, stop, running) = start(config).await;
        Self { pki, url, issuer, stop, _running: running, _dir: dir }
    }

    /// What a client with this token, or this certificate, brings.
    pub(crate) fn credentials(&self, token: Option<&str>, certificate: Option<&str>) -> Credentials {
        credentials(&self.pki, token, certificate)
    }

    pub(crate) fn client(&self, token: &str) -> Client {
        client(&self.url, self.credentials(Some(token), None))
    }

    pub(crate) async fn channel(&self, token: &str) -> Authorized {
        channel(&self.url, &self.credentials(Some(token), None)).await
    }

    /// A call of somebody with this token.
    pub(crate) async fn call(&self, token: &str, rpc: Rpc, message: Vec<u8>) -> (Code, String) {
        let channel = self.channel(token).await;
        told(&raw(channel, rpc.path(), message, &[]).await)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The settings of a coordinator with all of this CA.
pub(crate) fn security(pki: &Pki) -> Security {
    Security {
        tls_cert: Some(pki.path("server.pem")),
        tls_key: Some(pki.path("server.key")),
        tls_client_ca: Some(pki.path("ca.pem")),
        identities: Some(pki.path("identities.toml")),
        tls_ca: Some(pki.path("ca.pem")),
        ..Security::default()
    }
}

/// Starts a coordinator in this process.
pub(crate) async fn start(config: Config) -> (String, CancellationToken, JoinHandle<()>) {
    let server = Box::pin(Server::start(config)).await.expect("started");
    let url = format!("https://{}", server.local_addr());
    let stop = CancellationToken::new();
    let running = server.run(stop.clone());
    (url, stop, tokio::spawn(running))
}

pub(crate) fn credentials(pki: &Pki, token: Option<&str>, certificate: Option<&str>) -> Credentials {
    let token = token.map(|token| pki.write(&format!("secret-{}", sha256_hex(token)), token));
    let cert = certificate.map(|name| pki.path(&format!("{name}.pem")));
    let key = certificate.map(|name| pki.path(&format!("{name}.key")));
    let files = ClientFiles { ca: Some(pki.path("ca.pem")), cert, key, token };
    Credentials::load(files).expect("our files")
}

/// A client that tells failures at once.
pub(crate) fn client(url: &str, credentials: Credentials) -> Client {
    let options = Options { retry_for: Duration::ZERO, credentials, ..Options::default() };
    Client::connect_lazy(url, options).expect("a URL")
}

pub(crate) async fn channel(url: &str, credentials: &Credentials) -> Authorized {
    let endpoint = tranche_tls::endpoint(url).expect("a URL");
    credentials.authorized(credentials.connect(url, &endpoint).await.expect("connected"))
}

/// Sends one message, and returns how the call ended.
pub(crate) async fn raw(
    mut channel: Authorized,
    path: &str,
    message: Vec<u8>,
    headers: &[(&'static str, &str)],
) -> Status {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
    frame.extend(message);
    let mut request =
        http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Body::new(String::from_utf8(frame).expect("names are ASCII"));
    let request = request.body(body).expect("a request");
    let response = channel.ready().await.expect("connected").call(request).await.expect("answered");
    let (head, mut body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Some(trailers) = frame.expect("whole").trailers_ref() {
            return Status::from_header_map(trailers).expect("a status");
        }
    }
    panic!("no status")
}

/// Its code and reason.
pub(crate) fn told(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

/// A message whose first field is this name.
pub(crate) fn named(name: &str) -> Vec<u8> {
    tranche_client::v1::GetBatchRequest { name: name.to_owned() }.encode_to_vec()
}

/// Signs tokens.
pub(crate) struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self(Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("a key"))
    }

    fn jwks(&self) -> String {
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": BASE64.encode(self.0.public_key())}]})
            .to_string()
    }

    /// A token that lives so long.
    pub(crate) fn token(&self, namespace: &str, role: &str, lives: Duration) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let claims = json!({
            "iss": "https://issuer", "aud": "tranche", "sub": "someone", "exp": (now + lives).as_secs_f64(),
            "tranche_namespace": namespace, "tranche_roles": role,
        });
        self.sign(&json!({"alg": "EdDSA", "kid": "k"}), &claims)
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        format!("{text}.{}", BASE64.encode(self.0.sign(text.as_bytes())))
    }
}
