//! Whether this process should get traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::edge::upstreams::Upstream;
use crate::tunnel::pressure;

/// What `/readyz` is answered from; the parts that know set it.
#[derive(Debug, Default)]
pub struct Readiness {
    started: AtomicBool,
    draining: AtomicBool,
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    /// The regions of the backplane whose engine cannot be reached, and why not. At most those of the configuration.
    engines_down: Mutex<BTreeMap<String, EngineDown>>,
    /// What the engine of each region lacks of what engines can do.
    engines_lack: Mutex<BTreeMap<String, Vec<&'static str>>>,
}

/// Why an engine of the backplane cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineDown {
    /// What it says, or that it says nothing.
    pub why: String,
    /// Whether this process should get no traffic: its subscriptions are dead although the engine answers, which another
    /// gateway's need not be, or the engine is required. Else it only degrades: the clients would be sent to another
    /// gateway, which asks the same engine.
    pub is_fatal: bool,
}

impl Readiness {
    /// Every listener is open.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// The process takes no new sessions any more; there is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Readiness::set_draining`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The upstreams of the configuration now in force.
    pub fn set_upstreams(&self, upstreams: Vec<Arc<Upstream>>) {
        self.upstreams.store(Arc::new(upstreams));
    }

    /// The engine of a region can be used, or not any more.
    pub fn set_engine(&self, region: &str, down: Option<EngineDown>) {
        let mut engines = self.engines_down.lock();
        match down {
            Some(down) => drop(engines.insert(region.to_owned(), down)),
            None => drop(engines.remove(region)),
        }
    }

    /// What the engine of a region lacks of what engines can do: shown, and no fault.
    pub fn set_engine_lacks(&self, region: &str, lacks: Vec<&'static str>) {
        self.engines_lack.lock().insert(region.to_owned(), lacks);
    }

    pub(super) fn report(&self) -> Report {
        let upstreams = self.upstreams.load();
        let unusable: Vec<&str> =
            upstreams.iter().filter(|upstream| !upstream.usable()).map(|upstream| upstream.name()).collect();
        let mut reasons = Vec::new();
        if !self.started.load(Ordering::Relaxed) {
            reasons.push("starting".to_owned());
        }
        if self.is_draining() {
            reasons.push("draining".to_owned());
        }
        // A configuration without upstreams, such as one of redirects only, is ready.
        if !unusable.is_empty() && unusable.len() == upstreams.len() {
            reasons.push("no upstream has a usable endpoint".to_owned());
        }
        let engines = self.engines_down.lock();
        for (region, down) in engines.iter().filter(|(_, down)| down.is_fatal) {
            reasons.push(format!("the backplane's engine of region {region} is down: {}", down.why));
        }
        let mut degraded: Vec<String> = unusable.iter().map(|name| format!("upstream:{name}")).collect();
        let is_unready = !reasons.is_empty();
        reasons.extend(unusable.iter().map(|name| format!("upstream {name} has no usable endpoint")));
        for (region, down) in engines.iter() {
            degraded.push(format!("region:{region}"));
            if !down.is_fatal {
                reasons.push(format!("the backplane's engine of region {region} is down: {}", down.why));
            }
        }
        // Not unready: what is refused here would all go to the others, which are as full.
        if pressure::is_over() {
            degraded.push("memory".to_owned());
            reasons.push("the process is over limits.memory".to_owned());
        }
        let status = match (is_unready, degraded.is_empty()) {
            (true, _) => "unready",
            (false, false) => "degraded",
            (false, true) => "ready",
        };
        Report { status, degraded, reasons, lacks: self.engines_lack.lock().clone() }
    }
}

/// An answer of `/readyz`.
pub(super) struct Report {
    status: &'static str,
    degraded: Vec<String>,
    reasons: Vec<String>,
    lacks: BTreeMap<String, Vec<&'static str>>,
}

impl Report {
    pub(super) fn is_ready(&self) -> bool {
        self.status != "unready"
    }

    pub(super) fn to_json(&self) -> String {
        let mut json = serde_json::json!({ "status": self.status, "degraded": self.degraded, "reasons": self.reasons });
        if !self.lacks.is_empty() {
            let of = |(region, lacks): (&String, &Vec<&str>)| (region.clone(), serde_json::json!({ "lacks": lacks }));
            json["engines"] = self.lacks.iter().map(of).collect();
        }
        json.to_string()
    }
}
