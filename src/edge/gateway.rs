//! A configuration at work: its rules with their limits and metrics, its upstreams, and what the process shares.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::asking::Asker;
use super::backplane::{Backplane, RuleBackplane};
use super::record::{Record, SessionRecord};
use super::upstreams::{self, Upstream, UpstreamTls};
use crate::cause::Refusal;
use crate::config::{
    self, AccessLog, BackplaneMode, CompressionMode, Config, HttpLimits, PerIp, Respond, Sticky, WebSocketMode,
};
use crate::metrics::{Metrics, NO_RULE, RuleMetrics};
use crate::policy::client_address::{Peer, TrustedProxies};
use crate::policy::clients::Clients;
use crate::policy::connection_limit::{ConnectionLimit, Enforce, Guard};
use crate::policy::handshake_limit::HandshakeLimit;
use crate::policy::headers::HeaderEdits;
use crate::policy::origin::OriginPolicy;
use crate::policy::reconnects::Reconnects;
use crate::policy::redirect::Redirect;
use crate::policy::rewrite::Rewrite;
use crate::policy::route::{self, Matcher};
use crate::tls::Problem;
use crate::tls::reload::Reloading;
use crate::tls::server::ServerFiles;
use crate::tunnel::Settings;
use crate::tunnel::registry::Registry;

/// Descriptors that are kept for files, the admin listener, pooled upstream connections and the runtime.
const RESERVED_DESCRIPTORS: u64 = 256;

/// What all connections share.
pub struct Gateway {
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Arc<Rule>>,
    /// The upstreams of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Fan-out, where the configuration has it.
    pub backplane: Option<Arc<Backplane>>,
    /// Peers that are believed when they name a client.
    pub trusted_proxies: TrustedProxies,
    /// The metrics of requests for which no rule is known.
    pub no_rule: Arc<RuleMetrics>,
    /// Which plain requests get a log line.
    pub access_log: AccessLog,
    /// The live sessions.
    pub registry: Arc<Registry<SessionRecord>>,
    /// Sessions of the process.
    pub sessions: Arc<ConnectionLimit>,
    /// The clients whose sessions ended a moment ago.
    pub reconnects: Reconnects,
    session_limit: usize,
    /// Descriptors in use: one for a connection, and one more for its upstream.
    descriptors: Arc<ConnectionLimit>,
    refusing: watch::Sender<bool>,
    hop_warned: AtomicBool,
}

/// A rule at work.
pub struct Rule {
    /// Its name in metrics and logs.
    pub name: String,
    matcher: Matcher,
    /// What is done with its requests.
    pub action: Action,
    /// How a client comes back to the endpoint that it had; `None` is off.
    pub sticky: Option<Sticky>,
    /// The path that the upstream sees; `None`: as it came.
    pub rewrite: Option<Rewrite>,
    /// Headers of what goes to the upstream.
    pub request_headers: HeaderEdits,
    /// Headers of what goes to the client.
    pub response_headers: HeaderEdits,
    /// Limits of plain HTTP.
    pub http: HttpLimits,
    clients: Option<Clients>,
    /// Whether what the policies would refuse is only counted and logged.
    report_only: bool,
    /// Whether it takes upgrades.
    pub websocket: WebSocketMode,
    /// Who negotiates permessage-deflate with whom.
    pub compression: CompressionMode,
    /// Which pages may open a WebSocket.
    pub origin: OriginPolicy,
    handshakes: Option<PerIp<HandshakeLimit>>,
    /// How long the upstream may take to answer a handshake.
    pub upstream_timeout: Duration,
    connections: Arc<ConnectionLimit>,
    connections_written: bool,
    /// Fan-out, where the backend may subscribe the rule's clients.
    pub backplane: Option<RuleBackplane>,
    /// What its tunnels enforce.
    pub tunnel: Arc<Settings>,
    /// What it counts.
    pub metrics: Arc<RuleMetrics>,
}

/// What a rule does with its requests.
#[derive(Clone, Debug)]
pub enum Action {
    /// They go to an upstream.
    Upstream(Arc<Upstream>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// They are answered here.
    Respond(Respond),
}

/// A listener at work.
#[derive(Debug)]
pub struct ListenerState {
    /// Its settings.
    pub config: config::Listener,
    /// Its name, shared by the records of its requests.
    pub name: Arc<str>,
    /// Its TLS; `None` is cleartext.
    pub tls: Option<Arc<Reloading<ServerFiles>>>,
}

impl Gateway {
    /// Puts a configuration to work. `descriptor_limit` is how many descriptors the process may open.
    ///
    /// # Errors
    /// Files of an upstream's TLS that cannot be used, with its name.
    pub fn new(
        config: &Config,
        metrics: &Metrics,
        descriptor_limit: u64,
        backplane: Option<Arc<Backplane>>,
    ) -> Result<Self, (String, Vec<Problem>)> {
        let upstreams: Vec<_> = config
            .upstreams
            .iter()
            .map(|upstream| {
                let tls = upstream.tls.as_ref().map(UpstreamTls::new).transpose();
                let tls = tls.map_err(|problems| (upstream.name.clone(), problems))?;
                let balance = match upstream.balance {
                    config::Balance::LeastConnections => upstreams::Balance::LeastConnections,
                    config::Balance::RoundRobin => upstreams::Balance::RoundRobin,
                    config::Balance::Hash => upstreams::Balance::Hash,
                };
                let endpoints = upstream.endpoints.clone();
                let timeout = upstream.connect_timeout;
                Ok(Arc::new(Upstream::new(&upstream.name, endpoints, balance, timeout, tls, metrics)))
            })
            .collect::<Result<_, _>>()?;
        let places = descriptor_limit.saturating_sub(RESERVED_DESCRIPTORS).max(16);
        let places = usize::try_from(places).unwrap_or(usize::MAX);
        let descriptors = Arc::new(ConnectionLimit::new(None, Some(places)));
        let rule = |rule| Arc::new(Rule::new(rule, &upstreams, metrics, backplane.as_ref(), &descriptors));
        let rules = config.rules.iter().map(rule).collect();
        // A session takes two; without a connection to its backend one, and some are left for its requests.
        let over_http = config.rules.iter().any(|rule| rule.backplane == Some(BackplaneMode::GripHttp));
        let most = if over_http { places - places / 8 } else { places / 2 };
        let session_limit = config.limits.connections.unwrap_or(usize::MAX).min(most);
        Ok(Self {
            rules,
            upstreams,
            backplane,
            session_limit,
            trusted_proxies: config.trusted_proxies.clone(),
            no_rule: metrics.rule(NO_RULE),
            access_log: config.access_log,
            registry: Registry::new(),
            sessions: Arc::new(ConnectionLimit::new(None, Some(session_limit))),
            descriptors,
            reconnects: Reconnects::new(Instant::now()),
            refusing: watch::Sender::new(false),
            hop_warned: AtomicBool::new(false),
        })
    }

    /// The first rule that matches.
    pub fn route(&self, request: &route::Request<'_>) -> Option<&Arc<Rule>> {
        self.rules.iter().find(|rule| rule.matcher.matches(request))
    }

    /// The most sessions of the process.
    pub fn session_limit(&self) -> usize {
        self.session_limit
    }

    /// Takes a place for one descriptor; `None` when the process could run out of them.
    pub fn take_descriptor(&self) -> Option<Guard> {
        self.descriptors.acquire(ANYBODY, Enforce::ALL).ok().map(|acquired| acquired.guard)
    }

    /// Refuses every request from now on: the process ends.
    pub fn refuse_all(&self) {
        self.refusing.send_replace(true);
    }

    /// Whether the process ends, and takes nothing more.
    pub fn is_refusing(&self) -> bool {
        *self.refusing.borrow()
    }

    /// Resolves when the process ends.
    pub async fn refusing(&self) {
        // The sender is ours, so the wait ends with the value.
        let _ = self.refusing.subscribe().wait_for(|refusing| *refusing).await;
    }

    /// Whether limits per client address that nobody wrote are enforced against a peer: not against one that is a hop
    /// far more often than a client, and whose clients would share one limit.
    pub fn enforces_defaults_against(&self, peer: Peer, trusted: bool) -> bool {
        trusted || !peer.is_hop()
    }

    /// Says once that limits per client address are not enforced, and what to set so that they are.
    pub fn warn_of_hop(&self, peer: Peer) {
        if !self.hop_warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the default limits per client address are not enforced against {peer}: it looks like a proxy before \
                 this one; set trusted_proxies and client_address so that clients are told apart, or write the limits"
            );
        }
    }

    /// Forgets clients that used nothing of their limits for a while. To be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        for rule in &self.rules {
            if let Some(limit) = &rule.handshakes {
                limit.limit.sweep(now);
            }
        }
    }
}

/// The key where only a total counts.
pub const ANYBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

impl Rule {
    fn new(
        rule: &config::Rule,
        upstreams: &[Arc<Upstream>],
        metrics: &Metrics,
        backplane: Option<&Arc<Backplane>>,
        descriptors: &Arc<ConnectionLimit>,
    ) -> Self {
        let handshakes = rule
            .handshake_per_ip
            .map(|per_ip| PerIp { limit: HandshakeLimit::new(per_ip.limit, Instant::now()), written: per_ip.written });
        let per_ip = rule.connections_per_ip;
        Self {
            name: rule.name.clone(),
            matcher: rule.matcher.clone(),
            action: match &rule.action {
                config::Action::Upstream(index) => Action::Upstream(upstreams[*index].clone()),
                config::Action::Redirect(redirect) => Action::Redirect(redirect.clone()),
                config::Action::Respond(respond) => Action::Respond(respond.clone()),
            },
            sticky: rule.sticky.clone(),
            rewrite: rule.rewrite.clone(),
            request_headers: rule.request_headers.clone(),
            response_headers: rule.response_headers.clone(),
            http: rule.http,
            clients: rule.clients.clone(),
            report_only: rule.report_only,
            websocket: rule.websocket,
            compression: rule.compression,
            origin: rule.origin.clone(),
            handshakes,
            upstream_timeout: rule.upstream_timeout,
            connections: Arc::new(ConnectionLimit::new(per_ip.map(|per_ip| per_ip.limit), rule.connections_total)),
            connections_written: per_ip.is_some_and(|per_ip| per_ip.written),
            backplane: backplane.zip(rule.backplane).map(|(shared, mode)| RuleBackplane {
                shared: shared.clone(),
                mode,
                queue: rule.queue,
                asker: Arc::new(Asker::new(descriptors.clone())),
            }),
            tunnel: Arc::new(Settings {
                message: rule.message.clone(),
                keepalive: rule.keepalive.clone(),
                idle_timeout: rule.idle_timeout,
                slow_client: rule.slow_client.clone(),
                close_timeout: rule.close_timeout,
                report_only: rule.report_only,
            }),
            metrics: metrics.rule(&rule.name),
        }
    }

    /// Lets a policy refuse a request, or only say that it would.
    ///
    /// # Errors
    /// The refusal, where the rule enforces.
    pub fn judge(&self, verdict: Result<(), Refusal>, record: &Record) -> Result<(), Refusal> {
        match verdict {
            Err(refusal) if self.report_only => {
                self.metrics.would_refuse(refusal.row().policy);
                record.would_refuse(&refusal);
                Ok(())
            }
            verdict => verdict,
        }
    }

    /// Whether the rule serves a client's address.
    ///
    /// # Errors
    /// `ClientNotAllowed`.
    pub fn check_client(&self, client: Peer) -> Result<(), Refusal> {
        match &self.clients {
            Some(clients) if !clients.allows(client) => Err(Refusal::ClientNotAllowed),
            _ => Ok(()),
        }
    }

    /// Whether policies only report.
    pub fn reports_only(&self) -> bool {
        self.report_only
    }

    /// The limit of handshakes per client address, and whether the file names it.
    pub fn handshake_limit(&self) -> Option<(&HandshakeLimit, bool)> {
        self.handshakes.as_ref().map(|per_ip| (&per_ip.limit, per_ip.written))
    }

    /// The limit of sessions, and whether the file names the one per client address.
    pub fn connection_limit(&self) -> (&Arc<ConnectionLimit>, bool) {
        (&self.connections, self.connections_written)
    }
}
