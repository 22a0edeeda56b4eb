//! What is shown of the regions' engines: in the log, in the metrics and in `/readyz`, and to sessions.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admin::{EngineDown, Readiness};
use crate::backplane::engine::{Engine, EngineError, Event};
use crate::backplane::hub::Hub;
use crate::backplane::position::Region;
use crate::events;
use crate::metrics::BackplaneMetrics;

/// How often the ages of what was heard are shown anew.
const SHOW: Duration = Duration::from_secs(1);

/// Of so many heartbeats the quickest says how the clocks stand: what it took on its way is what is not known of that.
const SAMPLES: usize = 8;

/// Where one region's engine is shown.
pub struct Shown {
    /// Its place in the list of regions: ours is 0.
    pub nth: usize,
    /// Its region.
    pub region: Region,
    /// Whether the gateway is not ready without it.
    pub required: bool,
    /// Whose sessions hear of it.
    pub hub: Weak<Hub>,
    /// Where it is counted.
    pub metrics: Arc<BackplaneMetrics>,
    /// Where it is looked at.
    pub readiness: Arc<Readiness>,
}

/// What was heard of an engine.
#[derive(Default)]
struct Heard {
    /// Round trips of the last heartbeats and by how many milliseconds the engine was ahead in them.
    samples: Vec<(Duration, i64)>,
    /// When the newest came, and when the engine sent it by its clock.
    newest: Option<(Instant, u64)>,
}

/// Shows an engine until it is dropped. One that is in this process is there at once and for ever.
pub fn watch(engine: &Arc<dyn Engine>, is_here: bool, shown: Shown) {
    if is_here {
        shown.tell(&Ok(()));
        return;
    }
    shown.down("it is being connected to", false);
    tokio::spawn(follow(Arc::downgrade(engine), engine.events(), shown));
}

impl Shown {
    fn tell(&self, status: &Result<(), EngineError>) {
        match status {
            Ok(()) => {
                self.metrics.region_up(self.nth, true);
                self.readiness.set_engine(self.region.as_str(), None);
                if let Some(hub) = self.hub.upgrade() {
                    hub.set_reachable(&self.region, true);
                }
            }
            Err(error) => self.down(&error.to_string(), *error == EngineError::Deaf),
        }
    }

    fn down(&self, why: &str, deaf: bool) {
        self.metrics.region_up(self.nth, false);
        let down = EngineDown { why: why.to_owned(), is_fatal: deaf || self.required };
        self.readiness.set_engine(self.region.as_str(), Some(down));
        if let Some(hub) = self.hub.upgrade() {
            hub.set_reachable(&self.region, false);
        }
    }
}

/// Logs when an engine goes and comes, and shows it.
async fn follow(engine: Weak<dyn Engine>, mut events: Receiver<Event>, shown: Shown) {
    // Each try that fails says so; the log has the first.
    let mut told = None;
    let mut tell = |status: Result<(), EngineError>| {
        let is_news = told.replace(status.is_ok()) != Some(status.is_ok());
        shown.tell(&status);
        if !is_news {
            return;
        }
        match status {
            Ok(()) => events::Event::new("engine_up").field("region", shown.region.as_str()).emit(),
            Err(error) => events::Event::new("engine_down")
                .field("region", shown.region.as_str())
                .field("detail", error.to_string())
                .emit(),
        }
    };
    // It may have come up before anybody listened.
    if engine.upgrade().is_some_and(|engine| engine.status().is_ok()) {
        tell(Ok(()));
    }
    let (mut heard, since) = (Heard::default(), Instant::now());
    let mut ticks = tokio::time::interval(SHOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = ticks.tick() => {
                let (stored_ago, came_ago) = heard.ages(since, Instant::now(), now_ms());
                shown.metrics.heard(shown.nth, stored_ago, came_ago);
                continue;
            }
        };
        match event {
            Ok(Event::Up) => tell(Ok(())),
            Ok(Event::Down(error)) => tell(Err(error)),
            Err(RecvError::Lagged(_)) => {
                if let Some(engine) = engine.upgrade() {
                    tell(engine.status());
                }
            }
            Ok(Event::LineageChanged { from, to }) => events::Event::new("engine_lineage_changed")
                .field("region", shown.region.as_str())
                .field("from", from.as_str())
                .field("to", to.as_str())
                .emit(),
            Ok(Event::Heartbeat { engine_ms, round_trip }) => {
                heard.beat(engine_ms, round_trip, Instant::now(), now_ms());
                if let (Some(hub), Some(ahead_ms)) = (shown.hub.upgrade(), heard.ahead_ms()) {
                    hub.set_ahead(&shown.region, ahead_ms);
                }
            }
            Ok(Event::Disrupted(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

impl Heard {
    fn beat(&mut self, engine_ms: u64, round_trip: Duration, now: Instant, now_ms: u64) {
        // The engine looked at its clock at a time that is somewhere within the round trip: half of it is the best guess.
        let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let ahead = signed(engine_ms).saturating_sub(signed(now_ms).saturating_sub(half));
        if self.samples.len() == SAMPLES {
            self.samples.remove(0);
        }
        self.samples.push((round_trip, ahead));
        self.newest = Some((now, engine_ms));
    }

    /// By how many milliseconds the engine's clock is ahead of ours.
    fn ahead_ms(&self) -> Option<i64> {
        self.samples.iter().min_by_key(|(round_trip, _)| *round_trip).map(|(_, ahead)| *ahead)
    }

    /// How long ago the engine sent the newest heartbeat that came here, and how long ago it came; since the beginning
    /// while there is none.
    fn ages(&self, since: Instant, now: Instant, now_ms: u64) -> (Duration, Duration) {
        let Some((came, engine_ms)) = self.newest else { return (now - since, now - since) };
        let engine_now = now_ms.saturating_add_signed(self.ahead_ms().unwrap_or_default());
        (Duration::from_millis(engine_now.saturating_sub(engine_ms)), now - came)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_heartbeat_says_how_the_clocks_stand() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        assert_eq!(heard.ahead_ms(), None);
        let second = Duration::from_secs(1);
        assert_eq!(heard.ages(now, now + second, 5_000), (second, second), "nothing was heard yet");
        // Five minutes ahead; one heartbeat was held up on its way back.
        heard.beat(310_000, Duration::from_millis(800), now, 10_800);
        assert_eq!(heard.ahead_ms(), Some(299_600));
        heard.beat(311_000, Duration::from_millis(4), now + second, 11_002);
        assert_eq!(heard.ahead_ms(), Some(300_000));
        let (stored_ago, came_ago) = heard.ages(now, now + 3 * second, 13_002);
        assert_eq!((stored_ago, came_ago), (Duration::from_millis(2_002), 2 * second));
        for nth in 0..SAMPLES {
            heard.beat(312_000, Duration::from_millis(10 + nth as u64), now, 12_005);
        }
        assert_eq!(heard.samples.len(), SAMPLES, "old ones are forgotten: clocks drift");
    }
}
