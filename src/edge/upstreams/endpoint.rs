//! One endpoint: its addresses, its sessions, and whether it can be connected to.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use prometheus::IntGauge;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::secure::EndpointTls;
use crate::edge::socket::Socket;
use crate::metrics::Metrics;

/// How long the addresses of a name are used before it is looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// How long a failed look-up stands, so that a storm of handshakes is not one of look-ups.
const RESOLVE_FAILURE_STANDS: Duration = Duration::from_secs(1);

/// A look-up that takes longer has failed; the system's resolver gives up after 5 s to 30 s by itself.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most addresses of one name that are used.
const MAX_ADDRESSES: usize = 16;

/// How often an endpoint that could not be connected to is tried without a client.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How long such a try may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// So many connections in a row that brought no answer take an endpoint out of its turn...
const EJECT_AFTER: u32 = 3;

/// ...for so long; then one more such connection is enough.
const EJECT_FOR: Duration = Duration::from_secs(10);

/// One endpoint of an upstream.
#[derive(Debug)]
pub struct Endpoint {
    upstream: String,
    address: String,
    /// Where it is, when that needs no look-up.
    literal: Option<Target>,
    tls: Option<EndpointTls>,
    resolved: Arc<Mutex<Option<Resolved>>>,
    /// Which address of a name is tried first.
    turn: AtomicUsize,
    active: AtomicUsize,
    gauge: IntGauge,
    healthy: IntGauge,
    reachable: AtomicBool,
    /// Connections in a row that brought no answer.
    failures: AtomicU32,
    ejected: AtomicBool,
    answers_pings: Arc<AtomicBool>,
}

/// Where a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(Arc<str>),
}

impl Target {
    /// Reads `unix:PATH` and an address; `None` for a name.
    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    async fn connect(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Unix(path) => Ok(UnixStream::connect(&**path).await?.into()),
        }
    }
}

#[derive(Debug)]
struct Resolved {
    at: Instant,
    /// Empty when the name has never been looked up with success.
    addresses: Vec<SocketAddr>,
    /// Why the last look-up failed.
    failure: Option<String>,
}

impl Endpoint {
    pub(super) fn new(upstream: &str, address: String, tls: Option<EndpointTls>, metrics: &Metrics) -> Self {
        let healthy = metrics.upstream_healthy(upstream, &address);
        healthy.set(1);
        Self {
            upstream: upstream.to_owned(),
            literal: Target::read(&address),
            tls,
            resolved: Arc::default(),
            turn: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            gauge: metrics.upstream_connections(upstream, &address),
            healthy,
            reachable: AtomicBool::new(true),
            failures: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
            address,
            answers_pings: Arc::default(),
        }
    }

    /// `host:port` or `unix:PATH`, as configured.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Leases that are held: sessions, and connections being made.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Whether the last attempt to connect succeeded; true before the first.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether it gets its share: it can be connected to, and its connections bring answers. The others come last, and
    /// are tried when there is nobody else: the last endpoint is never ejected.
    pub fn is_healthy(&self) -> bool {
        self.is_reachable() && !self.ejected.load(Ordering::Relaxed)
    }

    /// Remembers that a connection brought an answer.
    pub fn answered(&self) {
        // Read first: every request comes here, and a write would take the cache line each time.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Remembers that a connection brought no answer: it hung, broke off, or spoke no HTTP.
    pub fn misbehaved(self: &Arc<Self>) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= EJECT_AFTER && !self.ejected.swap(true, Ordering::Relaxed) {
            log::warn!(
                "endpoint {} of upstream {} is passed over for {EJECT_FOR:?}: {failures} connections brought no answer",
                self.address,
                self.upstream
            );
            self.show_health();
            tokio::spawn(readmit(Arc::downgrade(self)));
        }
    }

    fn show_health(&self) {
        self.healthy.set(i64::from(self.is_healthy()));
    }

    /// Whether it has ever answered a ping of ours, set by its sessions: one that has not is never closed for silence.
    pub fn answers_pings(&self) -> &Arc<AtomicBool> {
        &self.answers_pings
    }

    /// Counts one more session until the lease drops.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        Lease { endpoint: Arc::clone(self) }
    }

    /// Where to connect, at most 16: the literal, or what its name meant at most 10 s ago. When a name stops resolving, its
    /// last addresses stand: a resolver that is down takes no endpoint with it.
    ///
    /// # Errors
    /// The name has never resolved.
    pub async fn resolve(&self) -> io::Result<Vec<Target>> {
        if let Some(target) = &self.literal {
            return Ok(vec![target.clone()]);
        }
        let mut resolved = Arc::clone(&self.resolved).lock_owned().await;
        if !resolved.as_ref().is_some_and(Resolved::is_fresh) {
            let name = self.address.clone();
            // In a task, which a caller that gives up does not end: the lock stays taken and look-ups do not pile up.
            let lookup = tokio::spawn(async move {
                look_up(&name, &mut resolved).await;
                resolved
            });
            resolved = lookup.await.map_err(io::Error::other)?;
        }
        let Some(Resolved { addresses, failure, .. }) = &*resolved else {
            return Err(io::Error::other("the name was not looked up"));
        };
        if addresses.is_empty() {
            let failure = failure.as_deref().unwrap_or("the name has no address");
            return Err(io::Error::new(io::ErrorKind::NotFound, failure));
        }
        let mut addresses: Vec<_> = addresses.iter().copied().map(Target::Tcp).collect();
        // The resolver always gives the same order, and the first would get all connections.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(turn);
        Ok(addresses)
    }

    /// Connects to one of its addresses within `within`, the TLS handshake included, and remembers whether that was possible.
    ///
    /// # Errors
    /// `TimedOut` when no address answered in time, else the last address' error.
    pub(super) async fn connect(self: &Arc<Self>, within: Duration) -> io::Result<Socket> {
        let outcome = self.connect_any(within).await;
        match &outcome {
            Ok(_) => self.succeeded(),
            // Our own shortage of descriptors or ports says nothing about the endpoint.
            Err(error) if is_local(error) => log::warn!("cannot connect to any endpoint: {error}"),
            Err(error) => self.failed(error),
        }
        outcome
    }

    async fn connect_any(&self, within: Duration) -> io::Result<Socket> {
        let deadline = Instant::now() + within;
        let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {within:?}"));
        let addresses = tokio::time::timeout_at(deadline, self.resolve()).await.map_err(timed_out)??;
        let mut last_error = None;
        for (index, address) in addresses.iter().enumerate() {
            // A share of the time each, so that one address that swallows packets does not use it up.
            let shares = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / shares;
            match timeout(share, self.connect_to(address)).await.map_err(timed_out).flatten() {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.unwrap_or_else(|| io::Error::other("the endpoint has no address")))
    }

    async fn connect_to(&self, target: &Target) -> io::Result<Socket> {
        let socket = target.connect().await?;
        match &self.tls {
            Some(tls) => Box::pin(tls.connect(socket)).await,
            None => Ok(socket),
        }
    }

    /// One of its addresses as Pingora connects to it, with its TLS.
    ///
    /// # Errors
    /// `ConnectError`: its TLS has no name, or the path of its Unix socket is none.
    pub fn peer(&self, target: &Target) -> pingora::Result<HttpPeer> {
        let mut peer = match target {
            Target::Tcp(address) => HttpPeer::new(*address, false, String::new()),
            Target::Unix(path) => HttpPeer::new_uds(path, false, String::new())?,
        };
        if let Some(tls) = &self.tls {
            tls.prepare(&mut peer).map_err(|error| Error::because(ErrorType::ConnectError, "TLS", error))?;
        }
        Ok(peer)
    }

    /// Its TLS; `None` is cleartext.
    pub fn tls(&self) -> Option<&EndpointTls> {
        self.tls.as_ref()
    }

    /// Remembers that it took a connection.
    pub fn succeeded(&self) {
        if !self.reachable.swap(true, Ordering::Relaxed) {
            log::warn!("endpoint {} of upstream {} can be connected to again", self.address, self.upstream);
            self.show_health();
        }
    }

    /// Remembers that it took no connection, and tries it again until it does.
    pub fn failed(self: &Arc<Self>, error: &dyn std::fmt::Display) {
        if self.reachable.swap(false, Ordering::Relaxed) {
            log::warn!("endpoint {} of upstream {} cannot be connected to: {error}", self.address, self.upstream);
            self.show_health();
            tokio::spawn(probe_until_reachable(Arc::downgrade(self)));
        }
    }
}

impl Resolved {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.failure.is_none() { RESOLVE_EVERY } else { RESOLVE_FAILURE_STANDS }
    }
}

async fn look_up(name: &str, resolved: &mut Option<Resolved>) {
    let failure = match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<_> = found.take(MAX_ADDRESSES).collect();
            addresses.dedup();
            *resolved = Some(Resolved { at: Instant::now(), addresses, failure: None });
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {RESOLVE_TIMEOUT:?}"),
    };
    let addresses = resolved.take().map(|last| last.addresses).unwrap_or_default();
    *resolved = Some(Resolved { at: Instant::now(), addresses, failure: Some(failure) });
}

/// Ends when the endpoint can be connected to, by us or by a client, and when it is gone with its configuration. There
/// is one such task for an endpoint: only the first failure starts it.
async fn probe_until_reachable(endpoint: Weak<Endpoint>) {
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        if endpoint.is_reachable() {
            return;
        }
        if endpoint.connect_any(PROBE_TIMEOUT).await.is_ok() {
            endpoint.succeeded();
            return;
        }
    }
}

/// Gives an ejected endpoint its turn again.
async fn readmit(endpoint: Weak<Endpoint>) {
    tokio::time::sleep(EJECT_FOR).await;
    if let Some(endpoint) = endpoint.upgrade() {
        endpoint.failures.store(EJECT_AFTER - 1, Ordering::Relaxed);
        endpoint.ejected.store(false, Ordering::Relaxed);
        endpoint.show_health();
        log::warn!("endpoint {} of upstream {} gets its turn again", endpoint.address, endpoint.upstream);
    }
}

/// Whether connecting failed for want of something on this machine.
fn is_local(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::EADDRNOTAVAIL))
}

/// A session's place at an endpoint; it is given back on drop.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
}

impl Lease {
    /// Where the place is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
        self.endpoint.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint::new("chat", address.to_owned(), None, &Metrics::new()))
    }

    #[tokio::test]
    async fn literals_need_no_look_up_and_names_are_looked_up() {
        for text in ["127.0.0.1:9", "[::1]:9"] {
            assert_eq!(endpoint(text).resolve().await.unwrap(), [Target::Tcp(text.parse().unwrap())]);
        }
        assert_eq!(endpoint("unix:/a.sock").resolve().await.unwrap(), [Target::Unix("/a.sock".into())]);
        let local = endpoint("localhost:9");
        let mut first = local.resolve().await.unwrap();
        let mut second = local.resolve().await.unwrap();
        assert!(first.iter().all(|target| matches!(target, Target::Tcp(address) if address.ip().is_loopback())));
        first.sort_by_key(|target| format!("{target:?}"));
        second.sort_by_key(|target| format!("{target:?}"));
        assert_eq!(first, second, "the same addresses, in turn");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_unreachable_unless_it_did_before() {
        // A label may have 63 bytes, so no resolver sends this anywhere.
        let unresolvable = endpoint(&format!("{}:9", "x".repeat(64)));
        assert_ne!(unresolvable.connect(Duration::from_secs(20)).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(!unresolvable.is_reachable());
        let last: Vec<SocketAddr> = vec!["127.0.0.1:9".parse().unwrap()];
        *unresolvable.resolved.lock().await =
            Some(Resolved { at: Instant::now() - RESOLVE_EVERY, addresses: last.clone(), failure: None });
        assert_eq!(unresolvable.resolve().await.unwrap(), [Target::Tcp(last[0])]);
        assert!(unresolvable.resolved.lock().await.as_ref().unwrap().failure.is_some());
    }

    #[tokio::test]
    async fn a_name_is_looked_up_again_after_a_while_and_what_it_meant_before_is_left() {
        let local = endpoint("localhost:9");
        let before: Vec<SocketAddr> = vec!["192.0.2.1:9".parse().unwrap()];
        for (age, changed) in [(RESOLVE_EVERY - Duration::from_secs(5), false), (RESOLVE_EVERY, true)] {
            *local.resolved.lock().await =
                Some(Resolved { at: Instant::now() - age, addresses: before.clone(), failure: None });
            assert_eq!(local.resolve().await.unwrap() != [Target::Tcp(before[0])], changed, "{age:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn three_connections_without_an_answer_eject_for_a_while() {
        let endpoint = endpoint("127.0.0.1:9");
        endpoint.misbehaved();
        endpoint.misbehaved();
        endpoint.answered();
        endpoint.misbehaved();
        endpoint.misbehaved();
        assert!(endpoint.is_healthy(), "not three in a row");
        endpoint.misbehaved();
        assert!(!endpoint.is_healthy());
        assert_eq!(endpoint.healthy.get(), 0);
        tokio::time::sleep(EJECT_FOR + Duration::from_millis(1)).await;
        assert!(endpoint.is_healthy());
        endpoint.misbehaved();
        assert!(!endpoint.is_healthy(), "one more is enough");
    }
}
