//! A proxy under test: a process that is started and ended here, and what the kernel says of it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Result;

/// A process under test, with the processes of its own that do the work, and where it listens. Ended when it is dropped.
pub struct Proxy {
    pub name: &'static str,
    child: Option<Child>,
    pids: Vec<u32>,
    pub address: SocketAddr,
    _files: Option<tempfile::TempDir>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM, since a killed nginx leaves its workers behind. It may have ended by itself.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

impl Proxy {
    /// No proxy: the backend itself, of which nothing is measured.
    pub fn none(backend: SocketAddr) -> Self {
        Self { name: "no proxy", child: None, pids: Vec::new(), address: backend, _files: None }
    }

    /// The gateway, with `defaults` for its only rule.
    pub fn sluicegate(name: &'static str, backend: SocketAddr, defaults: &str) -> Result<Self> {
        Self::sluicegate_with(name, backend, "", defaults)
    }

    /// The same with keys of its listener.
    pub fn sluicegate_with(name: &'static str, backend: SocketAddr, listener: &str, defaults: &str) -> Result<Self> {
        let address = free_address()?;
        let files = tempfile::tempdir()?;
        let file = files.path().join("sluicegate.yaml");
        let configuration = format!(
            "version: 1
listeners: [{{ name: public, bind: \"{address}\"{listener} }}]
admin: off
upstreams: [{{ name: app, endpoints: [\"{backend}\"] }}]
defaults: {{ {defaults} }}
shutdown: {{ drain: 1s, spread: 0s }}
"
        );
        std::fs::write(&file, configuration)?;
        let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "-c"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()?;
        let pids = vec![child.id()];
        wait_for(address)?;
        Ok(Self { name, child: Some(child), pids, address, _files: Some(files) })
    }

    /// nginx with two workers, which passes every header of a handshake on.
    pub fn nginx(name: &'static str, backend: SocketAddr) -> Result<Self> {
        Self::nginx_with(name, backend, "", "")
    }

    /// The same with a word for its `listen`, and more of its `server`.
    pub fn nginx_with(name: &'static str, backend: SocketAddr, listen: &str, server: &str) -> Result<Self> {
        let address = free_address()?;
        let files = tempfile::tempdir()?;
        let config = format!(
            "worker_processes 2; worker_rlimit_nofile 20000; daemon off; pid {0}/nginx.pid; error_log /dev/null;
             events {{ worker_connections 20000; }}
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
               uwsgi_temp_path {0}; scgi_temp_path {0};
               server {{ listen {address} {listen} backlog=4096; {server} location / {{ proxy_pass http://{backend}; proxy_http_version 1.1;
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_read_timeout 1h; }} }} }}",
            files.path().display(),
        );
        let file = files.path().join("nginx.conf");
        std::fs::File::create(&file)?.write_all(config.as_bytes())?;
        let nginx = if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut command = Command::new(nginx);
        let child = command.arg("-c").arg(&file).arg("-p").arg(files.path()).stderr(Stdio::null()).spawn()?;
        wait_for(address)?;
        // The master listens before it has its workers.
        let pids = loop {
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?;
            let pids: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            if pids.len() == 2 {
                break pids;
            }
        };
        Ok(Self { name, child: Some(child), pids, address, _files: Some(files) })
    }

    pub fn is_measured(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Seconds of user and system time so far. proc(5), stat, fields 14 and 15.
    pub fn cpu(&self) -> Result<f64> {
        let mut ticks = 0;
        for pid in &self.pids {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        }
        Ok(ticks as f64 / 100.0)
    }

    pub fn resident_bytes(&self) -> Result<u64> {
        let mut kib = 0;
        for pid in &self.pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
            kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
        Ok(kib << 10)
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing listens on {address}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
