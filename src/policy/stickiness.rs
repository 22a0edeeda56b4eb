//! Sticky sessions: a client comes back to the endpoint that it had, by a signed cookie or by a hash.
//!
//! The cookie says nothing of the endpoint but a MAC over its name, so a client can neither read an address in it nor
//! choose one: to find the endpoint, the MAC of each is compared. Every gateway with the same secret reads the cookies
//! of the others. A nonce makes each one its client's own, by which one that comes back is known.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::Fault;
use super::client_address::Peer;

/// The bytes of a MAC that are kept: 128 bits, out of reach of guessing.
const MAC_BYTES: usize = 16;

/// The bytes of the time of issue, in seconds since 1970.
const TIME_BYTES: usize = 8;

/// The bytes of the nonce.
const NONCE_BYTES: usize = 8;

/// All bytes of a cookie's value, and how long they are in base64.
const RAW_BYTES: usize = TIME_BYTES + NONCE_BYTES + MAC_BYTES;
const VALUE_BYTES: usize = RAW_BYTES.div_ceil(3) * 4 - 1;

/// A cookie from a gateway whose clock is ahead of ours by no more than this is taken.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// What the MAC is over, first, so that the secret can serve nothing else by accident.
const DOMAIN: &[u8] = b"sluicegate sticky cookie 1";

/// When a cookie is marked Secure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// When the client uses TLS, as far as we know.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The `SameSite` of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Sent with navigations to the site.
    Lax,
    /// Sent within the site only.
    Strict,
    /// Sent from everywhere; browsers want Secure with it.
    None,
}

/// A rule's sticky cookie.
#[derive(Clone)]
pub struct StickyCookie {
    name: String,
    /// How long it lasts; `None`: as long as the browser's session.
    ttl: Option<Duration>,
    same_site: SameSite,
    secure: Secure,
    /// The first signs, all verify.
    secrets: Vec<Hmac<Sha256>>,
}

/// What a client's cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No cookie, or none that is ours and in time.
    Nothing,
    /// The endpoint at this place in the list. `renew` says that the cookie is past half its time, or signed with an
    /// old secret.
    Endpoint {
        /// Its place.
        index: usize,
        /// Whether to set the cookie anew.
        renew: bool,
    },
}

impl StickyCookie {
    /// A cookie of this name.
    ///
    /// # Errors
    /// A name that is no token, a lifetime under a minute or over a year, no secret, a secret under 16 bytes.
    pub fn new(
        name: &str,
        ttl: Option<Duration>,
        same_site: SameSite,
        secure: Secure,
        secrets: &[Vec<u8>],
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        if !crate::ws::handshake::is_token(name.as_bytes()) {
            faults.push(Fault::new("name", name, "a token of RFC 9110, such as \"sluicegate\""));
        }
        let year = Duration::from_secs(365 * 24 * 3600);
        if let Some(ttl) = ttl.filter(|ttl| !(Duration::from_secs(60)..=year).contains(ttl)) {
            faults.push(Fault::new("ttl", format!("{ttl:?}"), "a duration from \"1m\" to \"365d\", or `session`"));
        }
        if secrets.is_empty() || secrets.iter().any(|secret| secret.len() < 16) {
            faults.push(Fault::new("secret_files", "a secret that is missing or short", "at least 16 bytes each"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        // HMAC takes a key of any length.
        let secrets = secrets.iter().filter_map(|secret| Hmac::new_from_slice(secret).ok()).collect();
        Ok(Self { name: name.to_owned(), ttl, same_site, secure, secrets })
    }

    /// Whether browsers drop the cookie: they want Secure where pages of other sites send it.
    pub fn is_dropped(&self) -> bool {
        self.same_site == SameSite::None && self.secure == Secure::Off
    }

    /// Finds the endpoint that a client had. `cookies` are the values of its Cookie headers, `now` is in seconds since
    /// 1970, `endpoints` are the names that [`StickyCookie::issue`] gets.
    pub fn find<'a>(
        &self,
        rule: &str,
        cookies: impl Iterator<Item = &'a [u8]>,
        endpoints: impl Iterator<Item = &'a str> + Clone,
        now: u64,
    ) -> Found {
        // A client may hold the cookie for several paths; each is tried, and a browser sends no more than a few.
        for value in self.values(cookies).take(4) {
            let Some(Decoded { issued, nonce, mac }) = decode(value) else { continue };
            let age = now.saturating_sub(issued);
            let in_time = issued <= now + CLOCK_SKEW.as_secs() && self.ttl.is_none_or(|ttl| age <= ttl.as_secs());
            if !in_time {
                continue;
            }
            for (nth, secret) in self.secrets.iter().enumerate() {
                let found = endpoints
                    .clone()
                    .position(|endpoint| bool::from(sign(secret, rule, endpoint, issued, nonce).ct_eq(&mac)));
                if let Some(index) = found {
                    let renew = nth > 0 || self.ttl.is_some_and(|ttl| age > ttl.as_secs() / 2);
                    return Found::Endpoint { index, renew };
                }
            }
        }
        Found::Nothing
    }

    /// The values of the cookies of this name in `cookies`, the values of Cookie headers. RFC 6265 §4.2.
    pub fn values<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
        cookies.flat_map(|line| line.split(|byte| *byte == b';')).filter_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(self.name.as_bytes())?.strip_prefix(b"=")
        })
    }

    /// The value of a Set-Cookie header that brings a client back to `endpoint`. `nonce` is random, `tls` says whether
    /// the client uses TLS.
    ///
    /// # RFC
    /// RFC 6265 §4.1.
    pub fn issue(&self, rule: &str, endpoint: &str, now: u64, nonce: u64, tls: bool) -> String {
        let mut raw = [0; RAW_BYTES];
        raw[..TIME_BYTES].copy_from_slice(&now.to_be_bytes());
        raw[TIME_BYTES..TIME_BYTES + NONCE_BYTES].copy_from_slice(&nonce.to_be_bytes());
        if let Some(secret) = self.secrets.first() {
            raw[TIME_BYTES + NONCE_BYTES..].copy_from_slice(&sign(secret, rule, endpoint, now, nonce));
        }
        let mut cookie = format!("{}={}; Path=/; HttpOnly", self.name, URL_SAFE_NO_PAD.encode(raw));
        if let Some(ttl) = self.ttl {
            cookie += &format!("; Max-Age={}", ttl.as_secs());
        }
        cookie += match self.same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::Strict => "; SameSite=Strict",
            SameSite::None => "; SameSite=None",
        };
        let secure = match self.secure {
            Secure::Auto => tls,
            Secure::On => true,
            Secure::Off => false,
        };
        if secure {
            cookie += "; Secure";
        }
        cookie
    }
}

impl std::fmt::Debug for StickyCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StickyCookie")
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .field("same_site", &self.same_site)
            .field("secure", &self.secure)
            .field("secrets", &self.secrets.len())
            .finish()
    }
}

/// A cookie's value, taken apart and not verified.
struct Decoded {
    issued: u64,
    nonce: u64,
    mac: [u8; MAC_BYTES],
}

fn decode(value: &[u8]) -> Option<Decoded> {
    let mut raw = [0; RAW_BYTES + 2];
    // Checked before decoding, so that a long value costs nothing.
    let len = (value.len() == VALUE_BYTES).then(|| URL_SAFE_NO_PAD.decode_slice(value, &mut raw).ok()).flatten()?;
    let (time, rest) = raw.get(..len)?.split_first_chunk()?;
    let (nonce, mac) = rest.split_first_chunk()?;
    Some(Decoded { issued: u64::from_be_bytes(*time), nonce: u64::from_be_bytes(*nonce), mac: mac.try_into().ok()? })
}

fn sign(secret: &Hmac<Sha256>, rule: &str, endpoint: &str, issued: u64, nonce: u64) -> [u8; MAC_BYTES] {
    let mut mac = secret.clone();
    for part in [DOMAIN, rule.as_bytes(), endpoint.as_bytes()] {
        // Each part with its length, so that no two lists of parts are the same bytes.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.update(&issued.to_be_bytes());
    mac.update(&nonce.to_be_bytes());
    let whole = mac.finalize().into_bytes();
    std::array::from_fn(|at| whole.get(at).copied().unwrap_or_default())
}

/// What a client is told apart by, where a hash chooses its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// Its address.
    ClientIp,
    /// A header.
    Header(http::HeaderName),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(String),
}

impl HashKey {
    /// Reads `client_ip`, `header:NAME`, `query:NAME` or `cookie:NAME`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let fault = || Fault::new("hash", text, "`client_ip`, `header:NAME`, `query:NAME` or `cookie:NAME`");
        let is_name = |name: &&str| crate::ws::handshake::is_token(name.as_bytes());
        match text.split_once(':') {
            None if text == "client_ip" => Ok(Self::ClientIp),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| fault()),
            Some(("query", name)) if is_name(&name) => Ok(Self::Query(name.to_owned())),
            Some(("cookie", name)) if is_name(&name) => Ok(Self::Cookie(name.to_owned())),
            _ => Err(fault()),
        }
    }

    /// The bytes that are hashed for a request; `None` when it does not have what is asked for.
    pub fn of(&self, client: Peer, headers: &http::HeaderMap, query: &str) -> Option<Vec<u8>> {
        match self {
            Self::ClientIp => client.ip().map(|address| address.to_string().into_bytes()),
            Self::Header(name) => headers.get(name).map(|value| value.as_bytes().to_vec()),
            Self::Query(name) => query.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                (key == name).then(|| value.as_bytes().to_vec())
            }),
            Self::Cookie(name) => headers.get_all(http::header::COOKIE).into_iter().find_map(|line| {
                line.as_bytes().split(|byte| *byte == b';').find_map(|pair| {
                    pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec)
                })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINTS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "backend:80"];
    const HOUR: u64 = 3600;

    fn cookie(secrets: &[&str]) -> StickyCookie {
        let secrets: Vec<_> = secrets.iter().map(|secret| secret.repeat(16).into_bytes()).collect();
        StickyCookie::new("sluicegate", Some(Duration::from_secs(HOUR)), SameSite::Lax, Secure::Auto, &secrets).unwrap()
    }

    /// What a browser sends back for a Set-Cookie value.
    fn sent(set_cookie: &str) -> String {
        format!("other=1; {}; more=2", set_cookie.split(';').next().unwrap())
    }

    fn find(cookie: &StickyCookie, rule: &str, sent: &str, now: u64) -> Found {
        cookie.find(rule, [sent.as_bytes()].into_iter(), ENDPOINTS.into_iter(), now)
    }

    #[test]
    fn brings_a_client_back_on_every_gateway_with_the_secret() {
        let (one, other) = (cookie(&["a"]), cookie(&["a"]));
        for (index, endpoint) in ENDPOINTS.iter().enumerate() {
            let sent = sent(&one.issue("chat", endpoint, 1000, 7, false));
            assert_eq!(find(&other, "chat", &sent, 1000), Found::Endpoint { index, renew: false });
            assert_eq!(find(&other, "chat", &sent, 1000 + HOUR / 2 + 1), Found::Endpoint { index, renew: true });
            assert_eq!(find(&other, "chat", &sent, 1000 + HOUR + 1), Found::Nothing);
            assert_eq!(find(&other, "other rule", &sent, 1000), Found::Nothing);
            assert_eq!(find(&cookie(&["b"]), "chat", &sent, 1000), Found::Nothing);
        }
    }

    #[test]
    fn an_old_secret_verifies_and_is_renewed() {
        let sent = sent(&cookie(&["old"]).issue("chat", ENDPOINTS[1], 1000, 7, false));
        assert_eq!(find(&cookie(&["new", "old"]), "chat", &sent, 1000), Found::Endpoint { index: 1, renew: true });
    }

    #[test]
    fn a_tampered_cookie_chooses_nothing() {
        let cookie = cookie(&["a"]);
        let good = sent(&cookie.issue("chat", ENDPOINTS[0], 1_000_000, 7, false));
        let value_at = good.find("sluicegate=").unwrap() + "sluicegate=".len();
        for at in value_at..value_at + VALUE_BYTES {
            for replacement in [b'A', b'z', b'0', b'-'] {
                let mut bad = good.clone().into_bytes();
                if bad[at] == replacement {
                    continue;
                }
                bad[at] = replacement;
                let bad = String::from_utf8(bad).unwrap();
                assert_eq!(find(&cookie, "chat", &bad, 1_000_000), Found::Nothing, "{bad}");
            }
        }
        for cut in value_at..value_at + VALUE_BYTES {
            assert_eq!(find(&cookie, "chat", &good[..cut], 1_000_000), Found::Nothing);
        }
        assert_eq!(find(&cookie, "chat", "sluicegate=10.0.0.1:80", 1_000_000), Found::Nothing);
    }

    #[test]
    fn says_nothing_of_the_endpoint_and_has_its_attributes() {
        let cookie = cookie(&["a"]);
        let set = cookie.issue("chat", ENDPOINTS[0], 1000, 7, true);
        assert!(!set.contains("10.0.0.1"));
        assert!(set.ends_with("; Path=/; HttpOnly; Max-Age=3600; SameSite=Lax; Secure"), "{set}");
        assert!(!cookie.issue("chat", ENDPOINTS[0], 1000, 7, false).contains("Secure"));
        let secret = [vec![1; 16]];
        let other = StickyCookie::new("a", None, SameSite::None, Secure::Off, &secret).unwrap();
        assert!(other.issue("chat", ENDPOINTS[0], 1000, 7, true).ends_with("; Path=/; HttpOnly; SameSite=None"));
        let shown = format!("{cookie:?}");
        assert!(shown.contains("Auto") && shown.contains("secrets: 1") && !shown.contains("aaaa"), "{shown}");
    }

    #[test]
    fn refuses_bad_settings() {
        let new = |name: &str, ttl: u64, secret: &[u8]| {
            let ttl = Some(Duration::from_secs(ttl));
            StickyCookie::new(name, ttl, SameSite::Lax, Secure::Auto, &[secret.to_vec()]).is_ok()
        };
        assert!(new("a", 60, &[1; 16]));
        assert!(!new("a b", 60, &[1; 16]));
        assert!(!new("a", 59, &[1; 16]));
        assert!(!new("a", 60, &[1; 15]));
    }

    #[test]
    fn takes_the_hash_of_what_was_asked_for() {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-user", "ann".parse().unwrap());
        headers.insert("cookie", "a=1; sid=abc".parse().unwrap());
        let of = |key: &str| {
            let key = HashKey::parse(key).unwrap();
            key.of(Peer::Ip("10.0.0.1".parse().unwrap()), &headers, "x=1&token=t")
                .map(|key| String::from_utf8(key).unwrap())
        };
        assert_eq!(of("client_ip").as_deref(), Some("10.0.0.1"));
        assert_eq!(of("header:x-user").as_deref(), Some("ann"));
        assert_eq!(of("query:token").as_deref(), Some("t"));
        assert_eq!(of("cookie:sid").as_deref(), Some("abc"));
        assert_eq!(of("cookie:none"), None);
        for bad in ["", "ip", "header:", "header:a b", "query:", "cookie:a;b"] {
            assert!(HashKey::parse(bad).is_err(), "{bad}");
        }
    }
}
