//! `sluicegate check --host`: what of the machine is in a gateway's way, and how to change it.
//!
//! The values come from `/proc`. They are judged by a pure function, which changes and refuses nothing.

use std::fmt;
use std::fs;

use crate::config::Config;

/// Descriptors of a session: its client's connection and its upstream's.
const DESCRIPTORS_PER_SESSION: u64 = 2;

/// Descriptors that the gateway keeps for files, listeners and the runtime.
const RESERVED_DESCRIPTORS: u64 = 256;

/// A queue of new connections that a reconnect storm does not fill at once, and the kernel's default since 5.4.
const SOMAXCONN: u64 = 4096;

/// The range of ports that is advised: above the ports that gateways listen on.
const PORTS: Ports = Ports { first: 10_000, last: 65_535 };

/// What the kernel says of this machine; `None` where it does not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `net.ipv4.tcp_syncookies`.
    pub syncookies: Option<u64>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub ports: Option<Ports>,
    /// The hard limit of open descriptors.
    pub descriptors: Option<u64>,
}

/// The ports that connections to an upstream come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// Something of the machine that should be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostWarning {
    /// The setting.
    pub setting: &'static str,
    /// What was found, and what that leads to.
    pub found: String,
    /// What is advised.
    pub advised: String,
    /// The command that sets it.
    pub command: String,
}

impl fmt::Display for HostWarning {
    /// `host: SETTING: found FOUND; advised: ADVISED; set it with: COMMAND`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, found, advised, command } = self;
        write!(f, "host: {setting}: found {found}; advised: {advised}; set it with: {command}")
    }
}

impl Host {
    /// What this machine's kernel says.
    pub fn read() -> Self {
        Self::from_files(|path| fs::read_to_string(path).ok())
    }

    fn from_files(read: impl Fn(&str) -> Option<String>) -> Self {
        let number = |path| read(path)?.trim().parse().ok();
        Self {
            syncookies: number("/proc/sys/net/ipv4/tcp_syncookies"),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            ports: read("/proc/sys/net/ipv4/ip_local_port_range").as_deref().and_then(Ports::parse),
            descriptors: read("/proc/self/limits").as_deref().and_then(hard_descriptor_limit),
        }
    }
}

impl Ports {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(last))) if first <= last => Some(Self { first, last }),
            _ => None,
        }
    }

    fn count(self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// Reads `Max open files`, the soft limit, the hard limit. proc_pid_limits(5).
fn hard_descriptor_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// What should be changed on this machine for a configuration; `None` for rules alone.
pub fn warnings(host: &Host, config: Option<&Config>) -> Vec<HostWarning> {
    let mut found: Vec<HostWarning> = [syncookies(host), somaxconn(host)].into_iter().flatten().collect();
    if let Some(config) = config {
        found.extend(descriptors(host, config));
        found.extend(ports(host, config));
    }
    found
}

/// The settings that could not be read, so that silence is not taken for approval.
pub fn unread(host: &Host) -> Vec<&'static str> {
    let settings = [
        ("net.ipv4.tcp_syncookies", host.syncookies.is_none()),
        ("net.core.somaxconn", host.somaxconn.is_none()),
        ("net.ipv4.ip_local_port_range", host.ports.is_none()),
        ("the hard limit of open descriptors", host.descriptors.is_none()),
    ];
    settings.into_iter().filter(|(_, unread)| *unread).map(|(setting, _)| setting).collect()
}

/// Half-open connections never reach a process: only the kernel can stop a flood of them. RFC 4987 §3.6.
fn syncookies(host: &Host) -> Option<HostWarning> {
    let meaning = match host.syncookies? {
        1 => return None,
        0 => "a flood of SYNs fills the queue of new connections, and nobody gets in",
        _ => "every connection is made by a cookie, without a flood too, and loses TCP options",
    };
    Some(HostWarning {
        setting: "net.ipv4.tcp_syncookies",
        found: format!("{}: {meaning}", host.syncookies?),
        advised: "1".to_owned(),
        command: "sysctl -w net.ipv4.tcp_syncookies=1".to_owned(),
    })
}

fn somaxconn(host: &Host) -> Option<HostWarning> {
    let limit = host.somaxconn.filter(|limit| *limit < SOMAXCONN)?;
    Some(HostWarning {
        setting: "net.core.somaxconn",
        found: format!("{limit}: when more clients than that reconnect at once, their connections are dropped"),
        advised: format!("{SOMAXCONN} or more"),
        command: format!("sysctl -w net.core.somaxconn={SOMAXCONN}"),
    })
}

fn descriptors(host: &Host, config: &Config) -> Option<HostWarning> {
    let (limit, sessions) = (host.descriptors?, to_u64(config.limits.connections?));
    let wanted = sessions.saturating_mul(DESCRIPTORS_PER_SESSION).saturating_add(RESERVED_DESCRIPTORS);
    (limit < wanted).then(|| HostWarning {
        setting: "hard limit of open descriptors",
        found: format!(
            "{limit} here, which is {} of the {sessions} sessions of `limits.connections`",
            sessions_within(limit)
        ),
        advised: format!("{wanted}: {DESCRIPTORS_PER_SESSION} a session and {RESERVED_DESCRIPTORS}"),
        command: format!("`LimitNOFILE={wanted}` in the unit of systemd, or `ulimit -n {wanted}` before the start"),
    })
}

/// Two connections between the same addresses and to the same port need two ports.
fn ports(host: &Host, config: &Config) -> Vec<HostWarning> {
    let Some(ports) = host.ports else { return Vec::new() };
    // Descriptors that do not reach for what is written have a warning of their own.
    let by_descriptors = host.descriptors.map_or(u64::MAX, sessions_within);
    let of_process = config.limits.connections.map_or(by_descriptors, to_u64);
    let mut found = Vec::new();
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let rules = config.rules.iter().filter(|rule| rule.action.upstream() == Some(index));
        let of_rules = rules.map(|rule| rule.connections_total.map_or(u64::MAX, to_u64)).fold(0, u64::saturating_add);
        let sessions = of_process.min(of_rules).div_ceil(to_u64(upstream.endpoints.len()).max(1));
        // A Unix socket needs no port.
        let needs_none = upstream.endpoints.iter().all(|endpoint| endpoint.starts_with("unix:"));
        if needs_none || sessions <= ports.count() {
            continue;
        }
        let wide = ports.count() >= PORTS.count();
        let more = "more endpoints, or more addresses of one";
        found.push(HostWarning {
            setting: "net.ipv4.ip_local_port_range",
            found: format!(
                "{} {}, which is {} connections to one address; an endpoint of `{}` may get {sessions} sessions",
                ports.first,
                ports.last,
                ports.count(),
                upstream.name
            ),
            advised: match (wide, sessions > PORTS.count()) {
                (true, _) => more.to_owned(),
                (false, true) => format!("{} {}, and {more}", PORTS.first, PORTS.last),
                (false, false) => format!("{} {}", PORTS.first, PORTS.last),
            },
            command: match wide {
                true => format!("`upstreams[{index}].endpoints`, or a lower `limits.connections`"),
                false => format!("sysctl -w net.ipv4.ip_local_port_range=\"{} {}\"", PORTS.first, PORTS.last),
            },
        });
    }
    found
}

/// The sessions for which so many descriptors are enough.
fn sessions_within(descriptors: u64) -> u64 {
    descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_SESSION
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdminBind, simple};

    const SOUND: Host = Host {
        syncookies: Some(1),
        somaxconn: Some(4096),
        ports: Some(Ports { first: 32_768, last: 60_999 }),
        descriptors: Some(1 << 20),
    };

    /// One upstream with one endpoint; `total` is its only rule's.
    fn config(connections: Option<usize>, total: Option<usize>) -> Config {
        let mut config = simple("127.0.0.1:0".parse().expect("an address"), "127.0.0.1:9001", AdminBind::Off);
        config.limits.connections = connections;
        config.rules[0].connections_total = total;
        config
    }

    fn settings(host: Host, config: &Config) -> Vec<&'static str> {
        warnings(&host, Some(config)).into_iter().map(|warning| warning.setting).collect()
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        let host = Host::from_files(|path| {
            let text = match path {
                "/proc/sys/net/ipv4/tcp_syncookies" => "1\n",
                "/proc/sys/net/core/somaxconn" => "4096\n",
                "/proc/sys/net/ipv4/ip_local_port_range" => "32768\t60999\n",
                "/proc/self/limits" => {
                    "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max processes             1                    2                    processes \n\
                     Max open files            1024                 1048576              files     \n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!(host, SOUND);
        assert_eq!(hard_descriptor_limit("Max open files   1024   unlimited   files"), Some(u64::MAX));
        let nothing = Host::from_files(|_| None);
        assert_eq!(nothing, Host::default());
        assert_eq!(unread(&nothing).len(), 4);
        assert!(unread(&SOUND).is_empty());
        assert_eq!(Host::from_files(|_| Some("x".to_owned())), Host::default());
    }

    #[test]
    fn a_sound_machine_has_no_warning_and_an_unread_one_none_that_is_made_up() {
        assert_eq!(warnings(&SOUND, Some(&config(None, Some(20_000)))), []);
        assert_eq!(warnings(&Host::default(), Some(&config(Some(1_000_000), None))), []);
        assert_eq!(warnings(&SOUND, None), []);
    }

    #[test]
    fn a_warning_says_what_was_found_and_what_sets_it() {
        let host = Host { syncookies: Some(0), somaxconn: Some(128), ..SOUND };
        let shown: Vec<String> = warnings(&host, None).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "host: net.ipv4.tcp_syncookies: found 0: a flood of SYNs fills the queue of new connections, and nobody \
                 gets in; advised: 1; set it with: sysctl -w net.ipv4.tcp_syncookies=1",
                "host: net.core.somaxconn: found 128: when more clients than that reconnect at once, their connections \
                 are dropped; advised: 4096 or more; set it with: sysctl -w net.core.somaxconn=4096",
            ]
        );
        let always = Host { syncookies: Some(2), ..SOUND };
        assert_eq!(warnings(&always, None).len(), 1);
    }

    #[test]
    fn descriptors_must_reach_for_the_sessions_that_are_written() {
        let host = Host { descriptors: Some(20_256), ..SOUND };
        assert!(settings(host, &config(Some(10_000), Some(10))).is_empty());
        let [warning] = &warnings(&host, Some(&config(Some(10_001), Some(10))))[..] else { panic!("one") };
        assert!(warning.found.starts_with("20256 here, which is 10000 of the 10001 sessions"), "{warning}");
        assert!(warning.command.contains("LimitNOFILE=20258"), "{warning}");
        // Without a limit in the file the process takes what there is.
        assert!(settings(Host { descriptors: Some(300), ..SOUND }, &config(None, None)).is_empty());
    }

    #[test]
    fn ports_must_reach_for_the_sessions_to_one_endpoint() {
        const SETTING: &str = "net.ipv4.ip_local_port_range";
        assert!(settings(SOUND, &config(None, Some(28_232))).is_empty());
        assert_eq!(settings(SOUND, &config(None, Some(28_233))), [SETTING]);
        assert!(settings(SOUND, &config(Some(28_232), None)).is_empty());
        // The descriptors end it too: (2^20 - 256) / 2 sessions are more.
        assert_eq!(settings(SOUND, &config(None, None)), [SETTING]);
        assert!(settings(Host { descriptors: Some(50_000), ..SOUND }, &config(None, None)).is_empty());

        let mut shared = config(None, Some(56_464));
        assert_eq!(settings(SOUND, &shared), [SETTING]);
        shared.upstreams[0].endpoints.push("127.0.0.1:9002".to_owned());
        assert!(settings(SOUND, &shared).is_empty());

        let advice = |host, total| {
            let [warning] = &warnings(&host, Some(&config(None, Some(total))))[..] else { panic!("one") };
            warning.advised.clone()
        };
        let wide = Host { ports: Some(Ports { first: 1024, last: 65_535 }), ..SOUND };
        assert_eq!(advice(SOUND, 30_000), "10000 65535");
        assert_eq!(advice(SOUND, 60_000), "10000 65535, and more endpoints, or more addresses of one");
        assert_eq!(advice(wide, 100_000), "more endpoints, or more addresses of one");
    }
}
