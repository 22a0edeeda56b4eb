//! Fan-out at work: its engine, its hub, and what a handshake with a backend that speaks GRIP needs of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use ring::rand::SystemRandom;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::asking::{Asker, ClientBackend, Compact, connection_id};
use super::socket::Socket;
use super::upstreams::{Preference, Upstream};
use crate::backplane::engine::{Engine, Event};
use crate::backplane::hub::{Hub, InboxLimit};
use crate::backplane::memory::{self, MemoryEngine};
use crate::backplane::position::PositionError;
use crate::backplane::redis::{self, RedisEngine, Servers};
use crate::backplane::sink::SinkLimit;
use crate::backplane::subscriber::Subscriber;
use crate::backplane::upstream::GripUpstream;
use crate::cause::Refusal;
use crate::config::{self, BackplaneMode, EngineKind, GripSignature};
use crate::events;
use crate::grip::Limits;
use crate::grip::extension::OptIn;
use crate::grip::filters::Filter;
use crate::grip::headers::{Added, Feature, add_request};
use crate::metrics::{BackplaneMetrics, Metrics};

/// What this version can do, as backends are told.
const FEATURES: [Feature; 10] = [
    Feature::Status,
    Feature::Session,
    Feature::LinkNext,
    Feature::Filter(Filter::SkipSelf),
    Feature::Filter(Filter::SkipUsers),
    Feature::Filter(Filter::RequireSub),
    Feature::Filter(Filter::BuildId),
    Feature::Filter(Filter::VarSubst),
    Feature::Recover,
    Feature::Ack,
];

/// What a header of GRIP begins with.
const GRIP: &str = "grip-";

/// Fan-out at work.
pub struct Backplane {
    /// Where publications are kept.
    pub engine: Arc<dyn Engine>,
    /// Who is subscribed on this node.
    pub hub: Arc<Hub>,
    /// What bounds GRIP.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<BackplaneMetrics>,
    signature: Option<GripSignature>,
    random: SystemRandom,
}

impl Backplane {
    /// Starts the engine and the hub. An engine that is elsewhere is connected to in the background.
    ///
    /// # Errors
    /// None, unless a random number makes no epoch.
    pub fn start(config: &config::Backplane, metrics: &Metrics) -> Result<Arc<Self>, PositionError> {
        let (region, retention, dedupe_window) = (config.region.clone(), config.retention, config.dedupe_window);
        let engine: Arc<dyn Engine> = match &config.engine {
            EngineKind::Memory => {
                let settings = memory::Settings { retention, dedupe_window, ..memory::Settings::default() };
                Arc::new(MemoryEngine::new(region, settings)?)
            }
            EngineKind::Redis { url, username, password } => {
                let servers = Servers::Standalone { url: url.clone() };
                let settings = redis::Settings {
                    username: username.clone(),
                    password: password.clone(),
                    retention,
                    dedupe_window,
                    ..redis::Settings::new(servers)
                };
                Arc::new(RedisEngine::start(region, settings))
            }
        };
        let metrics = metrics.backplane(config.region.as_str());
        let hub = Hub::start(engine.clone(), SinkLimit::default(), metrics.clone());
        metrics.up.set(i64::from(matches!(config.engine, EngineKind::Memory)));
        tokio::spawn(watch(engine.events(), metrics.clone()));
        let (limits, signature) = (Limits::default(), config.signature.clone());
        Ok(Arc::new(Self { engine, hub, limits, metrics, signature, random: SystemRandom::new() }))
    }

    /// Adds what every request to a backend has: who asks, and what it can do; with `offer` also the offer of GRIP, in the
    /// place of all other extensions. `last` has channels with the last id of each, in requests that resume something.
    ///
    /// # Errors
    /// `MalformedRequest`: a value cannot stand in a header, or the system has no random numbers.
    pub fn add(&self, headers: &mut HeaderMap, last: &[(&str, &str)], offer: bool) -> Result<(), Refusal> {
        let refused = Refusal::MalformedRequest;
        let now_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.signature.as_ref().map(|of| of.key.grip_sig(&of.issuer, now_secs, &self.random));
        let Ok(signature) = signature.transpose() else { return Err(refused) };
        let added = Added { signature: signature.as_deref(), features: &FEATURES, last, offer };
        if add_request(headers, &added).is_err() { Err(refused) } else { Ok(()) }
    }

    /// Says in a plain request who asks, what it can do, and the last id of each channel in `last`.
    ///
    /// # Errors
    /// `InvalidHTTPHeader`: as [`Backplane::add`].
    pub fn introduce(&self, request: &mut RequestHeader, last: &[(&str, &str)]) -> pingora::Result<()> {
        let mut headers = HeaderMap::new();
        self.add(&mut headers, last, false).map_err(|_| Error::new(ErrorType::InvalidHTTPHeader))?;
        for (name, value) in headers.iter() {
            request.append_header(name.clone(), value.clone())?;
        }
        Ok(())
    }

    /// Offers GRIP to a backend in a handshake.
    ///
    /// # Errors
    /// As [`Backplane::add`].
    pub fn offer(&self, upstream: &mut RequestHeader) -> Result<(), Refusal> {
        let refused = Refusal::MalformedRequest;
        let mut headers = HeaderMap::new();
        self.add(&mut headers, &[], true)?;
        for (name, value) in headers.iter() {
            if upstream.insert_header(name.clone(), value.clone()).is_err() {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// A client, without a subscription yet. `queue` bounds what waits for it.
    pub fn subscriber(&self, queue: InboxLimit) -> Subscriber {
        Subscriber::new(self.hub.join(queue), self.limits.clone())
    }

    /// The stream of a backend that has opted in, with what was read of it behind its 101.
    pub fn upstream(
        &self,
        io: Socket,
        preread: Vec<u8>,
        opt_in: OptIn,
        queue: InboxLimit,
        backend: Arc<ClientBackend>,
        rule: &str,
    ) -> GripUpstream<Socket> {
        let subscriber = self.subscriber(queue);
        let (limits, backend) = (self.limits.clone(), Arc::new(backend));
        GripUpstream::new(io, preread, opt_in, limits, subscriber, backend, rule.to_owned())
    }
}

impl std::fmt::Debug for Backplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backplane").field("hub", &self.hub).finish_non_exhaustive()
    }
}

/// Fan-out for the clients of one rule.
#[derive(Debug)]
pub struct RuleBackplane {
    /// What all rules share.
    pub shared: Arc<Backplane>,
    /// How its backend speaks of its clients.
    pub mode: BackplaneMode,
    /// How much waits for one of them.
    pub queue: InboxLimit,
    /// What its own requests to the backend share.
    pub asker: Arc<Asker>,
}

impl RuleBackplane {
    /// The backend over HTTP, for the client whose handshake was `sent`. `timeout` is for its answers.
    pub fn backend(
        &self,
        to: &Arc<Upstream>,
        preference: &Preference,
        sent: &RequestHeader,
        timeout: Duration,
    ) -> Arc<ClientBackend> {
        Arc::new(ClientBackend {
            asker: self.asker.clone(),
            backplane: self.shared.clone(),
            upstream: to.clone(),
            preference: preference.clone(),
            headers: Compact::new(&sent.headers),
            target: sent.uri.path_and_query().map_or("/", |target| target.as_str()).into(),
            connection_id: connection_id(),
            asked: parking_lot::Mutex::default(),
            timeout,
        })
    }
}

/// Logs when an engine goes and comes, and shows it.
async fn watch(mut events: Receiver<Event>, metrics: Arc<BackplaneMetrics>) {
    loop {
        match events.recv().await {
            Ok(Event::Up) => {
                metrics.up.set(1);
                events::Event::new("engine_up").emit();
            }
            Ok(Event::Down(error)) => {
                // Each try that fails says so; the log has the first.
                if metrics.up.get() != 0 {
                    events::Event::new("engine_down").field("detail", error.to_string()).emit();
                }
                metrics.up.set(0);
            }
            Ok(Event::LineageChanged { from, to }) => events::Event::new("engine_lineage_changed")
                .field("from", from.as_str())
                .field("to", to.as_str())
                .emit(),
            Ok(Event::Disrupted(_) | Event::Heartbeat { .. }) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Takes from a client's request what only a gateway may say to a backend.
pub fn strip(request: &mut RequestHeader) {
    let named: Vec<_> = request.headers.keys().filter(|name| name.as_str().starts_with(GRIP)).cloned().collect();
    for name in named {
        request.remove_header(&name);
    }
}
