//! What a rule does besides WebSockets: its action, rewrite, clients, stickiness, headers and limits of plain HTTP.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use rand::Rng as _;

use super::build_rule::{Found, Place};
use super::model::{HttpLimits, Respond, Sticky};
use super::raw::OrOff;
use super::raw_proxy::{
    RawClients, RawCookie, RawHeaders, RawHttp, RawRedirect, RawRespond, RawRewrite, RawSameSite, RawSecure, RawSticky,
    RawTtl,
};
use super::units::{Count, Size, Span};
use super::{files, ranges};
use crate::policy::clients::Clients;
use crate::policy::headers::{HeaderEdits, Of};
use crate::policy::redirect::Redirect;
use crate::policy::rewrite::Rewrite;
use crate::policy::stickiness::{HashKey, SameSite, Secure, StickyCookie};
use crate::policy::{Fault, range};

const REDIRECT_STATUS: Count = Count(308);
const COOKIE_NAME: &str = "sluicegate";
const COOKIE_TTL: Span = Span(Duration::from_secs(3600));
const RESPONSE_TIMEOUT: Span = Span(Duration::from_secs(60));
const HTTP_IDLE_TIMEOUT: Span = Span(Duration::from_secs(3600));
const MAX_BODY_SIZE: Size = Size(1 << 20);

/// The most bytes of the body of an answer; every such rule keeps its own in memory.
const MAX_RESPOND_BYTES: usize = 1 << 20;

/// The shortest secret.
const MIN_SECRET_BYTES: usize = 16;

const TEXT: &str = "text/plain; charset=utf-8";

/// Types by the ending of a file.
const TYPES: [(&str, &str); 7] = [
    (".html", "text/html; charset=utf-8"),
    (".htm", "text/html; charset=utf-8"),
    (".json", "application/json"),
    (".xml", "application/xml"),
    (".svg", "image/svg+xml"),
    (".css", "text/css; charset=utf-8"),
    (".js", "text/javascript; charset=utf-8"),
];

pub fn redirect(raw: &RawRedirect, found: &mut Found) -> Option<Redirect> {
    let status = raw.status.unwrap_or(REDIRECT_STATUS);
    let redirect = Redirect::new(raw.to.as_deref().unwrap_or("/"), u16::try_from(status.0).unwrap_or(u16::MAX));
    or_faults("redirect", redirect, found)
}

pub fn respond(raw: RawRespond, place: &Place<'_>, found: &mut Found) -> Option<Respond> {
    let status = raw.status.unwrap_or(Count(*ranges::RESPOND_STATUS.start()));
    let mut faults: Vec<Fault> = range::count("status", status.0, &ranges::RESPOND_STATUS).into_iter().collect();
    if raw.body.is_some() && raw.body_file.is_some() {
        faults.push(Fault::new("body", "", "only one of `body` and `body_file`"));
    }
    let content_type = raw.content_type.unwrap_or_else(|| {
        let file = raw.body_file.as_deref().unwrap_or_default().to_ascii_lowercase();
        TYPES.iter().find(|(ending, _)| file.ends_with(ending)).map_or(TEXT, |(_, kind)| kind).to_owned()
    });
    let is_type = content_type.contains('/') && content_type.is_ascii() && HeaderValue::from_str(&content_type).is_ok();
    if !is_type {
        faults.push(Fault::new("content_type", "", "a media type, such as \"text/html; charset=utf-8\""));
    }
    let body = match &raw.body_file {
        Some(file) => {
            let (source, _) = place.locate("respond.body_file");
            files::read(source, file, MAX_RESPOND_BYTES).unwrap_or_else(|why| {
                let allowed = format!("a file of at most 1 MiB that can be read ({why})");
                faults.push(Fault::new("body_file", "", allowed));
                Vec::new()
            })
        }
        None => raw.body.unwrap_or_default().into_bytes(),
    };
    if matches!(status.0, 204 | 205 | 304) && !body.is_empty() {
        faults.push(Fault::new("status", "", "a status that has a body, or no body"));
    }
    found.extend(faults.into_iter().map(|fault| ("respond", fault)));
    Some(Respond { status: u16::try_from(status.0).ok()?, body: Bytes::from(body), content_type })
}

pub fn rewrite(raw: Option<OrOff<RawRewrite>>, place: &Place<'_>, found: &mut Found) -> Option<Rewrite> {
    let raw = written("rewrite", raw, ["strip_prefix", "add_prefix"], place, found)?;
    or_faults("rewrite", Rewrite::new(raw.strip_prefix.as_deref(), raw.add_prefix.as_deref()), found)
}

pub fn clients(raw: Option<OrOff<RawClients>>, place: &Place<'_>, found: &mut Found) -> Option<Clients> {
    let raw = written("clients", raw, ["allow", "deny"], place, found)?;
    or_faults("clients", Clients::new(&raw.allow.unwrap_or_default(), &raw.deny), found)
}

pub fn headers(
    key: &'static str,
    of: Of,
    raw: Option<OrOff<RawHeaders>>,
    place: &Place<'_>,
    found: &mut Found,
) -> HeaderEdits {
    let Some(raw) = written(key, raw, ["set", "remove"], place, found) else { return HeaderEdits::default() };
    let set = raw.set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    or_faults(key, HeaderEdits::new(of, set, &raw.remove), found).unwrap_or_default()
}

pub fn sticky(raw: Option<OrOff<RawSticky>>, place: &Place<'_>, found: &mut Found) -> Option<Sticky> {
    let raw = written("sticky", raw, ["cookie", "hash"], place, found)?;
    match (raw.cookie, raw.hash) {
        (Some(_), Some(_)) => {
            found.push(("sticky", Fault::new("hash", "", "only one of `cookie` and `hash`")));
            None
        }
        (Some(cookie), None) => sticky_cookie(cookie, place, found).map(Sticky::Cookie),
        (None, Some(hash)) => {
            HashKey::parse(&hash).map_err(|fault| found.push(("sticky", fault))).ok().map(Sticky::Hash)
        }
        (None, None) => None,
    }
}

fn sticky_cookie(raw: RawCookie, place: &Place<'_>, found: &mut Found) -> Option<StickyCookie> {
    let ttl = match raw.ttl {
        None => Some(COOKIE_TTL.0),
        Some(RawTtl::Span(span)) => Some(span.0),
        Some(RawTtl::Session(_)) => None,
    };
    let same_site = match raw.same_site {
        None | Some(RawSameSite::Lax) => SameSite::Lax,
        Some(RawSameSite::Strict) => SameSite::Strict,
        Some(RawSameSite::None) => SameSite::None,
    };
    let secure = match raw.secure {
        None | Some(RawSecure::Auto) => Secure::Auto,
        Some(RawSecure::On) => Secure::On,
        Some(RawSecure::Off) => Secure::Off,
    };
    let secrets = match raw.secret_files {
        None => vec![own_secret().to_vec()],
        Some(list) => secrets(&list, place, found)?,
    };
    let cookie = StickyCookie::new(raw.name.as_deref().unwrap_or(COOKIE_NAME), ttl, same_site, secure, &secrets);
    or_faults("sticky.cookie", cookie, found)
}

/// The secrets of files; `None` after a fault.
fn secrets(list: &[String], place: &Place<'_>, found: &mut Found) -> Option<Vec<Vec<u8>>> {
    let (source, _) = place.locate("sticky.cookie.secret_files");
    let mut secrets = Vec::with_capacity(list.len());
    for (index, file) in list.iter().enumerate() {
        let why = match files::read_secret(source, file) {
            Ok(secret) if secret.len() >= MIN_SECRET_BYTES => {
                secrets.push(secret);
                continue;
            }
            Ok(secret) => format!("it has {}", secret.len()),
            Err(why) => why,
        };
        let allowed = format!("a file of 16 to 4096 bytes that can be read ({why})");
        found.push(("sticky.cookie", Fault::new(format!("secret_files[{index}]"), "", allowed)));
    }
    (secrets.len() == list.len()).then_some(secrets)
}

/// The secret of this process: the same for every configuration that it reads, so that a reload keeps its cookies.
fn own_secret() -> &'static [u8; 32] {
    static SECRET: OnceLock<[u8; 32]> = OnceLock::new();
    SECRET.get_or_init(|| rand::rng().random())
}

pub fn http(raw: &RawHttp, found: &mut Found) -> HttpLimits {
    let limits = HttpLimits {
        response_timeout: raw.response_timeout.unwrap_or(RESPONSE_TIMEOUT).0,
        idle_timeout: raw.idle_timeout.unwrap_or(HTTP_IDLE_TIMEOUT).0,
        max_body_size: raw.max_body_size.map_or(Some(MAX_BODY_SIZE), |size| size.on().copied()).map(|size| size.0),
    };
    let faults = [
        range::span("response_timeout", limits.response_timeout, &ranges::RESPONSE_TIMEOUT),
        range::span("idle_timeout", limits.idle_timeout, &ranges::HTTP_IDLE_TIMEOUT),
        limits.max_body_size.and_then(|size| range::size("max_body_size", size, &range::BYTES)),
    ];
    found.extend(faults.into_iter().flatten().map(|fault| ("http", fault)));
    limits
}

/// A policy that is off unless it is written, and has no effect without one of its keys.
fn written<T>(
    policy: &'static str,
    raw: Option<OrOff<T>>,
    keys: [&str; 2],
    place: &Place<'_>,
    found: &mut Found,
) -> Option<T> {
    let Some(OrOff::On(raw)) = raw else { return None };
    if !keys.iter().any(|key| place.is_written(&format!("{policy}.{key}"))) {
        let [first, second] = keys;
        found.push((policy, Fault::new("", "", format!("a mapping with {first} or {second}, or `off`"))));
    }
    Some(raw)
}

fn or_faults<T>(policy: &'static str, built: Result<T, Vec<Fault>>, found: &mut Found) -> Option<T> {
    built.map_err(|faults| found.extend(faults.into_iter().map(|fault| (policy, fault)))).ok()
}
