//! What the backplane counts.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::register;
use crate::backplane::recover::{Recovery, Why};

/// The handles of the backplane's metrics.
#[derive(Debug)]
pub struct BackplaneMetrics {
    published: IntCounter,
    repeated: IntCounter,
    failed_over: IntCounter,
    /// Requests to publish that were malformed, not allowed, or too large.
    pub refused: IntCounter,
    /// Requests to publish that the engine could not store.
    pub unavailable: IntCounter,
    /// Entries that were pushed again and not delivered again.
    pub duplicates: IntCounter,
    resumed: IntCounter,
    resumed_with_gap: IntCounter,
    subscriptions: IntGauge,
    /// Bytes that wait in this process for peers; what waits for subscribers is among them.
    pub queued_bytes: IntGauge,
    /// Of each region whose logs are read, ours first.
    regions: Vec<RegionMetrics>,
}

/// What is known of one region's engine and log.
#[derive(Debug)]
struct RegionMetrics {
    up: IntGauge,
    lag: Histogram,
    lag_last: Gauge,
    watchdog: Gauge,
    gaps: [IntCounter; 3],
}

/// The upper ends of the buckets of the lag.
const LAG_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

const WHYS: [(Why, &str); 3] = [(Why::Lineage, "lineage"), (Why::Limit, "limit"), (Why::Trimmed, "trimmed")];

impl BackplaneMetrics {
    pub(super) fn new(registry: &Registry, regions: &[&str], queued_bytes: IntGauge) -> Self {
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
        let gauges = |name: &str, help: &str| register(registry, GaugeVec::new(Opts::new(name, help), &["region"]));
        let up = register(
            registry,
            IntGaugeVec::new(
                Opts::new("sluicegate_region_up", "Whether a region's engine is reachable: 1, or 0"),
                &["region"],
            ),
        );
        let lag = register(
            registry,
            HistogramVec::new(
                HistogramOpts::new(
                    "sluicegate_replication_lag_seconds",
                    "From when a region's engine stored a publication until it came here, by the engine's clock",
                )
                .buckets(LAG_SECONDS.to_vec()),
                &["region"],
            ),
        );
        let lag_last = gauges("sluicegate_replication_lag_last_seconds", "Since a region was last known to be heard");
        let watchdog = gauges(
            "sluicegate_broker_watchdog_age_seconds",
            "Since a heartbeat came back by the way that publications of a region take",
        );
        let of_region = |region: &str| RegionMetrics {
            up: up.with_label_values(&[region]),
            lag: lag.with_label_values(&[region]),
            lag_last: lag_last.with_label_values(&[region]),
            watchdog: watchdog.with_label_values(&[region]),
            gaps: WHYS.map(|(_, why)| gaps.with_label_values(&[why, region])),
        };
        let resumes = counters("sluicegate_resumes_total", "Subscribers that came back with a place", &["result"]);
        Self {
            published: publishes.with_label_values(&["stored"]),
            repeated: publishes.with_label_values(&["repeated"]),
            failed_over: publishes.with_label_values(&["failed_over"]),
            refused: publishes.with_label_values(&["refused"]),
            unavailable: publishes.with_label_values(&["unavailable"]),
            duplicates: register(
                registry,
                IntCounter::new("sluicegate_duplicates_dropped_total", "Publications not delivered a second time"),
            ),
            resumed: resumes.with_label_values(&["continuous"]),
            resumed_with_gap: resumes.with_label_values(&["gap"]),
            subscriptions: register(
                registry,
                IntGauge::new("sluicegate_subscriptions", "Subscriptions of this node's clients that are in force"),
            ),
            queued_bytes,
            regions: regions.iter().map(|region| of_region(region)).collect(),
        }
    }

    /// Counts a subscription that has come into force, until what this returns is dropped.
    pub fn subscription(&self) -> SubscriptionMark {
        self.subscriptions.inc();
        SubscriptionMark(self.subscriptions.clone())
    }

    /// Counts a publication that an engine has: of another region than ours where that took it instead, or that had it
    /// already.
    pub fn placed(&self, failed_over: bool, repeated: bool) {
        match (failed_over, repeated) {
            (true, _) => self.failed_over.inc(),
            (false, true) => self.repeated.inc(),
            (false, false) => self.published.inc(),
        }
    }

    /// Counts a gap in the log of a region, by its place in the list, that subscribers are told of.
    pub fn gap(&self, region: usize, why: Why) {
        let Some(of) = self.regions.get(region) else { return };
        for ((of_why, _), counter) in WHYS.iter().zip(&of.gaps) {
            if *of_why == why {
                counter.inc();
            }
        }
    }

    /// Counts a subscriber that came back to a region's log with a place.
    pub fn resume(&self, region: usize, recovery: &Recovery) {
        match recovery {
            Recovery::Live | Recovery::Replay { .. } => self.resumed.inc(),
            Recovery::Gap(why) => {
                self.resumed_with_gap.inc();
                self.gap(region, *why);
            }
        }
    }

    /// A publication of a region came here so many milliseconds after its engine had stored it.
    pub fn lag(&self, region: usize, ms: u64) {
        if let Some(of) = self.regions.get(region) {
            of.lag.observe(ms as f64 / 1000.0);
        }
    }

    /// Whether a region's engine can be reached.
    pub fn region_up(&self, region: usize, up: bool) {
        if let Some(of) = self.regions.get(region) {
            of.up.set(up.into());
        }
    }

    /// How long ago a region's engine stored the newest of what is known to have come here, and how long ago that came.
    pub fn heard(&self, region: usize, stored_ago: Duration, came_ago: Duration) {
        if let Some(of) = self.regions.get(region) {
            of.lag_last.set(stored_ago.as_secs_f64());
            of.watchdog.set(came_ago.as_secs_f64());
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
