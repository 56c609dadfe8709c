use super::*;
use crate::identity::rights::{allowed, holders, is_passed_on};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tranche_proto::Rpc;
use tranche_tls::{PeerCertificate, San};

fn hash(token: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex = |mut text: String, byte: &u8| {
        write!(text, "{byte:02x}").expect("memory");
        text
    };
    hash.as_ref().iter().fold(String::new(), hex)
}

fn load(dir: &TempDir, text: &str) -> Result<Book, String> {
    let path = dir.path().join("identities.toml");
    std::fs::write(&path, text).expect("written");
    Book::load(&path).map(|loaded| loaded.value).map_err(|error| error.to_string())
}

fn entry(name: &str, credential: &str, namespace: &str, roles: &str) -> String {
    format!("[[identity]]\nname = {name:?}\n{credential}\nnamespace = {namespace:?}\nroles = [{roles}]\n")
}

fn token(token: &str) -> String {
    format!("token_sha256 = {:?}", hash(token))
}

fn name(book: &Book, credential: Credential<'_>) -> Result<String, Refused> {
    book.who(credential, SystemTime::now()).map(|granted| granted.identity.name.to_string())
}

#[test]
fn a_token_names_whom_the_file_says_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let upper = hash("other").to_uppercase();
    let text = entry("ci", &token("secret"), "team-a", "'submitter', 'reader'")
        + &entry("ops", &format!("token_sha256 = {upper:?}"), "*", "'admin'");
    let book = load(&dir, &text).expect("right");
    let granted = book.who(Credential::Token("secret"), SystemTime::now()).expect("known");
    assert_eq!((&*granted.identity.name, granted.expires), ("ci", None));
    assert!(granted.identity.sees("team-a") && !granted.identity.sees("team-b"));
    assert_eq!(granted.identity.roles.to_string(), "submitter,reader");
    assert_eq!(name(&book, Credential::Token("other")), Ok("ops".into()));
    for wrong in ["", "Secret", "secret ", "secre", "secrett", &hash("secret")] {
        assert_eq!(name(&book, Credential::Token(wrong)), Err(Refused::UnknownToken), "{wrong:?}");
    }
}

#[test]
fn every_role_but_a_coordinator_s_is_held_in_one_namespace_or_in_all() {
    let dir = tempfile::tempdir().expect("a folder");
    for role in Role::ALL {
        let roles = format!("{:?}", role.name());
        let of = |namespace| load(&dir, &entry("a", &token("t"), namespace, &roles));
        of("*").expect("right");
        assert_eq!(of("team-a").is_ok(), role != Role::Replica, "{role:?}");
    }
}

#[test]
fn a_name_of_a_certificate_is_compared_whole_and_its_place_does_not_matter() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = entry("a", "certificate_san = 'spiffe://corp/ns/a'", "team-a", "'reader'")
        + &entry("b", "certificate_san = 'spiffe://corp/ns/b'", "team-b", "'reader'")
        + &entry("w", "certificate_san = 'dns:Worker.svc'", "*", "'worker'");
    let book = load(&dir, &text).expect("right");
    let uri = |text: &str| San::Uri(text.into());
    let who = |sans: &[San]| {
        let certificate = PeerCertificate { sans: sans.to_vec(), expires: SystemTime::now() };
        name(&book, Credential::Certificate(&certificate))
    };
    let mut sans = vec![uri("spiffe://corp/x"), uri("spiffe://corp/ns/a"), San::Dns("h".into())];
    for _ in 0..3 {
        assert_eq!(who(&sans), Ok("a".into()));
        sans.rotate_left(1);
    }
    assert_eq!(who(&[San::Dns("worker.svc".into())]), Ok("w".into()));
    for both in [["spiffe://corp/ns/a", "spiffe://corp/ns/b"], ["spiffe://corp/ns/b", "spiffe://corp/ns/a"]] {
        assert_eq!(who(&both.map(uri)), Err(Refused::Ambiguous));
    }
    for nobody in [
        vec![],
        vec![uri("spiffe://corp/ns/a/b")],
        vec![uri("spiffe://corp/ns/")],
        vec![uri("spiffe://corp/ns/A")],
        vec![uri("dns:worker.svc")],
        vec![San::Dns("spiffe://corp/ns/a".into())],
        vec![San::Dns("x.worker.svc".into())],
        vec![San::Dns("*.svc".into())],
    ] {
        assert_eq!(who(&nobody), Err(Refused::UnknownCertificate), "{nobody:?}");
    }
}

#[test]
fn a_file_that_is_not_right_says_where_and_never_what_is_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = entry("a", &token("t"), "n", "'reader'");
    for (text, says) in [
        (String::new(), "names nobody"),
        ("identity = 1".to_owned(), "identities.toml"),
        (good.clone() + "extra = 1", "extra"),
        (good.clone() + &good, "identity 2 (a): the name is there twice"),
        (good.clone() + &entry("b", &token("t"), "n", "'reader'"), "the token is another identity's"),
        (entry("a", "", "n", "'reader'"), "needs one of token_sha256 and certificate_san"),
        (entry("a", &(token("t") + "\ncertificate_san = 'x://y'"), "n", "'reader'"), "needs one of"),
        (entry("a", "token_sha256 = 'abc'", "n", "'reader'"), "64 hex digits"),
        (entry("a", &format!("token_sha256 = '{}é'", &hash("t")[..62]), "n", "'reader'"), "64 hex digits"),
        (entry("a", "certificate_san = 'CN=a'", "n", "'reader'"), "must be a URI"),
        (entry("a", "certificate_san = 'dns:'", "n", "'reader'"), "must be a URI"),
        (entry("a", &token("t"), "N", "'reader'"), "is no namespace"),
        (entry("a", &token("t"), "", "'reader'"), "is no namespace"),
        (entry("a", &token("t"), "a/b", "'reader'"), "is no namespace"),
        (entry("a", &token("t"), "n", ""), "roles is empty"),
        (entry("a", &token("t"), "n", "'root'"), "\"root\" is no role; there are submitter, reader"),
        (entry("a", &token("t"), "-", "'reader'"), "is no namespace"),
        (entry("a", &token("t"), "n", "'replica'"), "whole cluster"),
        (entry("a/b", &token("t"), "n", "'reader'"), "name \"a/b\""),
        (entry("", &token("t"), "n", "'reader'"), "name \"\""),
        (entry("jwt:a", &token("t"), "n", "'reader'"), "those of JWTs"),
        (entry(&"x".repeat(MAX_NAME + 1), &token("t"), "n", "'reader'"), "must be 1 to 128"),
        ("[jwt]\njwks = 'x'\nissuer = ''\naudience = 'a'".to_owned(), "must not be empty"),
        ("[jwt]\njwks = 'none.json'\nissuer = 'i'\naudience = 'a'".to_owned(), "none.json"),
    ] {
        let error = load(&dir, &text).expect_err(says);
        assert!(error.contains(says) && !error.contains(&hash("t")), "{error}");
    }
    load(&dir, &entry(&"x".repeat(MAX_NAME), &token("t"), "n", "'reader'")).expect("the longest name");
    let missing = Book::load(Path::new("/nonexistent/identities.toml")).map(|_| ()).expect_err("not there");
    assert!(missing.to_string().contains("/nonexistent/identities.toml"));
}

/// An issuer with one Ed25519 key, and tokens that are wrong in every way.
struct Issuer {
    dir: TempDir,
    pair: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("a key");
        Self { dir: tempfile::tempdir().expect("a folder"), pair }
    }

    fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": BASE64.encode(self.pair.public_key())})
    }

    fn book(&self, keys: &Value) -> Result<Book, String> {
        std::fs::write(self.dir.path().join("jwks.json"), json!({"keys": keys}).to_string())
            .expect("written");
        load(&self.dir, "[jwt]\njwks = 'jwks.json'\nissuer = 'https://issuer'\naudience = 'tranche'")
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self.pair.sign(text.as_bytes());
        format!("{text}.{}", BASE64.encode(signature))
    }
}

fn seconds(ahead: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("this age") + ahead
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer", "aud": "tranche", "sub": "repo:org/x", "exp": seconds(60),
        "tranche_namespace": "team-a", "tranche_roles": ["submitter", "reader", "of-others"],
    })
}

fn header() -> Value {
    json!({"alg": "EdDSA", "kid": "k1", "typ": "JWT"})
}

#[test]
fn a_jwt_names_its_subject_until_it_expires() {
    let issuer = Issuer::new();
    let book = issuer.book(&json!([issuer.jwk()])).expect("right");
    let granted = |claims: &Value| {
        let token = issuer.token(&header(), claims);
        book.who(Credential::Token(&token), SystemTime::now())
    };
    let found = granted(&claims()).expect("right");
    assert_eq!(&*found.identity.name, "jwt:repo:org%2Fx");
    assert_eq!(found.identity.scope, Scope::Namespace("team-a".into()));
    assert_eq!(found.identity.roles.to_string(), "submitter,reader");
    let left = found.expires.expect("it ends").duration_since(SystemTime::now()).expect("later");
    assert!(left > Duration::from_secs(30) && left <= Duration::from_mins(1), "{left:?}");
    let mut other = claims();
    other["aud"] = json!(["x", "tranche"]);
    other["tranche_roles"] = json!("reader  worker");
    other["tranche_namespace"] = json!("*");
    assert_eq!(granted(&other).expect("right").identity.roles.to_string(), "reader,worker");
    // With one key it needn't be named.
    let unnamed = issuer.token(&json!({"alg": "EdDSA"}), &claims());
    assert!(book.who(Credential::Token(&unnamed), SystemTime::now()).is_ok());
}

#[test]
fn a_jwt_that_is_wrong_in_any_way_names_nobody() {
    let issuer = Issuer::new();
    let other = Issuer::new();
    let book = issuer.book(&json!([issuer.jwk()])).expect("right");
    let refused = |token: &str| match book.who(Credential::Token(token), SystemTime::now()) {
        Err(Refused::Jwt(why)) => why,
        other => panic!("{other:?}"),
    };
    let public = issuer.pair.public_key().as_ref().to_vec();
    let body = |alg: &str| {
        let header = json!({"alg": alg, "kid": "k1"});
        format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims().to_string()))
    };
    // No signature at all.
    for alg in ["none", "None", "NONE", ""] {
        refused(&format!("{}.", body(alg)));
        refused(&format!("{}.{}", body(alg), BASE64.encode(issuer.pair.sign(body(alg).as_bytes()))));
    }
    // A MAC under the public key, which everybody has.
    for (alg, digest) in [("HS256", ring::hmac::HMAC_SHA256), ("HS512", ring::hmac::HMAC_SHA512)] {
        let mac = ring::hmac::sign(&ring::hmac::Key::new(digest, &public), body(alg).as_bytes());
        let why = refused(&format!("{}.{}", body(alg), BASE64.encode(mac)));
        assert_eq!(why, "its algorithm isn't that of its key");
    }
    for alg in ["RS256", "ES256"] {
        let signature = BASE64.encode(issuer.pair.sign(body(alg).as_bytes()));
        assert_eq!(refused(&format!("{}.{signature}", body(alg))), "its algorithm isn't that of its key");
    }
    // Another's key, also when the token brings it along.
    assert_eq!(refused(&other.token(&header(), &claims())), "its signature is wrong");
    let along = json!({"alg": "EdDSA", "kid": "k1", "jwk": other.jwk(), "jku": "https://other/jwks"});
    assert_eq!(refused(&other.token(&along, &claims())), "its signature is wrong");
    assert_eq!(
        refused(&issuer.token(&json!({"alg": "EdDSA", "kid": "k2"}), &claims())),
        "its key (kid) isn't known"
    );
    let mut forged: Vec<String> = issuer.token(&header(), &claims()).split('.').map(str::to_owned).collect();
    let mut more = claims();
    more["tranche_roles"] = json!(["admin"]);
    forged[1] = BASE64.encode(more.to_string());
    assert_eq!(refused(&forged.join(".")), "its signature is wrong");
    let wrong: &[(&str, Value, &str)] = &[
        ("iss", json!("https://other"), "issuer"),
        ("iss", json!(["https://issuer"]), ""),
        ("iss", Value::Null, ""),
        ("aud", json!("other"), "audience"),
        ("aud", json!(["other"]), "audience"),
        ("aud", json!([]), ""),
        ("aud", Value::Null, ""),
        ("exp", json!(seconds(-1)), "expired"),
        ("exp", json!(seconds(60).to_string()), ""),
        ("exp", json!(-1), ""),
        ("exp", json!(1e300), ""),
        ("exp", Value::Null, ""),
        ("nbf", json!(seconds(60)), "isn't valid yet"),
        ("nbf", json!("0"), ""),
        ("sub", json!(""), "subject"),
        ("sub", json!("x".repeat(MAX_NAME)), "name of more than"),
        ("sub", Value::Null, ""),
        ("tranche_namespace", json!("Team"), "is no namespace"),
        ("tranche_namespace", json!(["team-a"]), "no namespace"),
        ("tranche_namespace", Value::Null, "no namespace"),
        ("tranche_roles", json!([]), "roles is empty"),
        ("tranche_roles", json!(["of-others"]), "roles is empty"),
        ("tranche_roles", json!(["replica"]), "whole cluster"),
        ("tranche_roles", Value::Null, "roles is empty"),
    ];
    for (claim, value, says) in wrong {
        let mut claims = claims();
        if value.is_null() {
            claims.as_object_mut().expect("an object").remove(*claim);
        } else {
            claims[claim] = value.clone();
        }
        let why = refused(&issuer.token(&header(), &claims));
        assert!(why.contains(says), "{claim} = {value}: {why}");
    }
    for text in ["..", "a.b.c", &format!("{}.", "x.".repeat(2)), &("x".repeat(8 * 1024) + ".y.z")] {
        let _ = book.who(Credential::Token(text), SystemTime::now()).expect_err("no token");
    }
}

#[test]
fn only_public_keys_with_one_algorithm_are_taken() {
    let issuer = Issuer::new();
    let good = issuer.jwk();
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    for (keys, says) in [
        (json!([]), "no key for signatures"),
        (json!([with("use", json!("enc"))]), "no key for signatures"),
        (json!([{"kty": "oct", "kid": "s", "k": BASE64.encode("secret")}]), "shared secret"),
        (json!([with("alg", json!("HS256"))]), "must be RSA"),
        (json!([with("alg", json!("RS256"))]), "must be RSA"),
        (json!([good, good]), "two keys have the kid"),
    ] {
        let error = issuer.book(&keys).expect_err(says);
        assert!(error.contains(says) && error.contains("jwks.json"), "{error}");
    }
    issuer.book(&json!([with("alg", json!("EdDSA")), with("kid", json!("k2"))])).expect("right");
}

#[test]
fn the_table_of_rights_is_the_one_in_the_documents() {
    let document = include_str!("../../../docs/security.md");
    let mark = |yes: bool| if yes { "yes" } else { "" };
    for rpc in Rpc::ALL {
        let mut row = format!("| `{}` |", rpc.name());
        for role in Role::ALL {
            let cell = match role {
                Role::Replica => mark(is_passed_on(rpc)).replace("yes", "for others"),
                role => mark(holders(rpc).contains(&role)).to_owned(),
            };
            let space = if cell.is_empty() { "" } else { " " };
            write!(row, "{space}{cell} |").expect("memory");
        }
        assert!(document.lines().any(|line| line == row), "docs/security.md lacks this line:\n{row}");
    }
    let rows = document.lines().filter(|line| line.starts_with("| `") && line.contains("Service.")).count();
    assert_eq!(rows, Rpc::ALL.len(), "docs/security.md has lines of RPCs that aren't there");
}

#[test]
fn nobody_holds_a_right_by_having_none() {
    for rpc in Rpc::ALL {
        assert!(!holders(rpc).is_empty() && !allowed(Roles::default(), rpc), "{rpc:?}");
        assert!(!holders(rpc).contains(&Role::Replica), "{rpc:?}: a coordinator calls for others alone");
        let all: Roles = Role::ALL.into_iter().collect();
        assert!(allowed(all, rpc));
    }
}
