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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccessLog, Action, Balance, Loaded, Rule, Text, parse};

    const FRONT: &str = "listeners: [{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }]\n";
    const UPSTREAMS: &str = "upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"] }]\n";

    /// Files with these contents, and a configuration beside them.
    fn read(files: &[(&str, &[u8])], text: &str) -> Result<Loaded, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).expect("written");
        }
        let name = folder.path().join("a.yaml").display().to_string();
        let upstreams = if text.contains("upstreams:") { "" } else { UPSTREAMS };
        let text = format!("{FRONT}{upstreams}{text}");
        parse(Text { name: &name, text: &text }, &[], &|_| None).map_err(|faults| {
            let start = format!("{}/", folder.path().display());
            faults.iter().map(|fault| fault.to_string().trim_start_matches(&start).to_owned()).collect()
        })
    }

    fn rule(keys: &str) -> Rule {
        let loaded = read(&[("a.key", b"0123456789abcdef\r\n"), ("page.html", b"<p>")], &rules(keys));
        loaded.unwrap_or_else(|faults| panic!("{faults:#?}")).config.rules.remove(0)
    }

    fn rules(keys: &str) -> String {
        format!("rules:\n  - {{ name: r, {keys} }}\n")
    }

    fn faults(files: &[(&str, &[u8])], text: &str) -> Vec<String> {
        read(files, text).map(|loaded| loaded.config.rules.len()).expect_err("faults")
    }

    #[test]
    fn a_rule_has_exactly_one_action() {
        assert!(matches!(rule("upstream: chat").action, Action::Upstream(0)));
        let Action::Redirect(redirect) = rule("redirect: { to: \"https://{host}{path}\" }").action else { panic!() };
        assert_eq!((redirect.status(), redirect.location("a", "/b?c").as_str()), (308, "https://a/b"));
        let Action::Respond(respond) = rule("respond: { status: 503, body_file: page.html }").action else { panic!() };
        let expected = Respond { status: 503, body: "<p>".into(), content_type: "text/html; charset=utf-8".to_owned() };
        assert_eq!(respond, expected);
        let Action::Respond(respond) = rule("respond: { status: 204 }").action else { panic!() };
        assert_eq!((respond.body.len(), respond.content_type.as_str()), (0, TEXT));

        let found = faults(&[], &rules("upstream: chat, respond: { status: 200 }"));
        assert_eq!(
            found,
            ["a.yaml:4: rules[0].respond: this beside `upstream`; allowed: only one of `upstream`, `redirect` and \
              `respond`"]
        );
        let found = faults(&[], &rules("websocket: deny"));
        assert_eq!(
            found,
            ["a.yaml:4: rules[0].upstream: this key is missing; allowed: one of `upstream`, `redirect` and `respond`"]
        );
        // What has a fault of its own is not missing.
        let found = faults(&[], &rules("redirect: \"${NONE}\""));
        assert!(found.len() == 1 && found[0].contains("rules[0].redirect: the environment has no"), "{found:#?}");
        let found = faults(&[], "defaults: { respond: { status: 200 } }\n");
        assert!(found[0].contains("defaults.respond: unknown key"), "{found:#?}");
    }

    #[test]
    fn actions_say_what_is_wrong_with_them() {
        let large = vec![b'x'; MAX_RESPOND_BYTES + 1];
        let text = "rules:
  - { name: a, redirect: { to: \"ftp://{hots}\", status: 304 } }
  - { name: b, respond: { status: 600, body: x, body_file: none.html, content_type: \"a\\nb\" } }
  - { name: c, respond: { status: 200, body_file: large } }
  - { name: d, respond: { status: 304, body: x } }
  - { name: e, redirect: {} }
";
        let found = faults(&[("large", &large)], text);
        let expected = [
            ":4: rules[0].redirect.status: 304; allowed: 301, 302,",
            ":4: rules[0].redirect.to: \"ftp://{hots}\"; allowed: a target that starts with",
            ":5: rules[1].respond.status: 600; allowed: a number from 200 to 599",
            ":5: rules[1].respond.body: \"x\"; allowed: only one of",
            ":5: rules[1].respond.content_type: \"a\\nb\"; allowed: a media type",
            ":5: rules[1].respond.body_file: \"none.html\"; allowed: a file of at most 1 MiB that can be read (No such",
            ":6: rules[2].respond.body_file: \"large\"; allowed: a file of at most 1 MiB that can be read (it is larger)",
            ":7: rules[3].respond.status: 304; allowed: a status that has a body, or no body",
            ":8: rules[4].redirect.to: this key is missing",
        ];
        for expected in expected {
            assert!(
                found.iter().any(|fault| fault.starts_with(&format!("a.yaml{expected}"))),
                "{expected}\n{found:#?}"
            );
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn policies_are_made_of_their_keys() {
        let rule = rule(
            "upstream: chat, enforcement: report, rewrite: { strip_prefix: /api, add_prefix: /v1 }, \
             clients: { allow: [10.0.0.0/8] }, request_headers: { set: { X-A: b, host: c.example }, remove: [cookie] }, \
             response_headers: { remove: [server] }, \
             http: { response_timeout: 1s, idle_timeout: 2s, max_body_size: off }",
        );
        assert!(rule.report_only);
        assert_eq!(rule.rewrite.expect("on").apply("/api/x?y"), "/v1/x?y");
        assert!(
            !rule
                .clients
                .expect("on")
                .allows(crate::policy::client_address::Peer::Ip("192.0.2.1".parse().expect("an address")))
        );
        assert_eq!((rule.request_headers.set.len(), rule.request_headers.remove.len()), (2, 1));
        assert_eq!(rule.response_headers.remove, ["server"]);
        let (response_timeout, idle_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(rule.http, HttpLimits { response_timeout, idle_timeout, max_body_size: None });
    }

    #[test]
    fn policies_say_what_is_wrong_with_them() {
        let text = "defaults:
  request_headers: { set: { upgrade: x } }
rules:
  - { name: a, upstream: chat, rewrite: { strip_prefix: api }, clients: { deny: [all] } }
  - { name: b, upstream: chat, rewrite: {}, response_headers: { remove: [content-length] } }
  - { name: c, upstream: chat, http: { response_timeout: 2h, idle_timeout: 1ms, max_body_size: 0B } }
  - { name: d, upstream: chat, sticky: { cookie: {}, hash: client_ip } }
  - { name: e, upstream: chat, sticky: { hash: ip } }
";
        let found = faults(&[], text);
        let expected = [
            ":4: defaults.request_headers.set.upgrade: \"x\"; allowed: any header but",
            ":6: rules[0].rewrite.strip_prefix: \"api\"; allowed: a path",
            ":6: rules[0].clients.deny[0]: \"all\"; allowed: a network",
            ":7: rules[1].rewrite: a mapping; allowed: a mapping with strip_prefix or add_prefix, or `off`",
            ":7: rules[1].response_headers.remove[0]: \"content-length\"; allowed: any header but",
            ":8: rules[2].http.response_timeout: \"2h\"; allowed: a duration from \"100ms\" to \"1h\"",
            ":8: rules[2].http.idle_timeout: \"1ms\"; allowed: a duration from \"100ms\" to \"24h\"",
            ":8: rules[2].http.max_body_size: \"0B\"; allowed: a size from",
            ":9: rules[3].sticky.hash: \"client_ip\"; allowed: only one of `cookie` and `hash`",
            ":10: rules[4].sticky.hash: \"ip\"; allowed: `client_ip`,",
        ];
        for expected in expected {
            assert!(
                found.iter().any(|fault| fault.starts_with(&format!("a.yaml{expected}"))),
                "{expected}\n{found:#?}"
            );
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn a_cookie_is_signed_with_the_secrets_of_files_or_one_of_our_own() {
        let cookie = |keys: &str| match rule(keys).sticky {
            Some(Sticky::Cookie(cookie)) => cookie,
            other => panic!("{other:?}"),
        };
        let issued = |cookie: &StickyCookie| cookie.issue("r", "e", 1000, 7, false);
        let trimmed = StickyCookie::new(
            "sluicegate",
            Some(COOKIE_TTL.0),
            SameSite::Lax,
            Secure::Auto,
            &[b"0123456789abcdef".to_vec()],
        )
        .expect("sound");
        let of_file = cookie("upstream: chat, sticky: { cookie: { secret_files: [a.key] } }");
        assert_eq!(issued(&of_file), issued(&trimmed));
        let (one, other) = (cookie("upstream: chat, sticky: { cookie: {} }"), own_secret());
        assert_ne!(issued(&one), issued(&of_file));
        assert_eq!(issued(&one), issued(&cookie("upstream: chat, sticky: { cookie: {} }")), "the same until a restart");
        assert_ne!(other, &[0; 32]);
        let session = cookie("upstream: chat, sticky: { cookie: { ttl: session, same_site: strict, secure: on } }");
        assert!(issued(&session).ends_with("; Path=/; HttpOnly; SameSite=Strict; Secure"), "{}", issued(&session));
        assert!(matches!(
            rule("upstream: chat, sticky: { hash: \"query:t\" }").sticky,
            Some(Sticky::Hash(HashKey::Query(_)))
        ));

        let loaded = read(&[], &rules("upstream: chat, sticky: { cookie: { same_site: none, secure: off } }"));
        let warnings: Vec<String> = loaded.expect("sound").warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.iter().any(|warning| warning.contains("rules[0].sticky.cookie: no secret_files")));
        assert!(warnings.iter().any(|warning| warning.contains("same_site: `none` without `secure`")), "{warnings:#?}");
        let found = faults(
            &[("short", b"0123456789\n")],
            &rules("upstream: chat, sticky: { cookie: { name: \"a b\", ttl: 1s, secret_files: [short, none] } }"),
        );
        assert!(
            found[0].contains("sticky.cookie.secret_files[0]: \"short\"; allowed: a file of 16 to 4096"),
            "{found:#?}"
        );
        assert!(found[1].contains("sticky.cookie.secret_files[1]: \"none\"; allowed: a file"), "{found:#?}");
    }

    #[test]
    fn what_excludes_each_other_is_not_merged() {
        let first = |text: &str| read(&[], text).expect("sound").config.rules.remove(0).sticky;
        let hash = "defaults: { sticky: { hash: client_ip } }\n";
        assert!(matches!(first(&format!("{hash}rules: [{{ name: r, upstream: chat }}]")), Some(Sticky::Hash(_))));
        let cookie = format!("{hash}rules: [{{ name: r, upstream: chat, sticky: {{ cookie: {{}} }} }}]");
        assert!(matches!(first(&cookie), Some(Sticky::Cookie(_))));
        assert!(first(&format!("{hash}rules: [{{ name: r, upstream: chat, sticky: off }}]")).is_none());
    }

    #[test]
    fn the_process_has_its_own_keys() {
        let key: &[u8] = b"0123456789abcdef\n";
        let text = "access_log: errors\nprobes: { bind: \"0.0.0.0:0\" }\n\
                    admin: { bind: \"0.0.0.0:0\", token_file: admin.key }\n\
                    upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"], balance: hash }]\n";
        let config = read(&[("admin.key", key)], text).expect("sound").config;
        assert_eq!((config.access_log, config.upstreams[0].balance), (AccessLog::Errors, Balance::Hash));
        assert!(config.probes.is_some());
        let admin = config.admin.expect("on");
        assert!(admin.token.is_some_and(|token| token.matches(b"0123456789abcdef")));
        for (text, expected) in [
            ("admin: { bind: \"0.0.0.0:1\" }", "admin.bind: \"0.0.0.0:1\"; allowed: a loopback address; or"),
            ("admin: { token_file: none }", "admin.token_file: \"none\"; allowed: a file that can be read"),
            ("admin: { token_file: short }", "admin.token_file: a token that is short"),
            ("probes: { bind: \"127.0.0.1:9901\" }", "probes.bind: \"127.0.0.1:9901\" again"),
            ("probes: { bind: a }", "probes.bind: \"a\"; allowed: an IP address and port"),
            ("probes: {}", "probes.bind: this key is missing"),
            (
                "probes: { bind: \"127.0.0.1:0\", prestop_token_file: x }",
                "probes.prestop_token_file: this key is not in",
            ),
            ("access_log: all", "access_log: \"all\"; allowed: on, errors, off"),
        ] {
            let found = faults(&[("short", b"0123456789")], text);
            assert!(found.len() == 1 && found[0].contains(expected), "{text}\n{found:#?}");
        }
    }
}
