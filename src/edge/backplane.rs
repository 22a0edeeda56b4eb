//! Fan-out at work: its engine, its hub, and what a handshake with a backend that speaks GRIP needs of them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use pingora::http::RequestHeader;
use ring::rand::SystemRandom;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::socket::Socket;
use crate::admin::Readiness;
use crate::backplane::engine::{Engine, Event};
use crate::backplane::hub::{Hub, InboxLimit};
use crate::backplane::memory::{self, MemoryEngine};
use crate::backplane::position::{PositionError, Region};
use crate::backplane::redis::{self, RedisEngine};
use crate::backplane::sink::SinkLimit;
use crate::backplane::subscriber::Subscriber;
use crate::backplane::upstream::GripUpstream;
use crate::cause::Refusal;
use crate::config::{self, EngineKind, GripSignature};
use crate::events;
use crate::grip::Limits;
use crate::grip::extension::OptIn;
use crate::grip::filters::Filter;
use crate::grip::headers::{Added, Feature, add_request};
use crate::metrics::{BackplaneMetrics, Metrics};

/// What this version can do, as backends are told.
const FEATURES: [Feature; 8] = [
    Feature::Session,
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
    all_metrics: Arc<Metrics>,
    signature: Option<GripSignature>,
    random: SystemRandom,
}

impl Backplane {
    /// Starts the engine and the hub. An engine that is elsewhere is connected to in the background.
    ///
    /// # Errors
    /// None, unless a random number makes no epoch.
    pub fn start(
        config: &config::Backplane,
        all_metrics: &Arc<Metrics>,
        readiness: &Arc<Readiness>,
    ) -> Result<Arc<Self>, PositionError> {
        let (region, retention, dedupe_window) = (config.region.clone(), config.retention, config.dedupe_window);
        let engine: Arc<dyn Engine> = match &config.engine {
            EngineKind::Memory => {
                let settings = memory::Settings { retention, dedupe_window, ..memory::Settings::default() };
                Arc::new(MemoryEngine::new(region, settings)?)
            }
            EngineKind::Redis(access) => {
                let settings = redis::Settings {
                    credentials: access.credentials.clone(),
                    sentinel_credentials: access.sentinel_credentials.clone(),
                    ingest: config.ingest.clone(),
                    retention,
                    dedupe_window,
                    ..redis::Settings::new(access.servers.clone())
                };
                Arc::new(RedisEngine::start(region, settings))
            }
        };
        let metrics = all_metrics.backplane(config.region.as_str());
        let hub = Hub::start(engine.clone(), SinkLimit::default(), metrics.clone());
        let state =
            EngineState { region: config.region.clone(), metrics: metrics.clone(), readiness: readiness.clone() };
        match config.engine {
            EngineKind::Memory => state.up(),
            EngineKind::Redis(_) => state.down("it is being connected to"),
        }
        tokio::spawn(watch(engine.events(), state));
        let (limits, signature) = (Limits::default(), config.signature.clone());
        Ok(Arc::new(Self {
            engine,
            hub,
            limits,
            metrics,
            all_metrics: all_metrics.clone(),
            signature,
            random: SystemRandom::new(),
        }))
    }

    /// Offers GRIP to a backend in a handshake, in the place of all other extensions, and says who offers it.
    ///
    /// # Errors
    /// `MalformedRequest`: the configured `sig_iss` cannot stand in a header, or the system has no random numbers.
    pub fn offer(&self, upstream: &mut RequestHeader) -> Result<(), Refusal> {
        let refused = Refusal::MalformedRequest;
        let now_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.signature.as_ref().map(|of| of.key.grip_sig(&of.issuer, now_secs, &self.random));
        let Ok(signature) = signature.transpose() else { return Err(refused) };
        let mut headers = HeaderMap::new();
        let added = Added { signature: signature.as_deref(), features: &FEATURES, last: &[], offer: true };
        if add_request(&mut headers, &added).is_err() {
            return Err(refused);
        }
        for (name, value) in headers.iter() {
            if upstream.insert_header(name.clone(), value.clone()).is_err() {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// The stream of a backend that has opted in, with what was read of it behind its 101.
    pub fn upstream(
        &self,
        io: Socket,
        preread: Vec<u8>,
        opt_in: OptIn,
        queue: InboxLimit,
        rule: &str,
    ) -> GripUpstream<Socket> {
        let member = self.hub.join(queue).measured(self.all_metrics.rule(rule).message_latency_backplane.clone());
        let subscriber = Subscriber::new(member, self.limits.clone());
        GripUpstream::new(io, preread, opt_in, self.limits.clone(), subscriber, rule.to_owned())
    }
}

/// Where it is shown whether the engine can be reached.
struct EngineState {
    region: Region,
    metrics: Arc<BackplaneMetrics>,
    readiness: Arc<Readiness>,
}

impl EngineState {
    fn up(&self) {
        self.metrics.up.set(1);
        self.readiness.set_engine(self.region.as_str(), None);
    }

    fn down(&self, why: &str) {
        self.metrics.up.set(0);
        self.readiness.set_engine(self.region.as_str(), Some(why));
    }
}

/// Logs when an engine goes and comes, and shows it.
async fn watch(mut events: Receiver<Event>, state: EngineState) {
    // Each try that fails says so; the log has the first.
    let mut told_down = false;
    loop {
        match events.recv().await {
            Ok(Event::Up) => {
                told_down = false;
                state.up();
                events::Event::new("engine_up").emit();
            }
            Ok(Event::Down(error)) => {
                let why = error.to_string();
                state.down(&why);
                if !std::mem::replace(&mut told_down, true) {
                    events::Event::new("engine_down").field("detail", why).emit();
                }
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
