//! Which client addresses a rule serves.

use ipnet::IpNet;

use super::Fault;
use super::client_address::{Peer, parse_network};

/// Networks that are served, and networks that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl Clients {
    /// Reads networks (`10.0.0.0/8`) and addresses. An empty `allow` is everybody.
    ///
    /// # Errors
    /// One fault per entry that is neither: `allow[2]`.
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut read = |key: &str, entries: &[String]| {
            let mut networks = Vec::with_capacity(entries.len());
            for (index, entry) in entries.iter().enumerate() {
                match parse_network(entry) {
                    Some(network) => networks.push(network),
                    None => {
                        let allowed = "a network such as \"10.0.0.0/8\", or an address";
                        faults.push(Fault::new(format!("{key}[{index}]"), format!("{entry:?}"), allowed));
                    }
                }
            }
            networks
        };
        let clients = Self { allow: read("allow", allow), deny: read("deny", deny) };
        if faults.is_empty() { Ok(clients) } else { Err(faults) }
    }

    /// Whether a client is served. `deny` wins. A client without an address is in no network.
    pub fn allows(&self, client: Peer) -> bool {
        let is_in = |networks: &[IpNet]| {
            client.ip().is_some_and(|address| networks.iter().any(|network| network.contains(&address.to_canonical())))
        };
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn clients(allow: &[&str], deny: &[&str]) -> Result<Clients, Vec<Fault>> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Clients::new(&owned(allow), &owned(deny))
    }

    #[test]
    fn deny_wins_and_no_allow_is_everybody() {
        let allows = |clients: &Clients, ip: &str| clients.allows(ip.parse::<IpAddr>().unwrap().into());
        let inner = clients(&["10.0.0.0/8", "2001:db8::/32"], &["10.6.6.6"]).unwrap();
        assert!(allows(&inner, "10.1.1.1") && allows(&inner, "2001:db8::1"));
        assert!(!allows(&inner, "10.6.6.6") && !allows(&inner, "192.0.2.1") && !allows(&inner, "2001:db9::1"));
        let others = clients(&[], &["192.0.2.0/24"]).unwrap();
        assert!(allows(&others, "10.1.1.1") && !allows(&others, "192.0.2.9"));
        assert!(allows(&Clients::default(), "192.0.2.1"));
        assert!(!inner.allows(Peer::Unix) && others.allows(Peer::Unix));
    }

    #[test]
    fn ipv4_in_ipv6_is_ipv4() {
        let inner = clients(&["10.0.0.0/8"], &["::ffff:10.6.6.0/120"]).unwrap();
        let allows = |ip: &str| inner.allows(Peer::Ip(ip.parse().unwrap()));
        assert!(allows("::ffff:10.1.1.1"));
        assert!(!allows("10.6.6.6") && !allows("::ffff:10.6.6.6"));
    }

    #[test]
    fn what_is_no_network_is_named() {
        let keys = |allow: &[&str], deny: &[&str]| {
            clients(allow, deny).unwrap_err().into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(&["10.0.0.0/8", "all"], &["10.0.0.0/33"]), ["allow[1]", "deny[0]"]);
    }
}
