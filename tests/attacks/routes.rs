//! The three ways to a backend: direct, through nginx, and through the gateway.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use crate::backend::Backend;
use crate::bytes::Head;
use crate::case::{self, Measure, Settings};
use crate::wire::{Wire, pause};

/// How long a program may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// How often it is looked whether it did.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A way to a backend.
pub enum Route {
    /// No proxy.
    Direct(SocketAddr),
    /// Debian's nginx.
    Nginx(Nginx),
    /// The gateway.
    Gateway(Gateway),
}

impl Route {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Direct(address) => *address,
            Self::Nginx(nginx) => nginx.address,
            Self::Gateway(gateway) => gateway.address,
        }
    }

    /// What a case counts.
    pub fn measure(&self, what: Measure, backend: &Backend, clients: &[Arc<Wire>]) -> usize {
        match (what, self) {
            (Measure::Nothing, _) => 0,
            (Measure::Descriptors, Self::Gateway(gateway)) => gateway.descriptors_more(),
            (Measure::Descriptors, _) => {
                let connections = backend.connections();
                connections.iter().chain(clients).filter(|wire| !wire.progress().1).count()
            }
            (Measure::Series, Self::Gateway(gateway)) => gateway.series().saturating_sub(gateway.series_before),
            (Measure::Series, _) => {
                let heads = backend.connections().into_iter().filter_map(|wire| Head::parse(&wire.heard().bytes));
                heads.map(|head| head.line).collect::<BTreeSet<_>>().len()
            }
        }
    }
}

/// A program of ours in a group of its own. Dropped, it is ended with all that it has started.
struct Program(Child);

impl Program {
    /// Starts it. Where setpriv is there, as on Debian, it also ends when the test is killed.
    fn start(path: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = Command::new(if setpriv.exists() { setpriv } else { path });
        if setpriv.exists() {
            command.args(["--pdeathsig", "TERM"]).arg(path);
        }
        configure(command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0));
        Self(command.spawn().unwrap_or_else(|why| panic!("{}: {why}", path.display())))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

/// nginx, as its own documentation of WebSockets sets it up, with one location that is denied.
pub struct Nginx {
    process: Program,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Where it is: not on every user's path.
    pub const PATH: &str = "/usr/sbin/nginx";

    /// Starts it in front of a backend.
    pub fn start(backend: SocketAddr, settings: &Settings) -> Self {
        assert!(Path::new(Self::PATH).exists(), "nginx is not installed: scripts/setup test");
        // Somebody may take the port between the look for a free one and nginx.
        (0..5).find_map(|_| Self::try_start(backend, settings)).expect("nginx starts")
    }

    fn try_start(backend: SocketAddr, settings: &Settings) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, Self::configuration(address, backend, settings, folder.path())).expect("a file");
        let process = Program::start(Path::new(Self::PATH), |nginx| {
            nginx.arg("-c").arg(&file).arg("-p").arg(folder.path()).stderr(Stdio::null());
        });
        let mut nginx = Self { process, address, folder };
        let deadline = Instant::now() + STARTS_WITHIN;
        // Written when it listens. That the port takes connections says less: somebody else may have it, or a connection
        // of our own to it may have met itself.
        while !std::fs::read_to_string(nginx.folder.path().join("nginx.pid")).is_ok_and(|pid| pid.ends_with('\n')) {
            if nginx.process.has_ended() || Instant::now() > deadline {
                return None;
            }
            pause(LOOK_AGAIN);
        }
        (!nginx.process.has_ended()).then_some(nginx)
    }

    fn configuration(address: SocketAddr, backend: SocketAddr, settings: &Settings, folder: &Path) -> String {
        let (extra, others) = match settings.nginx {
            case::Nginx::Usual | case::Nginx::Absent => ("", String::new()),
            case::Nginx::Server(extra) => (extra, String::new()),
            case::Nginx::Hosts(extra) => (extra, format!("server {{ listen {address} default_server; return 421; }}")),
        };
        format!(
            "worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log /dev/null;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
               fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
               map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
               limit_req_zone $binary_remote_addr zone=handshakes:1m rate=1r/m;
               limit_conn_zone $binary_remote_addr zone=sessions:1m;
               server {{
                 listen {address}; {extra}
                 location /internal {{ return 403; }}
                 location / {{
                   proxy_pass http://{backend};
                   proxy_http_version 1.1;
                   proxy_set_header Upgrade $http_upgrade;
                   proxy_set_header Connection $connection_upgrade;
                   proxy_set_header Host $http_host;
                   proxy_set_header X-Real-IP $remote_addr;
                   proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                   proxy_read_timeout 1h;
                 }}
               }}
               {others}
             }}",
            folder = folder.display(),
        )
    }
}

/// The gateway with its defaults, with one rule that denies.
pub struct Gateway {
    process: Program,
    address: SocketAddr,
    admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    resident_before: u64,
    descriptors_before: usize,
    series_before: usize,
    _folder: tempfile::TempDir,
}

impl Gateway {
    /// Starts it in front of a backend.
    pub fn start(backend: SocketAddr, settings: &Settings) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let configuration = Self::configuration(backend, settings);
        let file = folder.path().join("sluicegate.yaml");
        std::fs::write(&file, &configuration).expect("a file");
        let mut process = Program::start(Path::new(env!("CARGO_BIN_EXE_sluicegate")), |gateway| {
            gateway.args(["run", "-c"]).arg(&file).stderr(Stdio::piped());
        });
        let log = Arc::<Mutex<Vec<String>>>::default();
        let lines = BufReader::new(process.0.stderr.take().expect("it is piped")).lines();
        thread::spawn({
            let log = log.clone();
            move || lines.map_while(Result::ok).for_each(|line| log.lock().push(line))
        });
        let deadline = Instant::now() + STARTS_WITHIN;
        while !log.lock().iter().any(|line| is_event(line, "started")) {
            let ended = process.has_ended();
            assert!(!ended && Instant::now() < deadline, "{:?}, on\n{configuration}", log.lock());
            pause(LOOK_AGAIN);
        }
        let listening = |name| log.lock().iter().find_map(|line| listening(line, name)).expect("it has started");
        let (address, admin) = (listening("public"), listening("admin"));
        let resident_before = memory(process.0.id(), "VmRSS:");
        let mut gateway = Self {
            process,
            address,
            admin,
            log,
            resident_before,
            descriptors_before: 0,
            series_before: 0,
            _folder: folder,
        };
        gateway.series_before = gateway.series();
        gateway.descriptors_before = gateway.descriptors();
        gateway
    }

    fn configuration(backend: SocketAddr, settings: &Settings) -> String {
        let main: String = settings.main.iter().map(|line| format!("{line}\n")).collect();
        let rules: String = settings.rules.iter().map(|rule| format!("  - {rule}\n")).collect();
        let rule: String = settings.rule.iter().map(|line| format!("    {line}\n")).collect();
        let comma = if settings.listener.is_empty() { "" } else { ", " };
        format!(
            "version: 1\n\
             listeners: [{{ name: public, bind: \"127.0.0.1:0\"{comma}{listener} }}]\n\
             admin: {{ bind: \"127.0.0.1:0\" }}\n\
             {main}\
             upstreams: [{{ name: app, endpoints: [\"{backend}\"] }}]\n\
             rules:\n  \
               - {{ name: internal, match: {{ path_prefix: /internal }}, respond: {{ status: 403 }} }}\n\
             {rules}  \
               - name: app\n    upstream: app\n{rule}",
            listener = settings.listener,
        )
    }

    /// By how many bytes its memory has grown since its start, at most.
    pub fn grown_bytes(&self) -> u64 {
        memory(self.process.0.id(), "VmHWM:").saturating_sub(self.resident_before)
    }

    /// Lines on standard error that are no log lines: what a panic writes.
    pub fn complaints(&self) -> Vec<String> {
        self.log.lock().iter().filter(|line| serde_json::from_str::<Value>(line).is_err()).cloned().collect()
    }

    /// How many descriptors it has open more than at its start.
    pub fn descriptors_more(&self) -> usize {
        self.descriptors().saturating_sub(self.descriptors_before)
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).expect("it runs").count()
    }

    /// How many series its metrics have.
    fn series(&self) -> usize {
        let mut stream = TcpStream::connect(self.admin).expect("it listens");
        stream.set_read_timeout(Some(STARTS_WITHIN)).expect("an open socket");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).expect("it takes requests");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, to its end");
        answer.lines().filter(|line| line.starts_with("sluicegate_")).count()
    }
}

fn is_event(line: &str, event: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|line| line["event"] == event)
}

/// Where a listener is, when that is what a line says.
fn listening(line: &str, listener: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let ours = line["event"] == "listening" && line["listener"] == listener;
    ours.then(|| line["address"].as_str()?.parse().ok()).flatten()
}

/// A figure of a process' memory in bytes. proc(5), status.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let figure = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
    figure.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
