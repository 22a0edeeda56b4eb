//! Signatures: `Grip-Sig`, by which a backend knows the gateway, and the bearer tokens of publishers.
//!
//! Both are JSON Web Tokens (RFC 7519) in the compact form of RFC 7515 with HS256, ES256 or RS256 (RFC 7518 §3). A key
//! has one algorithm, and a token that names another is refused whatever it is signed with, so that no public key can
//! be used as a secret and nothing unsigned passes. The time and the randomness are arguments.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SecureRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{self as ring_signature, EcdsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// How long a `Grip-Sig` is valid, in seconds: GRIP's hour.
pub const VALID_SECS: u64 = 3_600;

/// By how much two clocks may differ when a token is verified, in seconds.
pub const LEEWAY_SECS: u64 = 30;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8_192;

/// What a symmetric key begins with where it is base64.
const BASE64_PREFIX: &[u8] = b"base64:";

/// What a key in PEM has in it. RFC 7468 §2.
const PEM: &[u8] = b"-----BEGIN ";

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is empty.
    #[error("key is empty")]
    Empty,
    /// What stands behind `base64:` is no base64.
    #[error("key is not base64 behind `base64:`")]
    Base64,
    /// It is PEM, and no key that is needed here: PKCS #8 or PKCS #1 to sign, a public key to verify.
    #[error("PEM has no private key in PKCS #8 or PKCS #1 where one signs, or no public key where one verifies")]
    Pem,
    /// An EC key in the form of SEC 1.
    #[error("`EC PRIVATE KEY` is not taken: convert it with `openssl pkcs8 -topk8 -nocrypt`")]
    Sec1,
    /// It is neither an EC key on P-256 nor an RSA key of 2,048 to 8,192 bits.
    #[error("key is neither EC on P-256 nor RSA of 2,048 to 8,192 bits")]
    Unsupported,
}

/// The algorithms of tokens. RFC 7518 §3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

impl Algorithm {
    /// Its name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// A key that signs.
pub struct SigningKey(Signing);

enum Signing {
    Secret(hmac::Key),
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// A key that verifies.
pub struct VerifyingKey(Verifying);

enum Verifying {
    Secret(hmac::Key),
    /// A point on P-256, uncompressed.
    Ec(Vec<u8>),
    /// An `RSAPublicKey` in DER.
    Rsa(Vec<u8>),
}

/// The signature could not be made: the system has no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token cannot be signed")]
pub struct SignError;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is no token: not three parts, no base64url, no JSON, or longer than [`MAX_TOKEN_BYTES`].
    #[error("token is malformed")]
    Malformed,
    /// Its header names another algorithm than the key's.
    #[error("token has another algorithm than the key")]
    Algorithm,
    /// Its header says that something must be understood which is not. RFC 7515 §4.1.11.
    #[error("token has critical extensions")]
    Critical,
    /// The signature is not of this key.
    #[error("signature is wrong")]
    Signature,
    /// It has no `exp`, or that has passed. RFC 7519 §4.1.4.
    #[error("token has expired")]
    Expired,
    /// Its `nbf` has not come yet. RFC 7519 §4.1.5.
    #[error("token is not valid yet")]
    NotYet,
    /// Its `iss` is another than the expected one. RFC 7519 §4.1.1.
    #[error("token has another issuer")]
    Issuer,
}

#[derive(Serialize)]
struct GripClaims<'a> {
    iss: &'a str,
    exp: u64,
}

/// A key that stands twice makes each of these malformed, so there is one reading of a token.
#[derive(Deserialize)]
struct Header {
    alg: String,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
}

impl SigningKey {
    /// Reads a key: PEM (PKCS #8, or PKCS #1 for RSA), `base64:` and base64, or the bytes of a secret as they are.
    ///
    /// RFC 7518 §3.2 wants secrets of at least 32 bytes; GRIP's own default is shorter, so any length is taken.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_text(text: &[u8], random: &dyn SecureRandom) -> Result<Self, KeyError> {
        if !is_pem(text) {
            return Ok(Self(Signing::Secret(secret(text)?)));
        }
        Ok(Self(match PrivateKeyDer::from_pem_slice(text).map_err(|_| KeyError::Pem)? {
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let algorithm = &ring_signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                match EcdsaKeyPair::from_pkcs8(algorithm, der, random) {
                    Ok(key) => Signing::Ec(Box::new(key)),
                    Err(_) => Signing::Rsa(Box::new(RsaKeyPair::from_pkcs8(der).map_err(|_| KeyError::Unsupported)?)),
                }
            }
            PrivateKeyDer::Pkcs1(der) => {
                let der = der.secret_pkcs1_der();
                Signing::Rsa(Box::new(RsaKeyPair::from_der(der).map_err(|_| KeyError::Unsupported)?))
            }
            PrivateKeyDer::Sec1(_) => return Err(KeyError::Sec1),
            _ => return Err(KeyError::Pem),
        }))
    }

    /// The algorithm of its tokens.
    pub const fn algorithm(&self) -> Algorithm {
        match self.0 {
            Signing::Secret(_) => Algorithm::Hs256,
            Signing::Ec(_) => Algorithm::Es256,
            Signing::Rsa(_) => Algorithm::Rs256,
        }
    }

    /// A `Grip-Sig` of `issuer` that is valid for [`VALID_SECS`] from `now_secs` on, in seconds since 1970.
    ///
    /// # Errors
    /// [`SignError`], with an EC or RSA key only.
    pub fn grip_sig(&self, issuer: &str, now_secs: u64, random: &dyn SecureRandom) -> Result<String, SignError> {
        let claims = GripClaims { iss: issuer, exp: now_secs.saturating_add(VALID_SECS) };
        self.sign(&serde_json::to_vec(&claims).map_err(|_| SignError)?, random)
    }

    /// Signs claims, which are a JSON object.
    fn sign(&self, claims: &[u8], random: &dyn SecureRandom) -> Result<String, SignError> {
        let header = format!(r#"{{"typ":"JWT","alg":"{}"}}"#, self.algorithm().name());
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = match &self.0 {
            Signing::Secret(key) => hmac::sign(key, token.as_bytes()).as_ref().to_vec(),
            Signing::Ec(key) => key.sign(random, token.as_bytes()).map_err(|_| SignError)?.as_ref().to_vec(),
            Signing::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let padding = &ring_signature::RSA_PKCS1_SHA256;
                key.sign(padding, random, token.as_bytes(), &mut signature).map_err(|_| SignError)?;
                signature
            }
        };
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl VerifyingKey {
    /// Reads a key: a public key in PEM (`PUBLIC KEY`), `base64:` and base64, or the bytes of a secret as they are.
    ///
    /// # Errors
    /// [`KeyError`]. A private key in PEM is one too: what only verifies should not be able to sign.
    pub fn from_text(text: &[u8]) -> Result<Self, KeyError> {
        if !is_pem(text) {
            return Ok(Self(Verifying::Secret(secret(text)?)));
        }
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| KeyError::Pem)?;
        let (rest, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| KeyError::Pem)?;
        let key = info.subject_public_key.data.to_vec();
        Ok(Self(match info.algorithm.algorithm.to_id_string().as_str() {
            _ if !rest.is_empty() => return Err(KeyError::Pem),
            // id-ecPublicKey, and on P-256: RFC 5480 §2.1.1. An uncompressed point has 65 bytes.
            "1.2.840.10045.2.1" if is_p256(&info) && matches!(*key, [4, ..]) && key.len() == 65 => Verifying::Ec(key),
            // rsaEncryption: RFC 8017, A.1. 2,048 bits are 256 bytes; what is less or more verifies nothing.
            "1.2.840.113549.1.1.1" if key.len() >= 256 => Verifying::Rsa(key),
            _ => return Err(KeyError::Unsupported),
        }))
    }

    /// The one algorithm of tokens that it takes.
    pub const fn algorithm(&self) -> Algorithm {
        match self.0 {
            Verifying::Secret(_) => Algorithm::Hs256,
            Verifying::Ec(_) => Algorithm::Es256,
            Verifying::Rsa(_) => Algorithm::Rs256,
        }
    }

    /// Whether `token` is one of this key, at `now_secs` (in seconds since 1970), and of `issuer` where one is given.
    ///
    /// `exp` has to be there; `nbf` counts where it is there. Both with a leeway of [`LEEWAY_SECS`].
    ///
    /// # Errors
    /// The first rule that it breaks, the signature before what it says.
    ///
    /// # RFC
    /// RFC 7515 §5.2, RFC 7519 §7.2, RFC 8725 §3.1.
    pub fn verify(&self, token: &[u8], issuer: Option<&str>, now_secs: u64) -> Result<(), VerifyError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerifyError::Malformed);
        }
        let signed_bytes = token.iter().rposition(|byte| *byte == b'.').ok_or(VerifyError::Malformed)?;
        let (signed, signature) = token.split_at_checked(signed_bytes).ok_or(VerifyError::Malformed)?;
        let decode = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).map_err(|_| VerifyError::Malformed);
        let signature = decode(signature.strip_prefix(b".").unwrap_or_default())?;
        let mut parts = signed.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(VerifyError::Malformed);
        };
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| VerifyError::Malformed)?;
        if header.alg != self.algorithm().name() {
            return Err(VerifyError::Algorithm);
        }
        if header.crit.is_some() {
            return Err(VerifyError::Critical);
        }
        let verified = match &self.0 {
            Verifying::Secret(key) => hmac::verify(key, signed, &signature),
            Verifying::Ec(point) => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point).verify(signed, &signature)
            }
            Verifying::Rsa(key) => {
                UnparsedPublicKey::new(&ring_signature::RSA_PKCS1_2048_8192_SHA256, key).verify(signed, &signature)
            }
        };
        verified.map_err(|_| VerifyError::Signature)?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| VerifyError::Malformed)?;
        let (now, leeway) = (now_secs as f64, LEEWAY_SECS as f64);
        if claims.exp.is_none_or(|exp| now >= exp + leeway) {
            return Err(VerifyError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(VerifyError::NotYet);
        }
        match issuer {
            Some(issuer) if claims.iss.as_deref() != Some(issuer) => Err(VerifyError::Issuer),
            _ => Ok(()),
        }
    }
}

/// The token of an `Authorization: Bearer`. RFC 6750 §2.1; the scheme in any letters, RFC 9110 §11.1.
pub fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

fn is_pem(text: &[u8]) -> bool {
    text.windows(PEM.len()).any(|window| window == PEM)
}

fn is_p256(info: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    curve.is_some_and(|curve| curve.to_id_string() == "1.2.840.10045.3.1.7")
}

fn secret(text: &[u8]) -> Result<hmac::Key, KeyError> {
    let secret = match text.strip_prefix(BASE64_PREFIX) {
        Some(encoded) => STANDARD.decode(encoded.trim_ascii()).map_err(|_| KeyError::Base64)?,
        None => text.to_vec(),
    };
    if secret.is_empty() { Err(KeyError::Empty) } else { Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret)) }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, ***)", self.algorithm().name())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({}, ***)", self.algorithm().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;

    const NOW: u64 = 1_800_000_000;

    /// RFC 7515, A.1: its key, and a token of it that expires at 1300819380.
    const RFC_KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    const RFC_TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

    /// Made with `openssl genpkey` for these tests.
    const RSA_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDXsPioi0yCfUzr
gZH8r+IAR4RXVPRyBSzD5kogvjNPlZwDWAFpbS/V1rmJlSuWTNfm3RpCWPdDn3P3
n/kZI3kQoYEEpgxOXpa70NxhmSHU7WG82Ixgz9h1Wy6x73DuYF0ologa/wOO6jT1
UZIvgw3mpHyxsGB8jq0s8FSB/oUGnmOgfbRUY9Hha+oTkyQYLAmU8WkQLaCfVSoU
VJLoIy9cz8UllUMImxjuFuOIgsGUDZuRPX/NyaLq12LY1URChBJ3JPoWGkWHJZW8
+/JQ++gv3PocClNesb6/YQku4h4AvtZPrY1fT0yGpngaG1Ktio3ELpdKkI7aGxzT
A6USXD1fAgMBAAECggEARUN93nX5KFA/gsM1k70RaMCOlZLg+rqBsRkDRfd+N7jW
BFbfATGAcn2FUFK4UAg2LttiwtqZ8LvEPElBb1quVnJeoZUHD6WdZwu/sZHAxQVD
5SZvEem825bf7GD1VX9Zex63719kD6FTR1IeDSbbMG0y48a9fVI991fn82S96C0e
uyWIKyS+E/Tzo24OqQNmfjhGryU5qAVTTpJH7qOfPOPRVIwx7x4V25UkQAau1TDR
6sF3EsfS2JpPYCqGrjGWOqUiqnJg1bA7M/MjgJ9W6sioic4I52cuLmfPA3+RNb5O
pWtjPyg77uMZ/IVijP3WlAkYifao/NiaMDvh9BSmzQKBgQD27wCj2ARlQlbEmsUc
Xj5buqQx5HoIBZf4e6g8TjYgq+FX/n67Ztd6AGL+KOoxeX3Tk9Am5VlwQyJGjU6F
Ctg2EZRxSkQbAvt82PhVC4PoxTGK/fMO/cCO14pzyVfXl/OzN/+T1lUqLpnHEl3q
2eBLvH9hj22IlulEqF631QdS0wKBgQDfnFBNfJxst1+93xvXzH16KOvP/t8tLRuK
bqUkpnj+s4WJ37JMNNQABs2q71ikZSHGD565Of/9B81XetcDhbzGrMTXpi6Yhxt7
vX4FwHyFtQKAO5/eHZzaLY0Iwea88eazy0tptkhXnw6lOTTylZ4Djn9LZQMt7Gu9
Nn9QH0XbxQKBgA8nf8yOV0a3mYebT/l7tyv9+lGtieewIDF5tUtuKVg79CpoTfLG
TvcHywt6C1VZ9WTkr2OTs7d2B0Z5KZZ0oew/i/Kf8ioONszkq+jcOg4w++dhymbj
H8wkYjTU6HUsuCIJj7/M6ZEbJwjWkbj2AhPjz5V3LeuyB0LVamqxwi9NAoGANf6X
wW4yk2ngG4gRQBWnwuS4tFvV5iG7Qb0f8W6lTtNojndOpWooOu1pojnzTJcDBcFl
0VI5Bw9oPRRzcO1NPSggy/Xb0IbnUwTZtmfZaavgs7gyDT9XTbOsF45CuiMrUwTm
69rRMx88ORdMOrt4EWHKSRlWIDOzfFf5fA5hHwUCgYEAhFaBhAovC6GuRvQ/cuFR
wKpeim7KuVzKvGtf9EM5legVWgzMhbHho6+Klgf5yIYUUCaN56xxCm5Ate1jA31I
NYAL9pU6hYj+4d5kDuVil8wNDPjuZ9D1NkZfITI7gCAoqbt+tVteCmKrJytrcg4f
+/rwxzBzzs49kLf6sDuC/60=
-----END PRIVATE KEY-----
";
    const RSA_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA17D4qItMgn1M64GR/K/i
AEeEV1T0cgUsw+ZKIL4zT5WcA1gBaW0v1da5iZUrlkzX5t0aQlj3Q59z95/5GSN5
EKGBBKYMTl6Wu9DcYZkh1O1hvNiMYM/YdVsuse9w7mBdKJaIGv8Djuo09VGSL4MN
5qR8sbBgfI6tLPBUgf6FBp5joH20VGPR4WvqE5MkGCwJlPFpEC2gn1UqFFSS6CMv
XM/FJZVDCJsY7hbjiILBlA2bkT1/zcmi6tdi2NVEQoQSdyT6FhpFhyWVvPvyUPvo
L9z6HApTXrG+v2EJLuIeAL7WT62NX09MhqZ4GhtSrYqNxC6XSpCO2hsc0wOlElw9
XwIDAQAB
-----END PUBLIC KEY-----
";

    fn signing(text: &str) -> SigningKey {
        SigningKey::from_text(text.as_bytes(), &SystemRandom::new()).unwrap()
    }

    fn verifying(text: &str) -> VerifyingKey {
        VerifyingKey::from_text(text.as_bytes()).unwrap()
    }

    fn sign(key: &SigningKey, claims: &str) -> String {
        key.sign(claims.as_bytes(), &SystemRandom::new()).unwrap()
    }

    /// A token of `key` with a header of our choosing.
    fn with_header(key: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn a_token_of_the_standard_verifies() {
        let secret = URL_SAFE_NO_PAD.decode(RFC_KEY).unwrap();
        let key = verifying(&format!("base64:{}", STANDARD.encode(secret)));
        assert_eq!(key.verify(RFC_TOKEN.as_bytes(), Some("joe"), 1_300_819_379), Ok(()));
        assert_eq!(key.verify(RFC_TOKEN.as_bytes(), Some("joe"), 1_300_819_380 + 30), Err(VerifyError::Expired));
        assert_eq!(key.verify(RFC_TOKEN.as_bytes(), Some("ann"), 1_300_819_379), Err(VerifyError::Issuer));
    }

    #[test]
    fn a_token_of_the_standard_with_an_ec_key_verifies() {
        // RFC 7515, A.3. The key is given there by its coordinates.
        let coordinates =
            ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"];
        let mut der = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\0\x04".to_vec();
        for coordinate in coordinates {
            der.extend(URL_SAFE_NO_PAD.decode(coordinate).unwrap());
        }
        let key =
            verifying(&format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der)));
        let claims = RFC_TOKEN.split('.').nth(1).unwrap();
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let token = format!("eyJhbGciOiJFUzI1NiJ9.{claims}.{signature}");
        assert_eq!(key.verify(token.as_bytes(), Some("joe"), 1_300_819_379), Ok(()));
        assert_eq!(key.verify(RFC_TOKEN.as_bytes(), Some("joe"), 1_300_819_379), Err(VerifyError::Algorithm));
    }

    #[test]
    fn each_kind_of_key_signs_what_its_other_half_verifies() {
        let ec = rcgen::KeyPair::generate().unwrap();
        for (private, public, algorithm) in [
            ("changeme", "changeme", Algorithm::Hs256),
            ("base64:AAEC", "base64:AAEC", Algorithm::Hs256),
            (&ec.serialize_pem(), &ec.public_key_pem(), Algorithm::Es256),
            (RSA_PRIVATE, RSA_PUBLIC, Algorithm::Rs256),
        ] {
            let (private, public) = (signing(private), verifying(public));
            assert_eq!((private.algorithm(), public.algorithm()), (algorithm, algorithm));
            let token = private.grip_sig("sluicegate", NOW, &SystemRandom::new()).unwrap();
            assert_eq!(public.verify(token.as_bytes(), Some("sluicegate"), NOW), Ok(()));
            assert_eq!(public.verify(token.as_bytes(), None, NOW + VALID_SECS + LEEWAY_SECS - 1), Ok(()));
            let late = public.verify(token.as_bytes(), None, NOW + VALID_SECS + LEEWAY_SECS);
            assert_eq!(late, Err(VerifyError::Expired));
            assert!(verifying("other").verify(token.as_bytes(), None, NOW).is_err());
            assert!(format!("{private:?} {public:?}").ends_with("***)"));
        }
    }

    #[test]
    fn a_grip_sig_is_what_backends_expect() {
        let token = signing("changeme").grip_sig("pushpin", 1_000, &SystemRandom::new()).unwrap();
        let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
        assert_eq!(parts.next().unwrap(), br#"{"typ":"JWT","alg":"HS256"}"#);
        assert_eq!(parts.next().unwrap(), br#"{"iss":"pushpin","exp":4600}"#);
    }

    #[test]
    fn the_key_says_which_algorithm_there_is() {
        let claims = format!(r#"{{"exp":{}}}"#, NOW + 1);
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(&claims));
        // The public key used as a secret, in each of its forms.
        let confused = with_header(RSA_PUBLIC, r#"{"alg":"HS256"}"#, &claims);
        let renamed = with_header(RSA_PUBLIC, r#"{"alg":"RS256"}"#, &claims);
        let rsa = verifying(RSA_PUBLIC);
        assert_eq!(rsa.verify(none.as_bytes(), None, NOW), Err(VerifyError::Algorithm));
        assert_eq!(rsa.verify(confused.as_bytes(), None, NOW), Err(VerifyError::Algorithm));
        assert_eq!(rsa.verify(renamed.as_bytes(), None, NOW), Err(VerifyError::Signature));
        let secret = verifying("changeme");
        assert_eq!(secret.verify(none.as_bytes(), None, NOW), Err(VerifyError::Algorithm));
        for header in [r#"{"alg":"hs256"}"#, r#"{"alg":"HS384"}"#] {
            let token = with_header("changeme", header, &claims);
            assert_eq!(secret.verify(token.as_bytes(), None, NOW), Err(VerifyError::Algorithm));
        }
        let critical = with_header("changeme", r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &claims);
        assert_eq!(secret.verify(critical.as_bytes(), None, NOW), Err(VerifyError::Critical));
        let twice = with_header("changeme", r#"{"alg":"HS256","alg":"HS256"}"#, &claims);
        assert_eq!(secret.verify(twice.as_bytes(), None, NOW), Err(VerifyError::Malformed));
    }

    #[test]
    fn times_and_issuers_are_checked() {
        let (private, public) = (signing("changeme"), verifying("changeme"));
        let verdict = |claims: String| public.verify(sign(&private, &claims).as_bytes(), Some("a"), NOW);
        for (claims, expected) in [
            (format!(r#"{{"iss":"a","exp":{}}}"#, NOW - 29), Ok(())),
            (format!(r#"{{"iss":"a","exp":{}}}"#, NOW - 30), Err(VerifyError::Expired)),
            (format!(r#"{{"iss":"a","exp":{}.5,"nbf":{}}}"#, NOW, NOW + 30), Ok(())),
            (format!(r#"{{"iss":"a","exp":{},"nbf":{}}}"#, NOW + 99, NOW + 31), Err(VerifyError::NotYet)),
            (r#"{"iss":"a"}"#.to_owned(), Err(VerifyError::Expired)),
            (format!(r#"{{"exp":{NOW}}}"#), Err(VerifyError::Issuer)),
            (format!(r#"{{"iss":"b","exp":{NOW}}}"#), Err(VerifyError::Issuer)),
            (format!(r#"{{"iss":["a"],"exp":{NOW}}}"#), Err(VerifyError::Malformed)),
            (format!(r#"{{"iss":"a","exp":"{NOW}"}}"#), Err(VerifyError::Malformed)),
            (format!(r#"{{"iss":"a","exp":1,"exp":{NOW}}}"#), Err(VerifyError::Malformed)),
            ("[]".to_owned(), Err(VerifyError::Malformed)),
        ] {
            assert_eq!(verdict(claims.clone()), expected, "{claims}");
        }
    }

    #[test]
    fn what_was_changed_or_is_no_token_is_refused() {
        let key = verifying("changeme");
        let token = signing("changeme").grip_sig("a", NOW, &SystemRandom::new()).unwrap();
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(key.verify(&changed, None, NOW).is_err(), "byte {at}");
        }
        for text in ["", ".", "..", "a.b", &format!("{token}."), &format!("a.{token}"), &token[..token.len() - 1]] {
            assert!(key.verify(text.as_bytes(), None, NOW).is_err(), "{text}");
        }
        let long = format!("{token}{}", "A".repeat(MAX_TOKEN_BYTES));
        assert_eq!(key.verify(long.as_bytes(), None, NOW), Err(VerifyError::Malformed));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let sign = |text: &str| SigningKey::from_text(text.as_bytes(), &SystemRandom::new()).map(|_| ()).unwrap_err();
        let verify = |text: &str| VerifyingKey::from_text(text.as_bytes()).map(|_| ()).unwrap_err();
        assert_eq!((sign(""), verify("")), (KeyError::Empty, KeyError::Empty));
        assert_eq!((sign("base64:"), verify("base64:%")), (KeyError::Empty, KeyError::Base64));
        assert_eq!((sign(RSA_PUBLIC), verify(RSA_PRIVATE)), (KeyError::Pem, KeyError::Pem));
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nMA==\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(sign(sec1), KeyError::Sec1);
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for key in [ed25519, p384] {
            assert_eq!(sign(&key.serialize_pem()), KeyError::Unsupported);
            assert_eq!(verify(&key.public_key_pem()), KeyError::Unsupported);
        }
    }

    #[test]
    fn bearer_tokens_are_found() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER  abc "), Some(&b"abc"[..]));
        for other in [&b"Bearer"[..], b"Bearer ", b"Basic abc", b"Bearerabc", b""] {
            assert_eq!(bearer(other), None);
        }
    }
}
