//! The configuration of `run --listen ADDR --to http://HOST:PORT`: one listener, one upstream, the defaults.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::build::{DEFAULT_ADMIN, build};
use super::model::Config;
use super::yaml::Source;

/// Where [`simple`] puts the admin endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminBind {
    /// At 127.0.0.1:9901, from where the caller may move it to the next free port.
    #[default]
    Standard,
    /// At this address. It must be a loopback address, since without a file there is no token.
    Address(SocketAddr),
    /// Nowhere.
    Off,
}

/// One listener `public`, one upstream and one rule, both `default`.
///
/// On a loopback address only loopback names are served, so that no page can reach it under a name of its own (DNS
/// rebinding). `to_host_port` is an endpoint that [`check_endpoint`](super::check_endpoint) accepts.
pub fn simple(listen: SocketAddr, to_host_port: &str, admin: AdminBind) -> Config {
    let mut listener = json!({ "name": "public", "bind": listen.to_string() });
    if listen.ip().to_canonical().is_loopback() {
        listener["hosts"] = json!(loopback_hosts(listen.ip()));
    }
    let admin = match admin {
        AdminBind::Standard => json!({ "bind": DEFAULT_ADMIN.to_string() }),
        AdminBind::Address(address) => json!({ "bind": address.to_string() }),
        AdminBind::Off => json!("off"),
    };
    let tree = json!({
        "listeners": [listener],
        "admin": admin,
        "upstreams": [{ "name": "default", "endpoints": [to_host_port] }],
    });
    let mut main = Source::default();
    main.tree = tree;
    let (config, _) = build(&main, &[], &mut Vec::new()).expect("these settings have no fault");
    config
}

fn loopback_hosts(own: IpAddr) -> Vec<String> {
    let own = match own {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let mut hosts: Vec<String> = ["*.localhost", "localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
    if !hosts.contains(&own) {
        hosts.push(own);
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
        assert_eq!(config.admin.map(|admin| admin.bind), Some(DEFAULT_ADMIN));
        assert_eq!(config.rules[0].action.upstream(), Some(0));
        assert_eq!(config.upstreams[0].endpoints, ["127.0.0.1:9001"]);
        assert!(config.rules[0].handshake_per_ip.is_some_and(|limit| !limit.written));
    }
}
