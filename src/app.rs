//! A configuration brought to life: listeners, the admin endpoint, and their end in good order.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin::{self, AdminState, Operator, Readiness};
use crate::config::{self, Config, Shutdown};
use crate::edge::backplane::Backplane;
use crate::edge::gateway::{Gateway, ListenerState};
use crate::edge::listener::{self, Listener, SocketFile};
use crate::edge::memory;
use crate::edge::plain::PlainProxy;
use crate::edge::publish;
use crate::edge::service::Service;
use crate::events::Event;
use crate::metrics::Metrics;
use crate::tls;
use crate::tls::reload::Reloading;
use crate::tunnel::sys;

/// How often clients that used nothing of their limits for a while are forgotten, and each session is looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How often a drain looks whether the last session is gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How long sessions that were cut may take to write their log lines.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Where the search for a free admin port in order ends: users expect it near 9901.
const LAST_ADMIN_PORT: u16 = 9999;

/// Without a limit that could be read the process is taken to have the usual one.
const USUAL_DESCRIPTOR_LIMIT: u64 = 1024;

/// A gateway that runs.
pub struct App {
    /// The listeners' names and addresses.
    pub listeners: Vec<(String, String)>,
    /// Where the admin endpoint is.
    pub admin: Option<SocketAddr>,
    service: Arc<Service>,
    readiness: Arc<Readiness>,
    shutdown: Shutdown,
    drain_ordered: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    /// The files of Unix sockets, which are removed with it.
    _socket_files: Vec<SocketFile>,
}

/// What to do when the admin address is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminFallback {
    /// Fail.
    Fail,
    /// Take the next free port: up to 9999 in order, and then any.
    FreePort,
}

impl App {
    /// Binds everything, and then serves. Nothing is served before all is bound.
    ///
    /// # Errors
    /// An address that cannot be bound, with its name; or the process's memory cannot be read, and has a limit.
    pub async fn start(config: Config, fallback: AdminFallback) -> io::Result<Self> {
        let descriptors = sys::raise_descriptor_limit().unwrap_or(USUAL_DESCRIPTOR_LIMIT);
        let metrics = Metrics::new();
        let publish = config.backplane.as_ref().and_then(|backplane| backplane.publish.clone());
        let readiness = Arc::new(Readiness::default());
        let backplane = config
            .backplane
            .as_ref()
            .map(|backplane| Backplane::start(backplane, &metrics, &readiness))
            .transpose()
            .map_err(io::Error::other)?;
        let gateway = Gateway::new(&config, &metrics, descriptors, backplane.clone())
            .map_err(|(upstream, problems)| unusable(&upstream)(problems))?;
        let gateway = Arc::new(gateway);
        let (stop, stopped) = watch::channel(false);
        if let Some(limit_bytes) = config.limits.memory_bytes {
            let cannot = |error| io::Error::other(format!("cannot watch the memory (limits.memory): {error}"));
            memory::watch(limit_bytes, stopped.clone()).map_err(cannot)?;
        }
        let drain_ordered = watch::Sender::new(false);
        readiness.set_upstreams(gateway.upstreams.clone());
        let service = Arc::new(Service { gateway: gateway.clone(), plain: PlainProxy::new(stopped.clone()) });

        let mut bound = Vec::new();
        for config in config.listeners {
            let listener = Listener::bind(&config.bind).map_err(named(&config.name, &config.bind))?;
            let tls = config.tls.clone().map(Reloading::new).transpose().map_err(unusable(&config.name))?.map(Arc::new);
            let state = ListenerState { name: config.name.as_str().into(), config, tls };
            bound.push((listener, Arc::new(state)));
        }
        let admin = match &config.admin {
            Some(config::Admin { bind, .. }) => Some(bind_admin(*bind, fallback).map_err(named("admin", bind))?),
            None => None,
        };
        let probes = match config.probes {
            Some(bind) => Some(listener::bind(bind).map_err(named("probes", &bind))?),
            None => None,
        };
        let publish = match publish {
            Some(publish) => Some((listener::bind(publish.bind).map_err(named("publish", &publish.bind))?, publish)),
            None => None,
        };

        // All is bound, and the kernel takes connections: whoever reads a listener's line finds us ready.
        readiness.set_started();
        metrics.config_loaded(SystemTime::now());
        let mut listeners = Vec::new();
        let mut socket_files = Vec::new();
        for (listener, state) in bound {
            let address = listener.address()?;
            announce(&state.name, &address);
            listeners.push((state.config.name.clone(), address));
            socket_files.extend(listener.socket_file());
            if let Some(tls) = &state.tls {
                tokio::spawn(tls.clone().watch(tell_of_reload(Watched::Listener, &state.config.name, &metrics)));
            }
            tokio::spawn(listener.serve(state, service.clone(), stopped.clone()));
        }
        let operator = Operator {
            token: config.admin.and_then(|admin| admin.token),
            sessions: gateway.registry.clone(),
            config: config.effective.yaml(),
            drain: drain_ordered.clone(),
        };
        let serve_admin = |name: &str, listener: Option<TcpListener>, operator: Option<Operator>| {
            let Some(listener) = listener else { return Ok::<_, io::Error>(None) };
            let address = listener.local_addr()?;
            announce(name, &address.to_string());
            let state = AdminState { metrics: metrics.clone(), readiness: readiness.clone(), operator };
            tokio::spawn(admin::serve(listener, Arc::new(state), stopped.clone()));
            Ok(Some(address))
        };
        let admin = serve_admin("admin", admin, Some(operator))?;
        serve_admin("probes", probes, None)?;
        if let (Some((listener, config)), Some(backplane)) = (publish, backplane) {
            announce("publish", &listener.local_addr()?.to_string());
            tokio::spawn(publish::serve(listener, backplane, config, stopped.clone()));
        }
        Event::new("started")
            .field("version", env!("CARGO_PKG_VERSION"))
            .field("descriptor_limit", descriptors)
            .field("session_limit", gateway.session_limit())
            .emit();
        tokio::spawn({
            let (registry, metrics) = (gateway.registry.clone(), metrics.clone());
            async move { registry.sweep(SWEEP_EVERY, &metrics).await }
        });
        for upstream in &gateway.upstreams {
            if let Some(tls) = upstream.tls() {
                let tell = tell_of_reload(Watched::Upstream, upstream.name(), &metrics);
                tokio::spawn(tls.files.clone().watch(tell));
            }
        }
        tokio::spawn(sweep(gateway, stopped));
        Ok(Self {
            listeners,
            admin,
            service,
            readiness,
            shutdown: config.shutdown,
            drain_ordered,
            stop,
            _socket_files: socket_files,
        })
    }

    /// Resolves when an operator has asked for the drain.
    pub async fn drain_ordered(&self) {
        // The sender is ours, so the wait ends with the value.
        let _ = self.drain_ordered.subscribe().wait_for(|ordered| *ordered).await;
    }

    /// Ends in good order: unready first, after `delay` nothing new, then sessions close one after the other, and what
    /// is still there after `drain` is cut. Returns as soon as nothing is left.
    pub async fn drain(&self) {
        let gateway = &self.service.gateway;
        self.readiness.set_draining();
        Event::new("draining").field("sessions", gateway.registry.len()).emit();
        tokio::time::sleep(self.shutdown.delay).await;
        gateway.refuse_all();
        let all_gone = async {
            gateway.registry.drain(self.shutdown.spread).await;
            while !self.is_idle() {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(self.shutdown.drain, all_gone).await.is_err() {
            self.cut().await;
        }
    }

    /// Lets go of the listeners. To be called when nothing is left to serve.
    pub fn stop(self) {
        self.stop.send_replace(true);
        Event::new("stopped").emit();
    }

    /// Ends what is there at once.
    pub async fn cut(&self) {
        let gateway = &self.service.gateway;
        Event::new("cutting").field("sessions", gateway.registry.len()).emit();
        gateway.refuse_all();
        gateway.registry.cut();
        let by = Instant::now() + CUT_GRACE;
        while gateway.sessions.sessions() > 0 && Instant::now() < by {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// Whether no session, no handshake and no plain request is left.
    fn is_idle(&self) -> bool {
        self.service.gateway.sessions.sessions() == 0 && self.service.plain.in_flight() == 0
    }
}

fn announce(name: &str, address: &str) {
    Event::new("listening").field("listener", name).field("address", address).emit();
}

fn bind_admin(address: SocketAddr, fallback: AdminFallback) -> io::Result<TcpListener> {
    let mut bound = listener::bind(address);
    for port in next_ports(address.port(), fallback) {
        match &bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                bound = listener::bind(SocketAddr::new(address.ip(), port));
            }
            _ => break,
        }
    }
    bound
}

/// The ports that are tried when `port` is taken; 0 takes any.
fn next_ports(port: u16, fallback: AdminFallback) -> impl Iterator<Item = u16> {
    let next = match fallback {
        AdminFallback::Fail => None,
        AdminFallback::FreePort => Some((port.saturating_add(1)..=LAST_ADMIN_PORT).chain([0])),
    };
    next.into_iter().flatten()
}

fn named(name: &str, address: &dyn fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot listen on {address} ({name}): {error}"))
}

/// Whose files are read again when they change.
#[derive(Clone, Copy)]
enum Watched {
    Listener,
    Upstream,
}

/// Counts and logs what came of files that changed.
fn tell_of_reload(
    watched: Watched,
    name: &str,
    metrics: &Arc<Metrics>,
) -> impl Fn(Result<(), Vec<tls::Problem>>) + use<> {
    let (name, metrics) = (name.to_owned(), metrics.clone());
    move |outcome| {
        let (kind, listener, upstream) = match watched {
            Watched::Listener => ("listener", Some(&*name), None),
            Watched::Upstream => ("upstream", None, Some(&*name)),
        };
        metrics.tls_reloaded(kind, &name, outcome.is_ok());
        let event = match &outcome {
            Ok(()) => Event::new("tls_reloaded"),
            Err(_) => Event::error("tls_reload_failed"),
        };
        event
            .field("listener", listener)
            .field("upstream", upstream)
            .field("detail", outcome.err().map(|problems| in_words(&problems)))
            .emit();
    }
}

fn in_words(problems: &[tls::Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn unusable(name: &str) -> impl FnOnce(Vec<tls::Problem>) -> io::Error {
    move |problems| io::Error::other(format!("the TLS of {name} cannot be used: {}", in_words(&problems)))
}

async fn sweep(gateway: Arc<Gateway>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(SWEEP_EVERY) => gateway.sweep(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_ports_come_in_order_and_then_any() {
        let ports: Vec<u16> = next_ports(9901, AdminFallback::FreePort).collect();
        assert_eq!((ports.first(), ports.len()), (Some(&9902), 99));
        assert_eq!(ports[97..], [9999, 0]);
        assert!(ports[..98].is_sorted());
        assert_eq!(next_ports(u16::MAX, AdminFallback::FreePort).collect::<Vec<_>>(), [0]);
        assert_eq!(next_ports(9901, AdminFallback::Fail).count(), 0);
    }

    #[tokio::test]
    async fn a_taken_admin_address_moves_only_where_it_may() {
        let taken = listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = taken.local_addr().expect("it is bound");
        assert_eq!(bind_admin(address, AdminFallback::Fail).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        let moved = bind_admin(address, AdminFallback::FreePort).expect("a free port");
        let moved = moved.local_addr().expect("it is bound");
        assert_eq!(moved.ip(), address.ip());
        assert_ne!(moved.port(), address.port());
    }
}
