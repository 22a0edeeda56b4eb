//! Origins: whatever is allowed is, to a browser's URL parser, a page of the host that was asked for or is in the list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::policy::origin::{Allow, OriginPolicy, Site};
use url::Url;

const LIST: [&str; 4] =
    ["https://app.example.com", "https://*.example.net", "https://**.example.org", "http://local:*"];

fuzz_target!(|input: &[u8]| {
    let [control, origin @ ..] = input else { return };
    let site = Site {
        host: "example.com",
        port: [None, Some(443), Some(8080)][usize::from(control >> 2) % 3],
        secure: [None, Some(true), Some(false)][usize::from(control & 3) % 3],
    };
    let own = OriginPolicy::new(Allow::List(vec!["same_origin".to_owned()]), false).expect("an entry");
    let listed = OriginPolicy::new(Allow::List(LIST.map(str::to_owned).to_vec()), false).expect("entries");
    let (same, named) = (own.decide(&[origin], &site).is_ok(), listed.decide(&[origin], &site).is_ok());
    assert!(own.decide(&[origin, origin], &site).is_err() && own.decide(&[], &site).is_err());
    if !same && !named {
        return;
    }
    let text = std::str::from_utf8(origin).expect("it is text");
    let Ok(page) = Url::parse(text) else {
        // A label in Punycode that encodes nothing: no browser has a page there, so none sends it.
        assert!(text.to_ascii_lowercase().contains("xn--"));
        return;
    };
    let host = page.host_str().expect("it has a host");
    assert!(page.username().is_empty() && page.path() == "/" && page.query().is_none() && page.fragment().is_none());
    if same {
        assert_eq!(host, site.host);
        assert!(site.secure.is_none_or(|secure| secure == (page.scheme() == "https")));
        let port = site.port.unwrap_or(if page.scheme() == "https" { 443 } else { 80 });
        let either = site.secure.is_none() && site.port.is_none();
        assert!(
            page.port_or_known_default() == Some(port)
                || (either && matches!(page.port_or_known_default(), Some(80 | 443)))
        );
    } else {
        let tls = page.scheme() == "https" && page.port_or_known_default() == Some(443);
        let one_label = host.strip_suffix(".example.net").is_some_and(|label| !label.contains('.'));
        let listed = host == "app.example.com" || one_label || host.ends_with(".example.org");
        assert!((tls && listed) || (page.scheme() == "http" && host == "local"));
    }
});
