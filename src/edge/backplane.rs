//! Fan-out at work: its engine, its hub, and what a handshake with a backend that speaks GRIP needs of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use ring::rand::SystemRandom;

use super::asking::{Asker, ClientBackend, Compact, connection_id};
use super::engine_watch::{Shown, watch};
use super::engines;
use super::socket::Socket;
use super::upstreams::{Preference, Upstream};
use crate::admin::Readiness;
use crate::backplane::channels::{ChannelRule, ChannelRules};
use crate::backplane::engine::Channel;
use crate::backplane::hub::{ChannelPlan, Hub, InboxLimit, Member};
use crate::backplane::position::{PositionError, Region};
use crate::backplane::regions::{Homes, Regions};
use crate::backplane::resume;
use crate::backplane::sink::SinkLimit;
use crate::backplane::subscriber::Subscriber;
use crate::backplane::upstream::{GripUpstream, Setup};
use crate::cause::Refusal;
use crate::config::{self, BackplaneMode, GripSignature};
use crate::grip::Limits;
use crate::grip::extension::OptIn;
use crate::grip::filters::Filter;
use crate::grip::headers::{Added, Feature, add_request};
use crate::metrics::{BackplaneMetrics, Metrics, RuleMetrics};
use crate::tunnel::{self, Compression};
use crate::ws::deflate::WINDOW_BITS;

/// What this version can do, as backends are told.
const FEATURES: [Feature; 11] = [
    Feature::Status,
    Feature::Session,
    Feature::LinkNext,
    Feature::Filter(Filter::SkipSelf),
    Feature::Filter(Filter::SkipUsers),
    Feature::Filter(Filter::RequireSub),
    Feature::Filter(Filter::BuildId),
    Feature::Filter(Filter::VarSubst),
    Feature::Recover,
    Feature::Conflate,
    Feature::Ack,
];

/// What a header of GRIP begins with.
const GRIP: &str = "grip-";

/// Fan-out at work.
pub struct Backplane {
    /// Where publications are kept.
    pub regions: Regions,
    /// Who is subscribed on this node.
    pub hub: Arc<Hub>,
    /// What channels are, by how their names begin.
    pub channels: Arc<ChannelRules>,
    /// What bounds GRIP.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<BackplaneMetrics>,
    signature: Option<GripSignature>,
    random: SystemRandom,
}

impl Backplane {
    /// Starts the engines and the hub. An engine that is elsewhere is connected to in the background.
    ///
    /// # Errors
    /// None, unless a random number makes no epoch.
    pub fn start(
        config: &config::Backplane,
        metrics: &Metrics,
        readiness: &Arc<Readiness>,
    ) -> Result<Arc<Self>, PositionError> {
        let mut engines = vec![engines::start(&config.engine, config.region.clone(), config)?];
        for (region, kind) in &config.regions {
            // Streams that others fill are our own region's.
            let config = config::Backplane { ingest: Vec::new(), ..config.clone() };
            engines.push(engines::start(kind, region.clone(), &config)?);
        }
        let names: Vec<&str> = engines.iter().map(|engine| engine.region().as_str()).collect();
        let metrics = metrics.backplane(&names);
        let nth = |region: &Region| engines.iter().position(|engine| engine.region() == region);
        let failover = config.publish_failover.iter().filter_map(nth).collect();
        let of_rule = |rule: &ChannelRule| (rule.prefix.clone(), rule.home.as_ref().and_then(nth));
        let homes = Homes::new(config.channels.iter().map(of_rule).collect());
        let regions = Regions::new(engines, failover, homes.clone());
        let home = Box::new(move |channel: &Channel| homes.of(channel));
        let channels = Arc::new(config.channels.clone());
        let plan = ChannelPlan { homes: home, rules: channels.clone() };
        let hub = Hub::start_planned(regions.engines().to_vec(), plan, SinkLimit::default(), metrics.clone());
        for (nth, engine) in regions.engines().iter().enumerate() {
            let shown = Shown {
                nth,
                region: engine.region().clone(),
                required: nth == 0 && config.required_for_readiness,
                hub: Arc::downgrade(&hub),
                metrics: metrics.clone(),
                readiness: readiness.clone(),
            };
            watch(engine, nth == 0 && engines::is_here(&config.engine), shown);
        }
        let (limits, signature) = (Limits::default(), config.signature.clone());
        Ok(Arc::new(Self { regions, hub, channels, limits, metrics, signature, random: SystemRandom::new() }))
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

    /// What a client of the subprotocol is told first.
    pub fn resume(&self, connection: String, settings: &tunnel::Settings) -> resume::Settings {
        resume::Settings {
            connection,
            regions: self.regions.names().cloned().collect(),
            ping: settings.keepalive.as_ref().filter(|pings| pings.client).map(|pings| pings.interval),
            max_message_bytes: settings.message.max_size_bytes,
        }
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
    /// The stream of a backend that has opted in, with what was read of it behind its 101, for a client. `backend` is the
    /// same over HTTP, and `resume` for a client that was answered the subprotocol `sluicegate.v1`.
    pub fn upstream(
        &self,
        io: Socket,
        preread: Vec<u8>,
        opt_in: OptIn,
        backend: Arc<ClientBackend>,
        (rule, subscriber): (&str, Subscriber),
        resume: Option<resume::Settings>,
    ) -> GripUpstream<Socket> {
        let limits = self.shared.limits.clone();
        let setup = Setup { opt_in, limits, subscriber, backend: Arc::new(backend), resume, rule: rule.to_owned() };
        GripUpstream::new(io, preread, setup)
    }

    /// A client's place among the subscribers of this node.
    pub fn member(&self, metrics: &RuleMetrics) -> Member {
        self.shared.hub.join(self.queue).measured(metrics.message_latency_backplane.clone())
    }

    /// A client, without a subscription yet, of a session with this compression.
    pub fn subscriber(&self, metrics: &RuleMetrics, compression: Compression) -> Subscriber {
        let subscriber = Subscriber::new(self.member(metrics), self.shared.limits.clone());
        match compression {
            // For smaller windows the tunnel compresses, for each by itself.
            Compression::Terminate { window_bits: WINDOW_BITS } if self.shared.channels.conflate() => {
                subscriber.compressing()
            }
            _ => subscriber,
        }
    }

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

/// Takes from a client's request what only a gateway may say to a backend.
pub fn strip(request: &mut RequestHeader) {
    let named: Vec<_> = request.headers.keys().filter(|name| name.as_str().starts_with(GRIP)).cloned().collect();
    for name in named {
        request.remove_header(&name);
    }
}
