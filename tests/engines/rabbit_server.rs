//! A process of Debian's `rabbitmq-server` on free ports with a folder of its own, ended with the value, and its `epmd` with
//! it. `scripts/setup test` installs it.
//!
//! It takes seconds to start, so the cases that do nothing to it share one: each has a virtual host of its own there.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::server::{free_port, pause};

/// How long it may take to start. It is no measure of anything.
const START: Duration = Duration::from_secs(120);

/// The server's own start script: the one on the path changes the user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

/// A server.
pub struct RabbitServer {
    child: Option<Child>,
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    folder: TempDir,
}

impl RabbitServer {
    /// An empty server.
    pub fn start() -> Self {
        // Another process may take a port between its choice and the start.
        for _ in 0..5 {
            let mut server = Self {
                child: None,
                port: free_port(),
                distribution_port: free_port(),
                epmd_port: free_port(),
                folder: tempfile::tempdir().expect("a folder"),
            };
            if server.spawn() {
                return server;
            }
        }
        panic!("rabbitmq-server did not start on any ports");
    }

    /// The URL of the virtual host that is there.
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port)
    }

    /// Makes virtual hosts `v0`, `v1` and so on.
    fn make_vhosts(&self, count: u32) {
        // One command: each takes a second to start.
        self.control(&[
            "eval",
            &format!(
                "[begin N = <<\"v\", (integer_to_binary(I))/binary>>, rabbit_vhost:add(N, <<\"test\">>), \
                 rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, N, <<\".*\">>, <<\".*\">>, <<\".*\">>, \
                 <<\"test\">>) end || I <- lists:seq(0, {})].",
                count - 1
            ),
        ]);
    }

    /// Runs `rabbitmqctl`.
    pub fn control(&self, words: &[&str]) -> String {
        let mut command = self.command(CONTROL);
        command.args(["--node", &self.node()]).args(words);
        let output = command.output().expect("rabbitmqctl is installed: scripts/setup test");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words:?}: {said}");
        said
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        if let Some(mut script) = self.child.take() {
            kill("-KILL", self.server_id());
            // It waits for the server.
            script.wait().expect("it is ours");
        }
    }

    /// The process that the script has started.
    fn server_id(&self) -> u32 {
        let id = fs::read_to_string(self.folder.path().join("pid")).expect("it has said that it runs");
        id.trim().parse().expect("a process id")
    }

    /// Starts it again on the same ports with what it had.
    pub fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + START;
        while !self.spawn() {
            assert!(Instant::now() < until, "it does not start again");
        }
    }

    /// Starts it again on the same ports with nothing.
    pub fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(self.folder.path().join("data")).expect("it is ours");
        self.restart();
    }

    /// Stops the process, and it goes on with [`RabbitServer::resume`].
    pub fn pause(&self) {
        kill("-STOP", self.server_id());
    }

    pub fn resume(&self) {
        kill("-CONT", self.server_id());
    }

    fn node(&self) -> String {
        format!("sluicegate{}@localhost", self.port)
    }

    /// A command with what the server's scripts take from the environment.
    fn command(&self, program: &str) -> Command {
        let folder = self.folder.path();
        let home = folder.join("home");
        fs::create_dir_all(&home).expect("a folder");
        let mut command = Command::new(program);
        command
            .env("HOME", &home)
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            // One that is killed while it starts would leave it where the tests run.
            .env("ERL_CRASH_DUMP", "/dev/null")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbit"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            // Its schedulers wait for each other busily by default, and tests have few cores.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Whether it started.
    fn spawn(&mut self) -> bool {
        let folder = self.folder.path();
        fs::write(folder.join("plugins"), "[].\n").expect("a file");
        fs::write(folder.join("rabbit.conf"), format!("listeners.tcp.local = 127.0.0.1:{}\n", self.port))
            .expect("a file");
        let log = fs::File::create(folder.join("out")).expect("a file");
        let mut command = self.command(SERVER);
        let also = log.try_clone().expect("a file");
        let mut child =
            command.stdout(log).stderr(also).spawn().expect("rabbitmq-server is installed: scripts/setup test");
        let until = Instant::now() + START;
        loop {
            if child.try_wait().expect("it is ours").is_some() {
                return false;
            }
            let said = fs::read_to_string(folder.join("out")).unwrap_or_default();
            if said.contains("Starting broker... completed") {
                self.child = Some(child);
                return true;
            }
            assert!(Instant::now() < until, "rabbitmq-server does not start: {said}");
            pause();
        }
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        self.kill();
        end_epmd(self.epmd_port);
    }
}

/// Ends the port mapper that a server has started, which outlives it: the process that listens on its port.
fn end_epmd(port: u16) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let folder = process.path();
        let is_ours = fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "epmd")
            && fs::read(folder.join("environ")).is_ok_and(|variables| {
                let wanted = format!("ERL_EPMD_PORT={port}");
                variables.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            });
        if is_ours && let Some(id) = folder.file_name().and_then(|id| id.to_str()) {
            // It may have ended before.
            let _ = Command::new("kill").arg(id).status();
        }
    }
}

fn kill(signal: &str, id: u32) {
    let status = Command::new("kill").args([signal, &id.to_string()]).status().expect("kill is there");
    assert!(status.success());
}

/// The virtual hosts of the server that is shared.
const SHARED_VHOSTS: u32 = 64;

/// The server that is shared, and what ends it with this process: a test binary drops no statics.
static SHARED: OnceLock<(RabbitServer, Child)> = OnceLock::new();

/// The URL of a virtual host that nobody else has, on the server that is shared.
pub fn shared_url() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nth = COUNT.fetch_add(1, Ordering::Relaxed);
    assert!(nth < SHARED_VHOSTS, "more cases than virtual hosts");
    let (server, _) = SHARED.get_or_init(|| {
        let server = RabbitServer::start();
        server.make_vhosts(SHARED_VHOSTS);
        let watch = end_with_this_process(&server);
        (server, watch)
    });
    format!("{}/v{nth}", server.url())
}

/// Starts a shell that waits for the end of this process, which closes its input, and ends the server then.
fn end_with_this_process(server: &RabbitServer) -> Child {
    let script = "read -r _; kill -9 \"$1\"; for p in /proc/[0-9]*; do \
                  [ \"$(cat \"$p/comm\" 2>/dev/null)\" = epmd ] && tr '\\0' '\\n' <\"$p/environ\" 2>/dev/null | \
                  grep -qx \"ERL_EPMD_PORT=$2\" && kill \"${p#/proc/}\"; done; rm -rf \"$3\"";
    Command::new("sh")
        .args(["-c", script, "sh", &server.server_id().to_string(), &server.epmd_port.to_string()])
        .arg(server.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh is there")
}
