//! A proxy under test: a process that is started and ended here, and what the kernel says of it.

use std::ffi::{OsStr, OsString};
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
    /// The gateway's admin endpoint, where it was asked for.
    pub admin: Option<SocketAddr>,
    _files: Option<tempfile::TempDir>,
}

/// The gateway: the one that was built with this, or the build that `SLUICEGATE` names.
pub fn own_program() -> OsString {
    std::env::var_os("SLUICEGATE").unwrap_or_else(|| env!("CARGO_BIN_EXE_sluicegate").into())
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
        Self { name: "no proxy", child: None, pids: Vec::new(), address: backend, admin: None, _files: None }
    }

    /// The gateway, with `defaults` for its only rule.
    pub fn sluicegate(name: &'static str, backend: SocketAddr, defaults: &str) -> Result<Self> {
        Self::sluicegate_at(&own_program(), name, backend, defaults)
    }

    /// Another build of the gateway, to be measured in the same run.
    pub fn sluicegate_at(program: &OsStr, name: &'static str, backend: SocketAddr, defaults: &str) -> Result<Self> {
        let defaults = format!("defaults: {{ {defaults} }}\n");
        Self::gateway(program, name, [backend, backend], ["", &defaults], None)
    }

    /// The gateway, with more keys of its listener.
    pub fn sluicegate_with(name: &'static str, backend: SocketAddr, listener: &str, defaults: &str) -> Result<Self> {
        let defaults = format!("defaults: {{ {defaults} }}\n");
        Self::gateway(&own_program(), name, [backend, backend], [listener, &defaults], None)
    }

    /// The gateway with its admin endpoint, and more lines of its main file. `/echo` goes to the second backend.
    pub fn administered(name: &'static str, backends: [SocketAddr; 2], more: &str) -> Result<Self> {
        Self::gateway(&own_program(), name, backends, ["", more], Some(free_address()?))
    }

    fn gateway(
        program: &OsStr,
        name: &'static str,
        [backend, of_echo]: [SocketAddr; 2],
        [listener, more]: [&str; 2],
        admin: Option<SocketAddr>,
    ) -> Result<Self> {
        let address = free_address()?;
        let admin_key = admin.map_or("off".to_owned(), |admin| format!("{{ bind: \"{admin}\" }}"));
        let files = tempfile::tempdir()?;
        let file = files.path().join("sluicegate.yaml");
        let configuration = format!(
            "version: 1
listeners: [{{ name: public, bind: \"{address}\"{listener} }}]
admin: {admin_key}
upstreams: [{{ name: app, endpoints: [\"{backend}\"] }}, {{ name: echo, endpoints: [\"{of_echo}\"] }}]
rules: [{{ name: echo, match: {{ path: /echo }}, upstream: echo }}, {{ name: app, upstream: app }}]
shutdown: {{ drain: 1s, spread: 0s }}
{more}"
        );
        std::fs::write(&file, configuration)?;
        let child = Command::new(program).args(["run", "-c"]).arg(&file).stderr(Stdio::null()).spawn()?;
        let pids = vec![child.id()];
        wait_for(address)?;
        Ok(Self { name, child: Some(child), pids, address, admin, _files: Some(files) })
    }

    /// nginx with two workers, which passes every header of a handshake on.
    pub fn nginx(name: &'static str, backend: SocketAddr) -> Result<Self> {
        Self::nginx_with(name, [backend, backend], "", "")
    }

    /// The same with a word for its `listen`, and more of its `server`. `/echo` goes to the second backend.
    pub fn nginx_with(
        name: &'static str,
        [backend, of_echo]: [SocketAddr; 2],
        listen: &str,
        server: &str,
    ) -> Result<Self> {
        let address = free_address()?;
        let files = tempfile::tempdir()?;
        let config = format!(
            "worker_processes 2; worker_rlimit_nofile 20000; daemon off; pid {0}/nginx.pid; error_log /dev/null;
             events {{ worker_connections 20000; }}
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
               uwsgi_temp_path {0}; scgi_temp_path {0};
               proxy_http_version 1.1; proxy_read_timeout 1h;
               proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
               server {{ listen {address} {listen} backlog=4096; {server} location / {{ proxy_pass http://{backend}; }}
                 location = /echo {{ proxy_pass http://{of_echo}; }} }} }}",
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
        Ok(Self { name, child: Some(child), pids, address, admin: None, _files: Some(files) })
    }

    /// Another program that listens at `address`: `command`, and the `children` processes that it starts, as `files` say.
    pub fn other(
        name: &'static str,
        command: &mut Command,
        children: usize,
        address: SocketAddr,
        files: tempfile::TempDir,
    ) -> Result<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pid = child.id();
        // From here on it is ended with the value.
        let mut this = Self { name, child: Some(child), pids: vec![pid], address, admin: None, _files: Some(files) };
        wait_for(address)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while this.pids.len() <= children {
            if Instant::now() > deadline {
                return Err(format!("{name} has started {} processes of {children}", this.pids.len() - 1).into());
            }
            let started = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            this.pids = vec![pid];
            this.pids.extend(started.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        Ok(this)
    }

    pub fn is_measured(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Seconds of user and system time so far.
    pub fn cpu(&self) -> Result<f64> {
        self.pids.iter().map(|pid| cpu_of(*pid)).sum()
    }

    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most that it has had resident so far.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// A field of proc_pid_status(5), in bytes.
    fn memory(&self, field: &str) -> Result<u64> {
        let mut kib = 0;
        for pid in &self.pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0 kB");
            kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
        Ok(kib << 10)
    }
}

/// Seconds of user and system time of a process so far. proc(5), stat, fields 14 and 15.
pub fn cpu_of(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) as f64 / 100.0)
}

pub fn free_address() -> Result<SocketAddr> {
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
