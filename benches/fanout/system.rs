//! What is measured: the gateway with each engine, and Debian's Pushpin.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::Result;
use super::proxy::{Proxy, free_address};

/// How subscribers' backends are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// GRIP over a WebSocket to the backend: two descriptors a client.
    WebSocket,
    /// WebSocket-over-HTTP: one.
    OverHttp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Redis,
    /// Pushpin without its limit on deliveries a second.
    Pushpin,
    /// Pushpin as it is packaged.
    Packaged,
}

/// In the order of the tables.
pub const KINDS: [Kind; 4] = [Kind::Memory, Kind::Redis, Kind::Pushpin, Kind::Packaged];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "Sluicegate, memory",
            Self::Redis => "Sluicegate, Redis",
            Self::Pushpin => "Pushpin, unlimited",
            Self::Packaged => "Pushpin",
        }
    }
}

/// One of them at work.
pub struct System {
    pub proxy: Proxy,
    pub redis: Option<Proxy>,
    pub publish: SocketAddr,
}

impl System {
    pub fn start(kind: Kind, mode: Mode, backend: SocketAddr) -> Result<Self> {
        let publish = free_address()?;
        let redis = if kind == Kind::Redis { Some(redis()?) } else { None };
        let proxy = match kind {
            Kind::Pushpin => pushpin(mode, backend, publish, "1000000")?,
            Kind::Packaged => pushpin(mode, backend, publish, "2500")?,
            Kind::Memory | Kind::Redis => gateway(mode, backend, publish, redis.as_ref())?,
        };
        Ok(Self { proxy, redis, publish })
    }

    /// CPU seconds of the gateway, and of Redis.
    pub fn cpu(&self) -> Result<(f64, f64)> {
        Ok((self.proxy.cpu()?, self.redis.as_ref().map_or(Ok(0.0), Proxy::cpu)?))
    }
}

fn gateway(mode: Mode, backend: SocketAddr, publish: SocketAddr, redis: Option<&Proxy>) -> Result<Proxy> {
    let engine =
        redis.map_or("memory".to_owned(), |redis| format!("{{ redis: {{ url: \"redis://{}\" }} }}", redis.address));
    let backplane = match mode {
        Mode::WebSocket => "grip",
        Mode::OverHttp => "grip_http",
    };
    let more = format!(
        "backplane: {{ engine: {engine}, publish: {{ bind: \"{publish}\" }} }}
defaults: {{ backplane: {backplane}, handshake: {{ per_ip: off }}, connections: {{ per_ip: off }} }}
"
    );
    Proxy::administered("sluicegate", [backend, backend], &more)
}

/// Debian's Redis, which keeps nothing on disk.
fn redis() -> Result<Proxy> {
    let address = free_address()?;
    let files = tempfile::tempdir()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(files.path());
    Proxy::other("redis", &mut command, 0, address, files)
}

/// Debian's Pushpin with its own configuration but for what has to differ: addresses and folders of this run, zurl as one
/// of its services, room in zurl for as many WebSockets as there are subscribers, and its limit on deliveries a second
/// (2,500 as packaged).
fn pushpin(mode: Mode, backend: SocketAddr, publish: SocketAddr, message_rate: &str) -> Result<Proxy> {
    let address = free_address()?;
    let files = tempfile::tempdir()?;
    let folder = files.path().display();
    let from = Path::new("/usr/lib/pushpin");
    std::fs::create_dir_all(files.path().join("lib/runner"))?;
    for name in [
        "internal.conf",
        "runner/zurl.conf.template",
        "runner/m2adapter.conf.template",
        "runner/mongrel2.conf.template",
    ] {
        let text = std::fs::read_to_string(from.join(name))?
            .replace("ipc:///var/run/zurl/zurl-", "ipc://{rundir}/{ipc_prefix}zurl-")
            .replace("max_open_requests=2000\n", "max_open_requests=18000\n");
        std::fs::write(files.path().join("lib").join(name), text)?;
    }
    let mut text = String::new();
    for line in std::fs::read_to_string("/etc/pushpin/pushpin.conf")?.lines() {
        let key = line.split_once('=').map_or("", |(key, _)| key);
        let value = match key {
            "include" => format!("{folder}/lib/internal.conf\nlibdir={folder}/lib"),
            "rundir" | "logdir" => format!("{folder}"),
            "services" => "condure,zurl,pushpin-proxy,pushpin-handler".to_owned(),
            "http_port" => address.to_string(),
            "message_rate" => message_rate.to_owned(),
            "push_in_http_port" => publish.port().to_string(),
            "push_in_spec" | "push_in_sub_specs" | "command_spec" => format!("tcp://{}", free_address()?),
            _ => {
                text += &format!("{line}\n");
                continue;
            }
        };
        text += &format!("{key}={value}\n");
    }
    let file = files.path().join("pushpin.conf");
    std::fs::write(&file, text)?;
    let over_http = if mode == Mode::OverHttp { ",over_http" } else { "" };
    std::fs::write(files.path().join("routes"), format!("* {backend}{over_http}\n"))?;
    let mut command = Command::new("pushpin");
    command.arg(format!("--config={}", file.display()));
    Proxy::other("pushpin", &mut command, 4, address, files)
}
