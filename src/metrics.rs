//! The metrics, on the `prometheus` crate: the only file that names one.
//!
//! Labels are bounded: rules and upstreams come from the configuration, the rest from enums and from the tables of
//! causes; never a path, an address, or anything else that a peer sent. A session resolves its handles once, through
//! [`Metrics::rule`], and then only adds to atomics.

mod backplane;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::cause::{Cause, Refusal};
use crate::events;
use crate::ws::close::CloseCode;

pub use backplane::{BackplaneMetrics, SubscriptionMark};

/// The rule's name in metrics and logs before a rule is known.
pub const NO_RULE: &str = "none";

/// From a neighbouring process to the default `keepalive.timeout`, in seconds.
const RTT_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// From a keystroke to the default limit of a backend's message, in bytes.
const SIZE_BUCKETS: [f64; 10] =
    [64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// From one copy to a second of waiting, in seconds. The target for the 99th percentile, end to end, is 0.1.
const LATENCY_BUCKETS: [f64; 11] = [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// Messages that wait for one client. The target for the 99th percentile is below 5.
const DEPTH_BUCKETS: [f64; 9] = [0.0, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0];

/// Bytes that wait for one client.
const QUEUE_BUCKETS: [f64; 8] = [0.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 131_072.0, 524_288.0, 1_048_576.0];

/// All metrics of the process, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    families: Families,
    rules: Mutex<HashMap<String, Arc<RuleMetrics>>>,
    heap_bytes: IntGauge,
    upstream_connections: IntGaugeVec,
    upstream_healthy: IntGaugeVec,
    log_lines_dropped: IntCounter,
    tls_reloads: IntCounterVec,
    resident_bytes: IntGauge,
    reload_successful: IntGauge,
    reload_success_timestamp: IntGauge,
    /// What `log_lines_dropped` has taken over from the log's own count.
    lines_dropped_seen: AtomicU64,
}

/// The families that have a `rule` label.
struct Families {
    connections: IntGaugeVec,
    handshakes: IntCounterVec,
    reconnects: IntCounterVec,
    closes: IntCounterVec,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    policy_decisions: IntCounterVec,
    slow_evictions: IntCounterVec,
    ping_rtt: HistogramVec,
    pings_unanswered: IntCounterVec,
    message_size: HistogramVec,
    message_latency: HistogramVec,
    send_queue_messages: HistogramVec,
    send_queue_bytes: HistogramVec,
    slow_clients: IntGauge,
    queued_bytes: IntGauge,
    socket_unsent: HistogramVec,
    retransmits: IntCounterVec,
    http_requests: IntCounterVec,
    http_request_seconds: HistogramVec,
}

impl Metrics {
    /// All families, with the rule `none`.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let families = Families::new(&registry);
        let heap_bytes = register(
            &registry,
            IntGauge::new("sluicegate_heap_bytes", "Bytes that the allocator has handed out, seen every 10 s"),
        );
        let upstream_connections = register(
            &registry,
            IntGaugeVec::new(
                Opts::new("sluicegate_upstream_connections", "Connections to an endpoint, being made or in use"),
                &["upstream", "endpoint"],
            ),
        );
        let upstream_healthy = register(
            &registry,
            IntGaugeVec::new(
                Opts::new("sluicegate_upstream_healthy", "Whether an endpoint gets its share of connections: 1, or 0"),
                &["upstream", "endpoint"],
            ),
        );
        let log_lines_dropped = register(
            &registry,
            IntCounter::new("sluicegate_log_lines_dropped_total", "Log lines dropped because standard error is slow"),
        );
        let tls_reloads = register(
            &registry,
            IntCounterVec::new(
                Opts::new("sluicegate_tls_reloads_total", "Changed certificates, keys and CAs that were read again"),
                &["kind", "name", "result"],
            ),
        );
        let resident_bytes = register(
            &registry,
            IntGauge::new("sluicegate_process_resident_bytes", "Resident memory of the process, in bytes"),
        );
        let reload_successful = register(
            &registry,
            IntGauge::new(
                "sluicegate_config_last_reload_successful",
                "Whether the configuration that was read last is in force: 1, or 0",
            ),
        );
        let reload_success_timestamp = register(
            &registry,
            IntGauge::new(
                "sluicegate_config_last_reload_success_timestamp_seconds",
                "When the configuration in force was read, in seconds since 1970",
            ),
        );
        let metrics = Arc::new(Self {
            registry,
            families,
            rules: Mutex::default(),
            heap_bytes,
            upstream_connections,
            upstream_healthy,
            log_lines_dropped,
            tls_reloads,
            resident_bytes,
            reload_successful,
            reload_success_timestamp,
            lines_dropped_seen: AtomicU64::new(0),
        });
        metrics.rule(NO_RULE);
        metrics
    }

    /// The handles of a rule; made on the first call, and from then on its counters are there at 0.
    pub fn rule(&self, name: &str) -> Arc<RuleMetrics> {
        let mut rules = self.rules.lock();
        if let Some(rule) = rules.get(name) {
            return Arc::clone(rule);
        }
        let rule = Arc::new(RuleMetrics::new(name, &self.families));
        rules.insert(name.to_owned(), Arc::clone(&rule));
        rule
    }

    /// Tells how much the allocator has handed out, in bytes.
    pub fn set_heap_bytes(&self, bytes: u64) {
        self.heap_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Tells that a configuration came into force, at its start or later.
    pub fn config_loaded(&self, at: SystemTime) {
        self.reload_successful.set(1);
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.reload_success_timestamp.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// The gauge of connections to one endpoint.
    pub fn upstream_connections(&self, upstream: &str, endpoint: &str) -> IntGauge {
        self.upstream_connections.with_label_values(&[upstream, endpoint])
    }

    /// The handles of the backplane, which reads the logs of these regions, ours first. To be called once.
    pub fn backplane(&self, regions: &[&str]) -> Arc<BackplaneMetrics> {
        Arc::new(BackplaneMetrics::new(&self.registry, regions, self.families.queued_bytes.clone()))
    }

    /// Counts certificates, keys and CAs that changed: `kind` is listener or upstream, `name` whose they are.
    pub fn tls_reloaded(&self, kind: &'static str, name: &str, sound: bool) {
        self.tls_reloads.with_label_values(&[kind, name, if sound { "ok" } else { "failed" }]).inc();
    }

    /// The gauge of one endpoint's health.
    pub fn upstream_healthy(&self, upstream: &str, endpoint: &str) -> IntGauge {
        self.upstream_healthy.with_label_values(&[upstream, endpoint])
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let dropped = events::lines_dropped();
        let seen = self.lines_dropped_seen.fetch_max(dropped, Ordering::Relaxed);
        self.log_lines_dropped.inc_by(dropped.saturating_sub(seen));
        if let Some(bytes) = resident_bytes() {
            self.resident_bytes.set(bytes);
        }
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect("writing to a String cannot fail");
        text
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Families {
    fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, HistogramVec::new(opts, labels))
        };
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let connections = Opts::new("sluicegate_connections", "Active WebSocket sessions");
        Self {
            connections: register(registry, IntGaugeVec::new(connections, &["rule"])),
            handshakes: counter(
                "sluicegate_handshakes_total",
                "Handshakes by result: accepted, or the name of the refusal",
                &["rule", "result"],
            ),
            reconnects: counter(
                "sluicegate_reconnects_total",
                "Sessions opened within 60 s of the end of one of the same client, known by cookie or address",
                &["rule", "by"],
            ),
            closes: counter(
                "sluicegate_closes_total",
                "Sessions ended, by close code (1005: none given, 1006: no Close frame), by whom and why",
                &["rule", "code", "closed_by", "cause"],
            ),
            messages: counter(
                "sluicegate_messages_total",
                "Messages and control frames forwarded; in: from the client, out: to it",
                &["rule", "direction", "type"],
            ),
            bytes: counter(
                "sluicegate_bytes_total",
                "Bytes of frames forwarded, headers included; in: from the client, out: to it",
                &["rule", "direction"],
            ),
            policy_decisions: counter(
                "sluicegate_policy_decisions_total",
                "What the policies decided: allowed (per handshake), refused, would_refuse",
                &["rule", "policy", "decision"],
            ),
            slow_evictions: counter(
                "sluicegate_slow_client_evictions_total",
                "Sessions closed because the client read too slowly",
                &["rule"],
            ),
            ping_rtt: histogram(
                "sluicegate_ping_rtt_seconds",
                "From a ping of ours to its pong, in seconds",
                &RTT_BUCKETS,
                &["rule", "side"],
            ),
            pings_unanswered: counter(
                "sluicegate_pings_unanswered_total",
                "Pings of ours that got no pong in time",
                &["rule", "side"],
            ),
            message_size: histogram(
                "sluicegate_message_size_bytes",
                "Sizes of data messages, of which one in 16 of a session is measured, in bytes",
                &SIZE_BUCKETS,
                &["rule", "direction"],
            ),
            message_latency: histogram(
                "sluicegate_message_latency_seconds",
                "From read to written (tunnel) or from stored to taken (backplane), of one message in 16, in seconds",
                &LATENCY_BUCKETS,
                &["rule", "path"],
            ),
            send_queue_messages: histogram(
                "sluicegate_send_queue_messages",
                "Messages that wait for a client, each session seen every 10 s, unsent kernel bytes included",
                &DEPTH_BUCKETS,
                &["rule"],
            ),
            send_queue_bytes: histogram(
                "sluicegate_send_queue_bytes_per_connection",
                "Bytes that wait for a client, each session seen every 10 s, unsent kernel bytes included",
                &QUEUE_BUCKETS,
                &["rule"],
            ),
            slow_clients: gauge("sluicegate_slow_clients", "Sessions whose output is pending for more than a second"),
            queued_bytes: gauge("sluicegate_queued_bytes", "Bytes that wait in this process for peers to take them"),
            socket_unsent: histogram(
                "sluicegate_socket_unsent_bytes",
                "Bytes that the kernel has taken and not sent, each socket seen every 10 s",
                &QUEUE_BUCKETS,
                &["side"],
            ),
            retransmits: counter(
                "sluicegate_tcp_retransmits_total",
                "Segments that TCP sent again, as far as seen",
                &["side"],
            ),
            http_requests: counter(
                "sluicegate_http_requests_total",
                "Plain HTTP requests that were answered, by the first digit of the status",
                &["rule", "status_class"],
            ),
            http_request_seconds: histogram(
                "sluicegate_http_request_seconds",
                "From the end of a plain request's head to the end of its answer, in seconds",
                &RTT_BUCKETS,
                &["rule"],
            ),
        }
    }
}

/// The handles of one rule. What a session counts per message is a field.
pub struct RuleMetrics {
    name: String,
    connections: IntGauge,
    /// Handshakes that became sessions.
    pub accepted: IntCounter,
    /// Those of a client that came back, known by its sticky cookie.
    pub reconnects_by_cookie: IntCounter,
    /// Those of a client that came back, known by its address and User-Agent.
    pub reconnects_by_address: IntCounter,
    /// From the client.
    pub inbound: DirectionMetrics,
    /// To the client.
    pub outbound: DirectionMetrics,
    /// From our ping to the client's pong, in seconds.
    pub ping_rtt_client: Histogram,
    /// From our ping to the upstream's pong, in seconds.
    pub ping_rtt_upstream: Histogram,
    /// Pings that the client did not answer in time.
    pub pings_unanswered_client: IntCounter,
    /// Pings that the upstream did not answer in time.
    pub pings_unanswered_upstream: IntCounter,
    /// From read to written through a tunnel, in seconds.
    pub message_latency_tunnel: Histogram,
    /// From stored to taken for a client, in seconds.
    pub message_latency_backplane: Histogram,
    /// Messages that wait for a client.
    pub send_queue_messages: Histogram,
    /// Bytes that wait for a client.
    pub send_queue_bytes: Histogram,
    /// Bytes that wait in this process; of all rules.
    pub queued_bytes: IntGauge,
    /// Unsent bytes of clients' sockets; of all rules.
    pub socket_unsent_client: Histogram,
    /// Unsent bytes of upstreams' sockets; of all rules.
    pub socket_unsent_upstream: Histogram,
    /// Segments sent again to clients; of all rules.
    pub retransmits_client: IntCounter,
    /// Segments sent again to upstreams; of all rules.
    pub retransmits_upstream: IntCounter,
    slow_evictions: IntCounter,
    slow_clients: IntGauge,
    handshakes: IntCounterVec,
    closes: IntCounterVec,
    policy_decisions: IntCounterVec,
    http_requests: IntCounterVec,
    http_request_seconds: Histogram,
}

/// One of `sluicegate_connections`.
#[derive(Debug)]
pub struct SessionMark(IntGauge);

impl Drop for SessionMark {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One of `sluicegate_slow_clients`.
#[derive(Debug)]
pub struct SlowClientMark(IntGauge);

impl Drop for SlowClientMark {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What goes one way, counted as it is forwarded.
#[derive(Clone, Debug)]
pub struct DirectionMetrics {
    /// Text messages.
    pub text: IntCounter,
    /// Binary messages.
    pub binary: IntCounter,
    /// Pings.
    pub ping: IntCounter,
    /// Pongs.
    pub pong: IntCounter,
    /// Close frames.
    pub close: IntCounter,
    /// Bytes of frames, headers included.
    pub bytes: IntCounter,
    /// Sizes of data messages, in bytes.
    pub message_size: Histogram,
}

impl RuleMetrics {
    fn new(name: &str, families: &Families) -> Self {
        let direction = |direction: &str| {
            let messages = |kind: &str| families.messages.with_label_values(&[name, direction, kind]);
            DirectionMetrics {
                text: messages("text"),
                binary: messages("binary"),
                ping: messages("ping"),
                pong: messages("pong"),
                close: messages("close"),
                bytes: families.bytes.with_label_values(&[name, direction]),
                message_size: families.message_size.with_label_values(&[name, direction]),
            }
        };
        Self {
            name: name.to_owned(),
            connections: families.connections.with_label_values(&[name]),
            accepted: families.handshakes.with_label_values(&[name, "accepted"]),
            reconnects_by_cookie: families.reconnects.with_label_values(&[name, "cookie"]),
            reconnects_by_address: families.reconnects.with_label_values(&[name, "address"]),
            inbound: direction("in"),
            outbound: direction("out"),
            ping_rtt_client: families.ping_rtt.with_label_values(&[name, "client"]),
            ping_rtt_upstream: families.ping_rtt.with_label_values(&[name, "upstream"]),
            pings_unanswered_client: families.pings_unanswered.with_label_values(&[name, "client"]),
            pings_unanswered_upstream: families.pings_unanswered.with_label_values(&[name, "upstream"]),
            slow_evictions: families.slow_evictions.with_label_values(&[name]),
            message_latency_tunnel: families.message_latency.with_label_values(&[name, "tunnel"]),
            message_latency_backplane: families.message_latency.with_label_values(&[name, "backplane"]),
            send_queue_messages: families.send_queue_messages.with_label_values(&[name]),
            send_queue_bytes: families.send_queue_bytes.with_label_values(&[name]),
            queued_bytes: families.queued_bytes.clone(),
            socket_unsent_client: families.socket_unsent.with_label_values(&["client"]),
            socket_unsent_upstream: families.socket_unsent.with_label_values(&["upstream"]),
            retransmits_client: families.retransmits.with_label_values(&["client"]),
            retransmits_upstream: families.retransmits.with_label_values(&["upstream"]),
            slow_clients: families.slow_clients.clone(),
            handshakes: families.handshakes.clone(),
            closes: families.closes.clone(),
            policy_decisions: families.policy_decisions.clone(),
            http_requests: families.http_requests.clone(),
            http_request_seconds: families.http_request_seconds.with_label_values(&[name]),
        }
    }

    /// Counts a client whose output has been pending without a pause for more than a second, until the mark is dropped.
    pub fn mark_slow_client(&self) -> SlowClientMark {
        self.slow_clients.inc();
        SlowClientMark(self.slow_clients.clone())
    }

    /// Counts a session as active until the mark is dropped.
    pub fn session(&self) -> SessionMark {
        self.connections.inc();
        SessionMark(self.connections.clone())
    }

    /// The `rule` label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts the end of a session, and what goes with it: the decision when a policy closed it, and the eviction of a
    /// slow client. The gauge of connections is the caller's.
    pub fn closed(&self, cause: &Cause) {
        let row = cause.row();
        self.closes.with_label_values(&[&self.name, code_label(cause.code()), row.by.name(), row.name]).inc();
        if let Some(policy) = row.policy {
            self.decided(policy, "refused");
        }
        if matches!(cause, Cause::SlowClient { .. } | Cause::Overrun) {
            self.slow_evictions.inc();
        }
    }

    /// Counts a plain request that was answered with `status` after `duration`.
    pub fn answered(&self, status: u16, duration: Duration) {
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        };
        self.http_requests.with_label_values(&[&self.name, class]).inc();
        self.http_request_seconds.observe(duration.as_secs_f64());
    }

    /// Counts a handshake that got no tunnel, and the decision of the policy that refused it. The upstream's own
    /// answer and a client that went away are results, but nobody's decision.
    pub fn refused(&self, refusal: &Refusal) {
        let row = refusal.row();
        self.handshakes.with_label_values(&[&self.name, row.name]).inc();
        if row.status.is_some() {
            self.decided(row.policy, "refused");
        }
    }

    /// Counts a handshake that the policy let pass. `policy` is one of the table of causes.
    pub fn allowed(&self, policy: &'static str) {
        self.decided(policy, "allowed");
    }

    /// Counts what the policy would have refused if it were enforced. `policy` is one of the table of causes.
    pub fn would_refuse(&self, policy: &'static str) {
        self.decided(policy, "would_refuse");
    }

    fn decided(&self, policy: &'static str, decision: &'static str) {
        self.policy_decisions.with_label_values(&[&self.name, policy, decision]).inc();
    }
}

impl std::fmt::Debug for RuleMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleMetrics").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The `code` label: registered codes as they are, an application's by their range.
fn code_label(code: CloseCode) -> &'static str {
    const REGISTERED: [&str; 15] = [
        "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013",
        "1014",
    ];
    match code.0 {
        registered @ 1000..=1014 => REGISTERED[usize::from(registered - 1000)],
        3000..=3999 => "3xxx",
        4000..=4999 => "4xxx",
        // A Close frame with such a code is a protocol error, so a session cannot end with it.
        _ => "other",
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("the names and labels of this file are valid");
    registry.register(Box::new(metric.clone())).expect("and each is registered once");
    metric
}

/// As Linux says; `None` elsewhere.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kibibytes.trim().parse::<i64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_become_bounded_labels() {
        for (code, label) in [
            (1000, "1000"),
            (1005, "1005"),
            (1014, "1014"),
            (3000, "3xxx"),
            (3999, "3xxx"),
            (4000, "4xxx"),
            (4999, "4xxx"),
            (999, "other"),
            (1015, "other"),
            (2999, "other"),
            (65535, "other"),
        ] {
            assert_eq!(code_label(CloseCode(code)), label, "{code}");
        }
    }

    #[test]
    fn counters_of_a_rule_are_there_at_zero_from_its_start() {
        let metrics = Metrics::new();
        metrics.rule("chat");
        let text = metrics.render();
        for rule in ["none", "chat"] {
            for line in [
                format!("sluicegate_connections{{rule=\"{rule}\"}} 0"),
                format!("sluicegate_handshakes_total{{result=\"accepted\",rule=\"{rule}\"}} 0"),
                format!("sluicegate_messages_total{{direction=\"in\",rule=\"{rule}\",type=\"text\"}} 0"),
                format!("sluicegate_messages_total{{direction=\"out\",rule=\"{rule}\",type=\"close\"}} 0"),
                format!("sluicegate_bytes_total{{direction=\"out\",rule=\"{rule}\"}} 0"),
                format!("sluicegate_reconnects_total{{by=\"cookie\",rule=\"{rule}\"}} 0"),
                format!("sluicegate_slow_client_evictions_total{{rule=\"{rule}\"}} 0"),
                format!("sluicegate_pings_unanswered_total{{rule=\"{rule}\",side=\"upstream\"}} 0"),
                format!("sluicegate_ping_rtt_seconds_count{{rule=\"{rule}\",side=\"client\"}} 0"),
            ] {
                assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
            }
        }
        for line in ["sluicegate_slow_clients 0", "# TYPE sluicegate_log_lines_dropped_total counter"] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
    }

    #[test]
    fn a_rule_is_resolved_once() {
        let metrics = Metrics::new();
        assert!(Arc::ptr_eq(&metrics.rule("chat"), &metrics.rule("chat")));
    }

    #[test]
    fn causes_and_refusals_are_counted_with_their_policies() {
        let metrics = Metrics::new();
        let rule = metrics.rule("chat");
        rule.closed(&Cause::ClientClosed(Some(CloseCode(4001))));
        rule.closed(&Cause::SlowClient { taken_bytes: 1, pending_for: std::time::Duration::from_secs(30) });
        rule.refused(&Refusal::OriginNotAllowed);
        rule.refused(&Refusal::UpstreamAnswered(401));
        rule.allowed("origin");
        rule.would_refuse("connections_per_ip");
        metrics.upstream_connections("chat", "127.0.0.1:9001").inc();
        let text = metrics.render();
        for line in [
            r#"sluicegate_closes_total{cause="client_closed",closed_by="client",code="4xxx",rule="chat"} 1"#,
            r#"sluicegate_closes_total{cause="slow_client",closed_by="proxy",code="1013",rule="chat"} 1"#,
            r#"sluicegate_slow_client_evictions_total{rule="chat"} 1"#,
            r#"sluicegate_handshakes_total{result="origin_not_allowed",rule="chat"} 1"#,
            r#"sluicegate_handshakes_total{result="upstream_answered",rule="chat"} 1"#,
            r#"sluicegate_policy_decisions_total{decision="allowed",policy="origin",rule="chat"} 1"#,
            r#"sluicegate_policy_decisions_total{decision="refused",policy="origin",rule="chat"} 1"#,
            r#"sluicegate_policy_decisions_total{decision="refused",policy="slow_client",rule="chat"} 1"#,
            r#"sluicegate_policy_decisions_total{decision="would_refuse",policy="connections_per_ip",rule="chat"} 1"#,
            r#"sluicegate_upstream_connections{endpoint="127.0.0.1:9001",upstream="chat"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
        assert!(!text.contains(r#"policy="upstream""#));
    }
}
