//! JSON web tokens (RFC 7519), verified by the keys of a file (RFC 7517).
//!
//! The key says the algorithm, never the token: a token whose header names another is refused, so neither `none` nor
//! an HMAC over a public key is ever computed. Keys in a token's header are not looked at.

use super::{Identity, MAX_NAME, Role, Roles, Scope};
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use ring::signature as rs;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest token that is looked at.
const MAX_BYTES: usize = 8 * 1024;
/// How far an issuer's clock may be ahead of ours. Nothing is added to the end of a token.
const CLOCKS: Duration = Duration::from_secs(30);
/// What names of identities from tokens begin with; no name in the file does.
pub(super) const PREFIX: &str = "jwt:";

/// How tokens are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) namespace_claim: String,
    pub(super) roles_claim: String,
}

#[derive(Debug)]
pub(super) struct Issuer {
    keys: Vec<Key>,
    rules: Rules,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    decoding: DecodingKey,
    validation: Validation,
}

/// What a token says, verified.
pub(super) struct Told {
    pub(super) identity: Identity,
    pub(super) expires: SystemTime,
}

impl Issuer {
    /// Reads a JWKS.
    pub(super) fn new(jwks: &str, rules: Rules) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_str(jwks).map_err(|error| format!("is no JWKS: {error}"))?;
        let keys = set.keys.iter().filter(|jwk| {
            // Others are for encryption.
            jwk.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature)
        });
        let keys: Vec<Key> = keys.map(|jwk| Key::new(jwk, &rules)).collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err("has no key for signatures".to_owned());
        }
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].iter().any(|other| other.id == key.id) {
                return Err(format!("two keys have the kid {:?}", key.id.as_deref().unwrap_or_default()));
            }
        }
        Ok(Self { keys, rules })
    }

    /// Verifies a token.
    pub(super) fn verify(&self, token: &str, now: SystemTime) -> Result<Told, String> {
        if token.len() > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        // A second one is no error: it is the same.
        let _ = RING.install_default();
        let header = jsonwebtoken::decode_header(token).map_err(|error| told(&error))?;
        let key = match &header.kid {
            Some(kid) => self.keys.iter().find(|key| key.id.as_ref() == Some(kid)),
            None if self.keys.len() == 1 => self.keys.first(),
            None => return Err("it names no key (kid), and there are several".to_owned()),
        };
        let key = key.ok_or("its key (kid) isn't known")?;
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &key.validation);
        self.read(&claims.map_err(|error| told(&error))?.claims, now)
    }

    /// The claims of a token whose signature is right. What decides is read here once more with its type.
    fn read(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<Told, String> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("iss") != Some(&self.rules.issuer) {
            return Err("it is of another issuer".to_owned());
        }
        let audience = match claims.get("aud") {
            Some(Value::String(one)) => *one == self.rules.audience,
            Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(&self.rules.audience)),
            _ => false,
        };
        if !audience {
            return Err("it is for another audience".to_owned());
        }
        let expires = time(claims.get("exp")).ok_or("it has no time of expiry (exp)")?;
        if expires <= now {
            return Err("it has expired".to_owned());
        }
        if claims.contains_key("nbf") && time(claims.get("nbf")).is_none_or(|from| from > now + CLOCKS) {
            return Err("it isn't valid yet (nbf)".to_owned());
        }
        let subject = text("sub").filter(|subject| !subject.is_empty()).ok_or("it has no subject (sub)")?;
        let namespace = text(&self.rules.namespace_claim)
            .ok_or_else(|| format!("it has no namespace ({})", self.rules.namespace_claim))?;
        let words: Vec<&str> = match claims.get(&self.rules.roles_claim) {
            Some(Value::String(words)) => words.split_ascii_whitespace().collect(),
            Some(Value::Array(words)) => words.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        // The issuer may know roles of others.
        let roles: Roles = words.into_iter().filter_map(|word| word.parse::<Role>().ok()).collect();
        let scope: Scope = namespace.parse()?;
        Ok(Told { identity: Identity::new(&name(subject)?, scope, roles)?, expires })
    }
}

/// A name that no other subject has.
fn name(subject: &str) -> Result<String, String> {
    let mut name = PREFIX.to_owned();
    for byte in subject.bytes() {
        if byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            write!(name, "%{byte:02X}").expect("memory");
        }
    }
    if name.len() > MAX_NAME {
        Err(format!("its subject makes a name of more than {MAX_NAME} characters"))
    } else {
        Ok(name)
    }
}

fn time(value: Option<&Value>) -> Option<SystemTime> {
    let seconds = value?.as_f64().filter(|seconds| (0.0..1e12).contains(seconds))?;
    Some(UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

/// What is said of a token that isn't right. Nothing that is in it.
fn told(error: &jsonwebtoken::errors::Error) -> String {
    let text = match error.kind() {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidAlgorithm => "its algorithm isn't that of its key",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it isn't valid yet (nbf)",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss, aud, sub",
        _ => "it is none, or its algorithm isn't taken",
    };
    text.to_owned()
}

impl Key {
    fn new(jwk: &Jwk, rules: &Rules) -> Result<Self, String> {
        let id = jwk.common.key_id.clone();
        let wrong = |what: &str| format!("key {:?}: {what}", id.as_deref().unwrap_or_default());
        let algorithm = algorithm(jwk).map_err(wrong)?;
        let decoding = DecodingKey::from_jwk(jwk).map_err(|error| wrong(&error.to_string()))?;
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&rules.issuer]);
        validation.set_audience(&[&rules.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = 0;
        // With room for another clock, below.
        validation.validate_nbf = false;
        Ok(Self { id, decoding, validation })
    }
}

/// The one algorithm of a key.
fn algorithm(jwk: &Jwk) -> Result<Algorithm, &'static str> {
    let said = jwk.common.key_algorithm;
    let own = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => match said {
            None | Some(KeyAlgorithm::RS256) => Some(Algorithm::RS256),
            Some(KeyAlgorithm::RS384) => Some(Algorithm::RS384),
            Some(KeyAlgorithm::RS512) => Some(Algorithm::RS512),
            Some(KeyAlgorithm::PS256) => Some(Algorithm::PS256),
            Some(KeyAlgorithm::PS384) => Some(Algorithm::PS384),
            Some(KeyAlgorithm::PS512) => Some(Algorithm::PS512),
            Some(_) => None,
        },
        AlgorithmParameters::EllipticCurve(params) => match (&params.curve, said) {
            (EllipticCurve::P256, None | Some(KeyAlgorithm::ES256)) => Some(Algorithm::ES256),
            (EllipticCurve::P384, None | Some(KeyAlgorithm::ES384)) => Some(Algorithm::ES384),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(params) => match (&params.curve, said) {
            (EllipticCurve::Ed25519, None | Some(KeyAlgorithm::EdDSA)) => Some(Algorithm::EdDSA),
            _ => None,
        },
        AlgorithmParameters::OctetKey(_) => return Err("is a shared secret; only public keys are taken"),
        _ => None,
    };
    own.ok_or("must be RSA (RS or PS), EC (P-256 with ES256, P-384 with ES384) or Ed25519")
}

/// The library's own providers bring another implementation of each algorithm; ring is here for TLS.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: |algorithm, key| Ok(Box::new(Ring { algorithm: *algorithm, key: key.clone() })),
    key_utils: KeyUtils::new_unimplemented(),
};

struct Ring {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let rsa: Option<&rs::RsaParameters> = match self.algorithm {
            Algorithm::RS256 => Some(&rs::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Some(&rs::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Some(&rs::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Some(&rs::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Some(&rs::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Some(&rs::RSA_PSS_2048_8192_SHA512),
            _ => None,
        };
        let curve: Option<&dyn rs::VerificationAlgorithm> = match self.algorithm {
            Algorithm::ES256 => Some(&rs::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Some(&rs::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => Some(&rs::ED25519),
            _ => None,
        };
        let right = match (self.key.kind(), rsa, curve) {
            (DecodingKeyKind::RsaModulusExponent { n, e }, Some(parameters), _) => {
                rs::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (DecodingKeyKind::SecretOrDer(key), _, Some(algorithm)) => {
                rs::UnparsedPublicKey::new(algorithm, key).verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        right.map_err(|_| signature::Error::new())
    }
}
