//! The configuration of `run --listen ADDR --to http://HOST:PORT`: one listener, one upstream, the defaults.

use std::net::{IpAddr, SocketAddr};

use super::build::{DEFAULT_ADMIN, default_head, default_shutdown, default_upstream};
use super::build_rule::{self, Names, Place};
use super::key_path::KeyPath;
use super::model::{Config, Limits, Listener};
use super::raw_rule::RawRule;
use super::yaml::Source;
use crate::policy::client_address::{Source as AddressSource, TrustedProxies};
use crate::policy::route::HostPattern;

/// Where [`simple`] puts the admin endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminBind {
    /// At 127.0.0.1:9901, from where the caller may move it to the next free port.
    #[default]
    Standard,
    /// At this address. It must be a loopback address, since writes have no token in this version.
    Address(SocketAddr),
    /// Nowhere.
    Off,
}

/// One listener `public`, one upstream and one rule, both `default`.
///
/// On a loopback address only loopback names are served, so that no page can reach it under a name of its own (DNS
/// rebinding). `to_host_port` is an endpoint that [`check_endpoint`](super::check_endpoint) accepts.
pub fn simple(listen: SocketAddr, to_host_port: &str, admin: AdminBind) -> Config {
    let source = Source::default();
    let place = Place { source: &source, path: &KeyPath::default(), main: &source };
    let raw = RawRule { name: Some("default".to_owned()), ..RawRule::default() };
    let mut faults = Vec::new();
    let names = Names { listeners: None, upstreams: None };
    let rule = build_rule::build(raw, &place, names, &mut faults).expect("a rule of defaults has no fault");
    Config {
        listeners: vec![Listener {
            name: "public".to_owned(),
            bind: listen,
            hosts: listen.ip().to_canonical().is_loopback().then(|| loopback_hosts(listen.ip())),
            head: default_head(),
            client_address: AddressSource::XForwardedFor,
        }],
        admin: match admin {
            AdminBind::Standard => Some(DEFAULT_ADMIN),
            AdminBind::Address(address) => Some(address),
            AdminBind::Off => None,
        },
        trusted_proxies: TrustedProxies::default(),
        limits: Limits::default(),
        upstreams: vec![default_upstream(to_host_port)],
        rules: vec![rule],
        shutdown: default_shutdown(),
    }
}

fn loopback_hosts(own: IpAddr) -> Vec<HostPattern> {
    let own = match own {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let mut hosts = vec![HostPattern::OneLabel("localhost".to_owned())];
    for name in ["localhost", "127.0.0.1", "[::1]", &own] {
        let host = HostPattern::Exact(name.to_owned());
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serves(listen: &str, host: &str) -> bool {
        let config = simple(listen.parse().expect("an address"), "127.0.0.1:9001", AdminBind::Off);
        config.listeners[0].hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|pattern| pattern.matches(host)))
    }

    #[test]
    fn a_loopback_address_serves_loopback_names_only() {
        for host in ["localhost", "app.localhost", "127.0.0.1", "[::1]"] {
            assert!(serves("127.0.0.1:0", host), "{host}");
        }
        assert!(serves("127.0.0.2:0", "127.0.0.2"));
        assert!(!serves("127.0.0.1:0", "rebound.example"));
        assert!(!serves("[::1]:0", "rebound.example"));
        assert!(serves("0.0.0.0:0", "anything.example"));
    }

    #[test]
    fn everything_goes_to_the_one_upstream_by_the_defaults() {
        let config = simple("127.0.0.1:0".parse().expect("an address"), "127.0.0.1:9001", AdminBind::Standard);
        assert_eq!(config.admin, Some(DEFAULT_ADMIN));
        assert_eq!(config.upstreams[config.rules[0].upstream].endpoints, ["127.0.0.1:9001"]);
        assert!(config.rules[0].handshake_per_ip.is_some_and(|limit| !limit.written));
    }
}
