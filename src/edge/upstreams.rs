//! Upstreams: which endpoint gets the next connection, and the TCP connection to it.
//!
//! Retries end here: another endpoint is tried only while nothing was written to one. An endpoint that could not be
//! connected to is passed over while others can, and a task of its own tries it again until it can, so that it comes
//! back without a client's help.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pingora_ketama::{Bucket, Continuum};
use sha2::{Digest as _, Sha256};

use super::socket::Socket;
use crate::metrics::Metrics;
use crate::tls::failure;

mod endpoint;
mod secure;

pub use endpoint::{Endpoint, Lease, Target};
pub use secure::UpstreamTls;

/// How an upstream chooses among its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The endpoint with the fewest sessions; of several, in turn.
    #[default]
    LeastConnections,
    /// In turn.
    RoundRobin,
    /// By a hash of the client.
    Hash,
}

/// Which endpoint a client should get, if it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Whichever the upstream's balance chooses.
    None,
    /// The one that it had, by its place among the endpoints.
    Endpoint(usize),
    /// The one that these bytes hash to, and its successors on the ring.
    Hash(Vec<u8>),
}

/// Why no endpoint could be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// None answered in time.
    #[error("no endpoint took a connection in {0:?}")]
    Timeout(Duration),
    /// At least one refused, or its name does not resolve; this is the last such error.
    #[error("no endpoint could be connected to: {0}")]
    Unreachable(#[source] io::Error),
}

impl ConnectError {
    /// Why TLS failed, in words of ours, where it did.
    pub fn detail(&self) -> Option<&'static str> {
        match self {
            Self::Timeout(_) => None,
            Self::Unreachable(error) => failure::reason(error),
        }
    }
}

/// One upstream of the configuration.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    endpoints: Vec<Arc<Endpoint>>,
    ring: Ring,
    balance: Balance,
    connect_timeout: Duration,
    tls: Option<UpstreamTls>,
    turn: AtomicUsize,
}

impl Upstream {
    /// An upstream with these endpoints, each `host:port` or `unix:PATH`, in the order of the file. `connect_timeout` is for one
    /// endpoint, over all its addresses and the look-up of its name.
    pub fn new(
        name: &str,
        endpoints: Vec<String>,
        balance: Balance,
        connect_timeout: Duration,
        tls: Option<UpstreamTls>,
        metrics: &Metrics,
    ) -> Self {
        let endpoints = endpoints.into_iter().map(|address| {
            let tls = tls.as_ref().map(|tls| tls.of_endpoint(&address));
            Arc::new(Endpoint::new(name, address, tls, metrics))
        });
        let endpoints = endpoints.collect::<Vec<_>>();
        let ring = Ring::new(&endpoints);
        Self { name: name.to_owned(), endpoints, ring, balance, connect_timeout, tls, turn: AtomicUsize::new(0) }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a connection to one endpoint may take to be made.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How it chooses among its endpoints.
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// Its TLS; `None` is cleartext.
    pub fn tls(&self) -> Option<&UpstreamTls> {
        self.tls.as_ref()
    }

    /// Its endpoints, in the order of the file.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Whether a connection is worth a try: not when the last attempt at every endpoint failed.
    pub fn usable(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.is_reachable())
    }

    /// The endpoint to try next, without those tried; `None` when there is no other.
    ///
    /// The preferred one comes first while it is healthy, and those that are not healthy come last.
    pub fn pick(&self, preference: &Preference, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let untried = |endpoint: &&Arc<Endpoint>| !tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint));
        let preferred = match preference {
            Preference::None => None,
            Preference::Endpoint(index) => self.endpoints.get(*index).filter(|endpoint| endpoint.is_healthy()),
            Preference::Hash(key) => self
                .ring
                .successors(key)
                .filter_map(|index| self.endpoints.get(index))
                .find(|endpoint| endpoint.is_healthy() && untried(endpoint)),
        };
        if let Some(endpoint) = preferred.filter(untried) {
            return Some(endpoint.clone());
        }
        let count = self.endpoints.len();
        let turn = if tried.is_empty() { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let others = (0..count).map(|step| &self.endpoints[(turn.wrapping_add(step)) % count]).filter(untried);
        // The first of equals wins in all cases, and the turn decides which that is.
        let chosen = match self.balance {
            Balance::LeastConnections => others.min_by_key(|endpoint| (!endpoint.is_healthy(), endpoint.active())),
            Balance::RoundRobin | Balance::Hash => others.min_by_key(|endpoint| !endpoint.is_healthy()),
        };
        chosen.cloned()
    }

    /// Connects to the picked endpoint, or to the others in turn, each once.
    ///
    /// Cancel-safe: a dropped call gives its place at the endpoint back.
    ///
    /// # Errors
    /// No endpoint took the connection.
    pub async fn connect(&self, preference: &Preference) -> Result<(Socket, Lease), ConnectError> {
        let mut tried = Vec::new();
        let mut unreachable = None;
        while let Some(endpoint) = self.pick(preference, &tried) {
            // Before the connection, so that simultaneous handshakes see each other.
            let lease = endpoint.lease();
            match endpoint.connect(self.connect_timeout).await {
                Ok(stream) => return Ok((stream, lease)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => unreachable = Some(error),
            }
            tried.push(endpoint);
        }
        match unreachable {
            Some(error) => Err(ConnectError::Unreachable(error)),
            None => Err(ConnectError::Timeout(self.connect_timeout)),
        }
    }
}

/// How many points ketama gives a node of weight 1.
const POINTS_PER_ENDPOINT: usize = 160;

/// The endpoints on a ring, so that one that comes or goes moves only its own clients: ketama, as nginx and memcached
/// have it.
struct Ring {
    continuum: Continuum,
    /// The place of each endpoint among the upstream's, by its address on the ring.
    places: HashMap<SocketAddr, usize>,
}

impl Ring {
    fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        // The ring wants addresses, and an endpoint is a name. What matters is that every gateway with the same names
        // has the same ring, so an address is made of a name's hash.
        let places: HashMap<_, _> =
            endpoints.iter().enumerate().map(|(place, endpoint)| (ring_address(endpoint.address()), place)).collect();
        let buckets: Vec<_> =
            endpoints.iter().map(|endpoint| Bucket::new(ring_address(endpoint.address()), 1)).collect();
        Self { continuum: Continuum::new(&buckets), places }
    }

    /// The places of the endpoints, beginning with the one that `key` hashes to. Some may come several times.
    fn successors(&self, key: &[u8]) -> impl Iterator<Item = usize> {
        // The ring has no end: once around meets every endpoint.
        let points = self.places.len() * POINTS_PER_ENDPOINT;
        self.continuum.node_iter(key).take(points).filter_map(|address| self.places.get(address).copied())
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

fn ring_address(name: &str) -> SocketAddr {
    let hash = Sha256::digest(name.as_bytes());
    let address: [u8; 16] = std::array::from_fn(|at| hash[at]);
    SocketAddr::from((address, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn upstream(endpoints: &[&str], balance: Balance) -> (Arc<Metrics>, Upstream) {
        let metrics = Metrics::new();
        let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        let upstream = Upstream::new("chat", endpoints, balance, TIMEOUT, None, &metrics);
        (metrics, upstream)
    }

    async fn listening() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    /// An address where nobody listens: bound, so that nobody else takes it, and refusing.
    fn refusing() -> (socket2::Socket, String) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
        (socket, address)
    }

    fn addresses(upstream: &Upstream, picks: usize) -> Vec<String> {
        (0..picks).map(|_| upstream.pick(&Preference::None, &[]).unwrap().address().to_owned()).collect()
    }

    #[test]
    fn round_robin_takes_turns() {
        let (_metrics, upstream) = upstream(&["a:1", "b:1", "c:1"], Balance::RoundRobin);
        assert_eq!(addresses(&upstream, 5), ["a:1", "b:1", "c:1", "a:1", "b:1"]);
    }

    #[test]
    fn least_connections_fills_the_emptiest_and_breaks_ties_in_turn() {
        let (metrics, upstream) = upstream(&["a:1", "b:1"], Balance::LeastConnections);
        assert_eq!(addresses(&upstream, 3), ["a:1", "b:1", "a:1"]);
        let leases: Vec<_> = (0..2).map(|_| upstream.endpoints()[0].lease()).collect();
        assert_eq!(addresses(&upstream, 3), ["b:1", "b:1", "b:1"]);
        assert_eq!(metrics.upstream_connections("chat", "a:1").get(), 2);
        drop(leases);
        assert_eq!(upstream.endpoints()[0].active(), 0);
        assert_eq!(metrics.upstream_connections("chat", "a:1").get(), 0);
    }

    #[test]
    fn a_tried_endpoint_is_not_picked_again() {
        let (_metrics, upstream) = upstream(&["a:1", "b:1"], Balance::LeastConnections);
        let first = upstream.pick(&Preference::None, &[]).unwrap();
        let second = upstream.pick(&Preference::None, std::slice::from_ref(&first)).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(upstream.pick(&Preference::None, &[first, second]).is_none());
    }

    #[tokio::test]
    async fn a_client_keeps_its_endpoint_while_that_is_healthy() {
        let (_metrics, upstream) = upstream(&["a:1", "b:1", "c:1"], Balance::LeastConnections);
        let pick = |preference: &Preference| upstream.pick(preference, &[]).unwrap().address().to_owned();
        assert_eq!((0..5).map(|_| pick(&Preference::Endpoint(1))).collect::<Vec<_>>(), ["b:1"; 5]);
        assert!(upstream.pick(&Preference::Endpoint(9), &[]).is_some(), "a place that is gone prefers nobody");
        (0..3).for_each(|_| upstream.endpoints()[1].misbehaved());
        assert_ne!(pick(&Preference::Endpoint(1)), "b:1");
    }

    #[tokio::test]
    async fn a_hash_moves_only_the_clients_of_an_endpoint_that_is_gone() {
        let (_metrics, all) = upstream(&["a:1", "b:1", "c:1"], Balance::Hash);
        let keys: Vec<_> = (0..300).map(|n| Preference::Hash(format!("user-{n}").into_bytes())).collect();
        let picks = |upstream: &Upstream| -> Vec<String> {
            keys.iter().map(|key| upstream.pick(key, &[]).unwrap().address().to_owned()).collect()
        };
        let before = picks(&all);
        for endpoint in ["a:1", "b:1", "c:1"] {
            assert!(before.iter().filter(|picked| *picked == endpoint).count() > 30, "{endpoint} has its share");
        }
        assert_eq!(
            picks(&upstream(&["c:1", "a:1", "b:1"], Balance::Hash).1),
            before,
            "the order of the file is nothing"
        );
        (0..3).for_each(|_| all.endpoints()[1].misbehaved());
        for (before, after) in before.iter().zip(picks(&all)) {
            assert!(after != "b:1" && (before == "b:1" || *before == after));
        }
    }

    #[tokio::test]
    async fn the_last_endpoint_is_never_ejected() {
        let (_metrics, upstream) = upstream(&["a:1"], Balance::RoundRobin);
        (0..9).for_each(|_| upstream.endpoints()[0].misbehaved());
        assert!(upstream.pick(&Preference::None, &[]).is_some());
        assert!(upstream.pick(&Preference::Hash(vec![1]), &[]).is_some());
    }

    #[tokio::test]
    async fn connects_to_another_endpoint_when_one_refuses() {
        let (_socket, refused) = refusing();
        let (_listener, accepted) = listening().await;
        let (_metrics, upstream) = upstream(&[&refused, &accepted], Balance::RoundRobin);
        for _ in 0..3 {
            let (stream, lease) = upstream.connect(&Preference::None).await.unwrap();
            let tcp = stream.tcp().unwrap();
            assert_eq!(tcp.peer_addr().unwrap().to_string(), accepted);
            assert!(tcp.nodelay().unwrap());
            assert_eq!(lease.endpoint().address(), accepted);
        }
        assert!(upstream.usable());
        assert_eq!(upstream.endpoints()[0].active(), 0);
        // It is passed over from now on.
        assert_eq!(addresses(&upstream, 3), [accepted.as_str(), &accepted, &accepted]);
    }

    #[tokio::test]
    async fn an_upstream_whose_endpoints_all_refused_is_unusable_until_one_comes_back() {
        let (socket, refused) = refusing();
        let (_metrics, upstream) = upstream(&[&refused], Balance::LeastConnections);
        assert!(upstream.usable(), "nothing was tried yet");
        assert!(matches!(upstream.connect(&Preference::None).await, Err(ConnectError::Unreachable(_))));
        assert!(!upstream.usable());
        socket.listen(8).unwrap();
        let back = async {
            while !upstream.usable() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, back).await.expect("the endpoint is tried without a client");
    }

    #[tokio::test]
    async fn says_when_nobody_answered_in_time() {
        // A listener whose queue is full drops the SYN.
        let (socket, full) = refusing();
        socket.listen(0).unwrap();
        let mut queued = Vec::new();
        for _ in 0..4 {
            let connecting = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(&full));
            queued.push(connecting.await);
        }
        let metrics = Metrics::new();
        let timeout = Duration::from_millis(100);
        let upstream = Upstream::new("chat", vec![full], Balance::LeastConnections, timeout, None, &metrics);
        assert!(
            matches!(upstream.connect(&Preference::None).await, Err(ConnectError::Timeout(found)) if found == timeout)
        );
        assert!(!upstream.usable());
    }
}
