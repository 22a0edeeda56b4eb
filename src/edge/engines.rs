//! From what the configuration says of an engine to the engine, started.

use std::sync::Arc;

use crate::backplane::engine::Engine;
use crate::backplane::memory::{self, MemoryEngine};
use crate::backplane::nats::{self, NatsEngine};
use crate::backplane::position::{PositionError, Region};
use crate::backplane::rabbitmq::{self, RabbitEngine};
use crate::backplane::redis;
use crate::config::{Backplane, EngineKind};

/// Starts the engine of a region. One that is elsewhere is connected to in the background, for as long as it takes: until
/// then each call fails.
///
/// # Errors
/// None, unless a random number makes no epoch.
pub fn start(kind: &EngineKind, region: Region, config: &Backplane) -> Result<Arc<dyn Engine>, PositionError> {
    let Backplane { retention, dedupe_window, .. } = *config;
    Ok(match kind {
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
            redis::start(region, settings)
        }
        EngineKind::Nats(access) => {
            let settings = nats::Settings {
                credentials: access.credentials.clone(),
                replicas: access.replicas,
                retention,
                dedupe_window,
                ..nats::Settings::new(access.urls.clone())
            };
            Arc::new(NatsEngine::start(region, settings))
        }
        EngineKind::RabbitMq(access) => {
            let settings = rabbitmq::Settings { retention, dedupe_window, ..rabbitmq::Settings::new(access.clone()) };
            Arc::new(RabbitEngine::start(region, settings))
        }
    })
}

/// Whether an engine is in this process, and so always there.
pub const fn is_here(kind: &EngineKind) -> bool {
    matches!(kind, EngineKind::Memory)
}
