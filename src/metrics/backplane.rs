//! What the backplane counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::register;
use crate::backplane::recover::{Recovery, Why};

/// The handles of the backplane's metrics, for one region.
#[derive(Debug)]
pub struct BackplaneMetrics {
    /// Publications that were stored.
    pub published: IntCounter,
    /// Publications that had been stored already.
    pub repeated: IntCounter,
    /// Requests to publish that were malformed, not allowed, or too large.
    pub refused: IntCounter,
    /// Requests to publish that the engine could not store.
    pub unavailable: IntCounter,
    /// Entries that were pushed again and not delivered again.
    pub duplicates: IntCounter,
    gaps: [IntCounter; 3],
    resumed: IntCounter,
    resumed_with_gap: IntCounter,
    subscriptions: IntGauge,
    /// Bytes that wait in this process for peers; what waits for subscribers is among them.
    pub queued_bytes: IntGauge,
    /// Of channels of newest values.
    pub conflation: ConflationMetrics,
    /// Whether the engine was reachable when it was last heard of: 1, or 0.
    pub up: IntGauge,
}

/// What is counted of channels of which only the newest value of each key counts.
#[derive(Debug)]
pub struct ConflationMetrics {
    /// Ticks that had something.
    pub ticks: IntCounter,
    /// Publications that a newer one of the same key replaced before they were sent.
    pub replaced: IntCounter,
    /// Subscriptions that were given all values.
    pub subscribed: IntCounter,
    /// Times that a subscriber had skipped ticks, and was given what has changed since.
    pub behind: IntCounter,
}

const WHYS: [(Why, &str); 3] = [(Why::Lineage, "lineage"), (Why::Limit, "limit"), (Why::Trimmed, "trimmed")];

impl BackplaneMetrics {
    pub(super) fn new(registry: &Registry, region: &str, queued_bytes: IntGauge) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let publishes = counters(
            "sluicegate_publishes_total",
            "Publications, and requests to publish that brought none",
            &["result"],
        );
        let gaps =
            counters("sluicegate_gaps_total", "Gaps in a channel that subscribers were told of", &["why", "region"]);
        let resumes = counters("sluicegate_resumes_total", "Subscribers that came back with a place", &["result"]);
        let snapshots = counters(
            "sluicegate_conflation_snapshots_total",
            "Times that a subscriber was given newest values from before the last tick",
            &["why"],
        );
        let conflation = ConflationMetrics {
            ticks: register(
                registry,
                IntCounter::new(
                    "sluicegate_conflation_ticks_total",
                    "Ticks of channels of newest values that had some",
                ),
            ),
            replaced: register(
                registry,
                IntCounter::new(
                    "sluicegate_conflated_total",
                    "Publications that a newer one of the same key replaced before they were sent",
                ),
            ),
            subscribed: snapshots.with_label_values(&["subscribed"]),
            behind: snapshots.with_label_values(&["behind"]),
        };
        Self {
            conflation,
            published: publishes.with_label_values(&["stored"]),
            repeated: publishes.with_label_values(&["repeated"]),
            refused: publishes.with_label_values(&["refused"]),
            unavailable: publishes.with_label_values(&["unavailable"]),
            duplicates: register(
                registry,
                IntCounter::new("sluicegate_duplicates_dropped_total", "Publications not delivered a second time"),
            ),
            gaps: WHYS.map(|(_, why)| gaps.with_label_values(&[why, region])),
            resumed: resumes.with_label_values(&["continuous"]),
            resumed_with_gap: resumes.with_label_values(&["gap"]),
            subscriptions: register(
                registry,
                IntGauge::new("sluicegate_subscriptions", "Subscriptions of this node's clients that are in force"),
            ),
            queued_bytes,
            up: register(
                registry,
                IntGauge::with_opts(
                    Opts::new("sluicegate_region_up", "Whether a region's engine is reachable: 1, or 0")
                        .const_label("region", region),
                ),
            ),
        }
    }

    /// Counts a subscription that has come into force, until what this returns is dropped.
    pub fn subscription(&self) -> SubscriptionMark {
        self.subscriptions.inc();
        SubscriptionMark(self.subscriptions.clone())
    }

    /// Counts a gap that subscribers are told of.
    pub fn gap(&self, why: Why) {
        for ((of, _), counter) in WHYS.iter().zip(&self.gaps) {
            if *of == why {
                counter.inc();
            }
        }
    }

    /// Counts a subscriber that came back with a place.
    pub fn resume(&self, recovery: &Recovery) {
        match recovery {
            Recovery::Live | Recovery::Replay { .. } => self.resumed.inc(),
            Recovery::Gap(why) => {
                self.resumed_with_gap.inc();
                self.gap(*why);
            }
        }
    }
}

/// A subscription that is in force.
#[derive(Debug)]
pub struct SubscriptionMark(IntGauge);

impl Drop for SubscriptionMark {
    fn drop(&mut self) {
        self.0.dec();
    }
}
