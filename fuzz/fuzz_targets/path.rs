//! Paths: the normal form means what was written, is its own normal form, and has nothing that backends read in two
//! ways; a rewrite takes off exactly what the rule matched.
#![no_main]

use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use sluicegate::policy::rewrite::Rewrite;
use sluicegate::policy::route::{MatchSpec, Matcher, PathSpec, Request, normalize_path};

fuzz_target!(|input: &str| {
    let (prefix, path) = input.split_once('\n').unwrap_or(("/api", input));
    // Callers take the query off first.
    let Some(normal) = normalize_path(path).ok().filter(|_| !path.contains('?')) else { return };
    assert_eq!(normalize_path(&normal), Ok(normal.clone()));
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    assert_eq!(percent_decode_str(&normal).collect::<Vec<u8>>(), decoded);
    let segments = |byte: &u8| *byte == b'/' || *byte == b'\\';
    assert!(decoded.split(segments).all(|segment| !matches!(segment.split(|b| *b == b';').next(), Some(b"." | b".."))));
    assert_eq!(decoded.iter().filter(|byte| segments(byte)).count(), path.matches('/').count());

    let Ok(rewrite) = Rewrite::new(Some(prefix), None) else { return };
    let spec = MatchSpec { path: Some(PathSpec::Prefix(prefix.to_owned())), ..MatchSpec::default() };
    let matcher = Matcher::new(spec).expect("a prefix for a rewrite is one for a match");
    let headers = http::HeaderMap::new();
    let matched = matcher.matches(&Request { listener: "", host: "", path: &normal, headers: &headers });
    let rewritten = rewrite.apply(path);
    if !matched {
        // A prefix with parameters of its own may be found where a rule does not look for it.
        assert!(rewritten == path || prefix.contains(';'));
    } else {
        let rest = normalize_path(&rewritten).expect("the end of a sound path is one");
        let prefix = normalize_path(prefix).expect("a prefix for a rewrite is a path");
        let prefix = prefix.strip_suffix('/').unwrap_or(&prefix);
        assert_eq!(segments_as_read(&normal), segments_as_read(&format!("{prefix}{rest}")));
    }
});

/// The segments that a backend sees which merges slashes and cuts parameters off.
fn segments_as_read(path: &str) -> Vec<&str> {
    let names = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).collect()
}
