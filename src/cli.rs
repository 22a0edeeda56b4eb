//! The command line: what each command needs, and what its exit code says.
//!
//! 0: done. 1: it failed while it ran. 2: a faulty configuration or usage.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{AdminFallback, App};
use crate::config::{self, AdminBind, Checked, Config, Loaded};
use crate::events;
use crate::tools::demo;
use crate::tools::host::{self, Host};

const FAILED: u8 = 1;
const FAULTY: u8 = 2;

/// A WebSocket gateway: a reverse proxy that stands in front of any WebSocket backend and enforces its rules.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// Log debug events too, such as the round trip of each ping.
    #[arg(long, global = true)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway. SIGTERM and SIGINT drain it; a second one ends it at once.
    #[command(override_usage = "sluicegate run -c FILE\n       sluicegate run --listen ADDR --to http://HOST:PORT")]
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE", conflicts_with_all = ["listen", "to", "admin"], required_unless_present = "listen")]
        config: Option<PathBuf>,
        /// Without a file: where to listen, such as 127.0.0.1:8080.
        #[arg(long, value_name = "ADDR", requires = "to")]
        listen: Option<SocketAddr>,
        /// Without a file: the backend, such as http://127.0.0.1:3000.
        #[arg(long, value_name = "URL", requires = "listen", value_parser = parse_backend)]
        to: Option<String>,
        /// Without a file: where to serve health and metrics, a loopback address or `off`. Default: 127.0.0.1:9901, or
        /// the next free port.
        #[arg(long, value_name = "ADDR|off", value_parser = parse_admin)]
        admin: Option<AdminBind>,
    },
    /// Check a configuration file, and the rule files that it names, and report every fault at once.
    Check {
        /// The configuration file, or a rule file alone.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Look at this machine too: SYN cookies, the limit of descriptors, the queue of new connections, the ports.
        #[arg(long)]
        host: bool,
    },
    /// Print the effective configuration: rule files, variables and defaults resolved, secrets masked. A file again.
    Config {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the JSON Schema of both kinds of file, for editors.
    Schema,
    /// Start a sample backend, the gateway in front of it, and a page to try it.
    Demo {
        /// End by itself after so long, such as 30s.
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        run_for: Option<Duration>,
    },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match cli.log_format {
        LogFormat::Json => events::Format::Json,
        LogFormat::Text => events::Format::Text,
    };
    let level = if cli.debug { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    match cli.command {
        Command::Check { config, host } => check(&config, host),
        Command::Config { config } => match config::load(&config) {
            Ok(Loaded { config, warnings }) => {
                warn(&warnings);
                print(&config.effective.yaml())
            }
            Err(faults) => report(&faults),
        },
        Command::Schema => print(&format!("{:#}\n", config::schema())),
        Command::Run { config: Some(file), .. } => match config::load(&file) {
            Ok(loaded) => {
                events::init(format, level);
                for warning in &loaded.warnings {
                    log::warn!("{warning}");
                }
                run(serve(loaded.config, AdminFallback::Fail))
            }
            Err(faults) => report(&faults),
        },
        Command::Run { config: None, listen, to, admin } => {
            let (Some(listen), Some(to)) = (listen, to) else { return ExitCode::from(FAULTY) };
            events::init(format, level);
            let admin = admin.unwrap_or(AdminBind::Standard);
            let fallback = match admin {
                AdminBind::Standard => AdminFallback::FreePort,
                AdminBind::Address(_) | AdminBind::Off => AdminFallback::Fail,
            };
            run(serve(config::simple(listen, &to, admin), fallback))
        }
        Command::Demo { run_for } => run(demo::run(run_for)),
    }
}

/// Runs the gateway until a signal or an operator has drained it, or a second signal has cut that short.
async fn serve(config: Config, fallback: AdminFallback) -> Result<(), String> {
    // Before anything is served: from now on no signal ends the process without its order.
    let mut signals = Signals::listen()?;
    tokio::spawn(outlive(
        listen(SignalKind::hangup())?,
        "SIGHUP: a reload is not in this version; restart to read the file",
    ));
    tokio::spawn(outlive(listen(SignalKind::quit())?, "SIGQUIT: a hand-over is not in this version"));
    let app = App::start(config, fallback).await.map_err(|error| error.to_string())?;
    let by_signal = tokio::select! {
        () = signals.next() => true,
        () = app.drain_ordered() => false,
    };
    // A supervisor's signal behind the order of an operator, or of a hook, is the first one.
    let cut = async {
        if !by_signal {
            signals.next().await;
        }
        signals.next().await;
    };
    tokio::select! {
        () = app.drain() => {}
        () = cut => app.cut().await,
    }
    app.stop();
    Ok(())
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Resolves with the next SIGTERM or SIGINT.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|error| format!("cannot listen for signals: {error}"))
}

/// Keeps a signal that operators send to other proxies for a reload from ending all sessions of this one.
async fn outlive(mut signal: Signal, warning: &'static str) {
    while signal.recv().await.is_some() {
        log::warn!("{warning}");
    }
}

fn run(command: impl Future<Output = Result<(), String>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let outcome = runtime.block_on(command);
    runtime.shutdown_timeout(Duration::from_millis(100));
    events::flush();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn check(file: &Path, look_at_host: bool) -> ExitCode {
    let checked = match config::check(file) {
        Ok(checked) => checked,
        Err(faults) => return report(&faults),
    };
    let (config, summary) = match checked {
        Checked::Main(loaded) => {
            let Loaded { config, warnings } = *loaded;
            warn(&warnings);
            let summary = format!("{} listener(s), {} rule(s)", config.listeners.len(), config.rules.len());
            (Some(config), summary)
        }
        Checked::Rules { rules } => {
            let unchecked = "the names of listeners and upstreams were not checked";
            (None, format!("{rules} rule(s) alone; {unchecked}"))
        }
    };
    if look_at_host {
        warn_of_host(config.as_ref());
    }
    println!("{}: sound ({summary})", file.display());
    ExitCode::SUCCESS
}

fn warn_of_host(config: Option<&Config>) {
    let host = Host::read();
    for warning in host::warnings(&host, config) {
        eprintln!("warning: {warning}");
    }
    for setting in host::unread(&host) {
        eprintln!("warning: host: {setting}: cannot be read here, so it was not checked");
    }
}

fn warn(warnings: &[config::Warning]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Writes to standard output; who closed it has seen enough.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write: {error}")),
    }
}

fn report(faults: &[config::ConfigFault]) -> ExitCode {
    for fault in faults {
        eprintln!("{fault}");
    }
    eprintln!("{} fault(s)", faults.len());
    ExitCode::from(FAULTY)
}

fn fail(error: &str) -> ExitCode {
    eprintln!("sluicegate: {error}");
    ExitCode::from(FAILED)
}

/// `http://HOST:PORT`, the port 80 where none is written.
fn parse_backend(url: &str) -> Result<String, String> {
    let rest = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => rest.strip_suffix('/').unwrap_or(rest),
        (None, Some(_)) => {
            return Err(
                "for an https backend write a file, with `tls` of its upstream; here use http://HOST:PORT".to_owned()
            );
        }
        (None, None) => return Err("use http://HOST:PORT".to_owned()),
    };
    if rest.contains(['/', '?', '#']) {
        return Err("a path is not part of a backend; use http://HOST:PORT".to_owned());
    }
    let has_port = rest.rsplit_once(':').is_some_and(|(host, _)| !host.is_empty() && !rest.ends_with(']'));
    let endpoint = if has_port { rest.to_owned() } else { format!("{rest}:80") };
    config::check_endpoint(&endpoint).map_err(|fault| format!("found {}; use {}", fault.found, fault.allowed))?;
    Ok(endpoint)
}

fn parse_admin(text: &str) -> Result<AdminBind, String> {
    if text == "off" {
        return Ok(AdminBind::Off);
    }
    let address: SocketAddr = text.parse().map_err(|_| "use an address such as 127.0.0.1:9901, or off".to_owned())?;
    if !address.ip().is_loopback() {
        return Err(
            "beyond loopback the admin endpoint needs a token: write a file, with `admin.token_file`".to_owned()
        );
    }
    Ok(AdminBind::Address(address))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_backends() {
        assert_eq!(parse_backend("http://127.0.0.1:3000"), Ok("127.0.0.1:3000".to_owned()));
        assert_eq!(parse_backend("http://backend/"), Ok("backend:80".to_owned()));
        assert_eq!(parse_backend("http://[::1]"), Ok("[::1]:80".to_owned()));
        for bad in ["127.0.0.1:3000", "https://a:1", "http://a:1/path", "http://", "http://a:b"] {
            assert!(parse_backend(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn run_takes_a_file_or_two_addresses() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' ')).is_ok();
        assert!(parse("sluicegate run -c file.yaml"));
        assert!(parse("sluicegate check -c file.yaml --host"));
        assert!(parse("sluicegate config -c file.yaml") && parse("sluicegate schema"));
        assert!(parse("sluicegate run --listen 127.0.0.1:8080 --to http://127.0.0.1:3000"));
        assert!(parse("sluicegate run --listen 127.0.0.1:8080 --to http://127.0.0.1:3000 --admin off"));
        assert!(!parse("sluicegate run"));
        assert!(!parse("sluicegate run --listen 127.0.0.1:8080"));
        assert!(!parse("sluicegate run -c file.yaml --listen 127.0.0.1:8080 --to http://127.0.0.1:3000"));
        assert!(!parse("sluicegate run --listen 127.0.0.1:8080 --to http://127.0.0.1:3000 --admin 0.0.0.0:9901"));
    }
}
