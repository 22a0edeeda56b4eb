//! Hosts and host patterns: read as the `http` crate reads them, the same again once written, and matched by labels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::policy::route::{HostPattern, parse_authority};

fuzz_target!(|input: &str| {
    let (pattern, text) = input.split_once('\n').unwrap_or(("*.example.com", input));
    let Ok(authority) = parse_authority(text) else { return };
    let reference: http::uri::Authority = text.parse().expect("what is accepted is an authority");
    let port = authority.port.map_or(String::new(), |port| format!(":{port}"));
    if !authority.host.starts_with('[') {
        // The reference leaves case alone, and addresses in their long forms.
        assert_eq!(authority.host, reference.host().to_ascii_lowercase());
    }
    assert_eq!(authority.port, reference.port_u16());
    assert_eq!(parse_authority(&format!("{}{port}", authority.host)), Ok(authority.clone()));

    let Ok(pattern) = HostPattern::parse(pattern) else { return };
    let host = authority.host.trim_end_matches('.');
    let (first, above) = host.split_once('.').unwrap_or((host, ""));
    let expected = match &pattern {
        HostPattern::Exact(name) => host == name,
        HostPattern::OneLabel(name) => !first.is_empty() && above == name,
        HostPattern::AnyLabels(name) => host.ends_with(&format!(".{name}")),
    };
    assert_eq!(pattern.matches(&authority.host), expected);
});
