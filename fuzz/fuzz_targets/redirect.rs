//! Redirects: no request adds a header or leads to another site than the template names, as browsers read it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::policy::redirect::Redirect;
use url::Url;

const HOST: &str = "asked.example";

fuzz_target!(|input: &str| {
    let (template, target) = input.split_once('\n').unwrap_or(("https://{host}{path_and_query}", input));
    let Ok(redirect) = Redirect::new(template, 308) else { return };
    let location = redirect.location(HOST, target);
    assert!(location.bytes().all(|byte| byte.is_ascii_graphic()));
    let base = Url::parse("http://asked.example/dir/page").expect("a URL");
    let (Ok(plain), Ok(led)) = (base.join(&redirect.location(HOST, "/")), base.join(&location)) else { return };
    assert_eq!((led.scheme(), led.host_str(), led.port()), (plain.scheme(), plain.host_str(), plain.port()));
    assert!(led.username().is_empty() && led.password().is_none());
    // A host that is none is left out, so it names no other site either.
    assert!(Redirect::new("https://{host}/", 308).expect("sound").location(target, "/").bytes().all(|b| b != b'@'));
});
