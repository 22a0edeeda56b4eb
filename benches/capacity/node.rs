//! A gateway without its sockets: the real hub and the real subscribers, and in the place of each session's task a waker
//! that puts it on a list. What it is sent is counted where the tunnel would write it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use sluicegate::backplane::engine::{Channel, Engine, Item as Stored, MessageId};
use sluicegate::backplane::hub::{Hub, InboxLimit};
use sluicegate::backplane::sink::SinkLimit;
use sluicegate::backplane::subscriber::{Effect, Subscriber};
use sluicegate::grip::control::{Control, Mode, Recover, Subscribe};
use sluicegate::grip::item::{Formats, Item, WsMessage};
use sluicegate::grip::meta::Meta;
use sluicegate::grip::{Kind, Limits};
use sluicegate::metrics::Metrics;

use super::Result;

/// How much one poll gives, as the tunnel asks for it.
const POLL_BYTES: usize = 64 << 10;

/// A node: its hub, and the sessions on it.
pub struct Node {
    pub hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    sessions: Vec<Session>,
    ready: Arc<Mutex<Vec<u32>>>,
    /// Those that are polled now, so that nothing is allocated for each time.
    polled: Vec<u32>,
    out: Vec<u8>,
}

struct Session {
    subscriber: Subscriber,
    woken: Arc<Woken>,
    waker: Waker,
    got: Got,
}

/// What a session was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Messages.
    pub count: u64,
    /// The sum of the numbers that are in them, which shows that none is missing while another came twice.
    pub sum: u64,
}

/// Puts its session on the list of those that have something, once until it is polled.
struct Woken {
    session: u32,
    listed: AtomicBool,
    ready: Arc<Mutex<Vec<u32>>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.session);
        }
    }
}

impl Node {
    /// On the engines of regions, its own first.
    pub fn start(engines: Vec<Arc<dyn Engine>>) -> Self {
        let metrics = Metrics::new();
        let names: Vec<String> = engines.iter().map(|engine| engine.region().to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hub = Hub::start(engines, SinkLimit::default(), metrics.backplane(&names));
        let ready = Arc::default();
        Self { hub, metrics, sessions: Vec::new(), ready, polled: Vec::new(), out: Vec::new() }
    }

    pub fn reserve(&mut self, sessions: usize) {
        self.sessions.reserve_exact(sessions);
        self.ready.lock().reserve_exact(sessions);
        self.polled.reserve_exact(sessions);
    }

    /// A session joins. It is polled once, as a task is that begins.
    pub fn join(&mut self) -> u32 {
        let session = self.sessions.len() as u32;
        let woken = Arc::new(Woken { session, listed: AtomicBool::new(true), ready: self.ready.clone() });
        self.ready.lock().push(session);
        let subscriber = Subscriber::new(self.hub.join(InboxLimit::default()), Limits::default());
        self.sessions.push(Session { subscriber, waker: woken.clone().into(), woken, got: Got::default() });
        session
    }

    /// What its backend would say.
    pub fn subscribe(&mut self, session: u32, channel: &str) -> Result<()> {
        let subscribe = Subscribe {
            channel: channel.to_owned(),
            filters: Default::default(),
            prev_id: None,
            recover: Recover::default(),
            mode: Mode::Log,
        };
        let session = &mut self.sessions[session as usize];
        match session.subscriber.control(Control::Subscribe(subscribe), Instant::now(), &mut self.out) {
            Effect::None => Ok(()),
            effect => Err(format!("a subscription came to {effect:?}").into()),
        }
    }

    /// The last session to join goes.
    pub fn leave(&mut self) {
        self.sessions.pop();
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn got(&self) -> impl Iterator<Item = Got> {
        self.sessions.iter().map(|session| session.got)
    }

    pub fn is_ready(&self, sessions: usize) -> bool {
        self.ready.lock().len() >= sessions
    }

    /// How many subscriptions are in force, as the metrics have it.
    pub fn subscriptions(&self) -> Result<usize> {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("sluicegate_subscriptions "));
        Ok(line.ok_or("subscriptions are counted")?.parse()?)
    }

    /// Polls those that have something, and returns how many messages they were sent, and how many they are.
    pub fn poll(&mut self, content_bytes: usize) -> Result<(u64, u64)> {
        std::mem::swap(&mut *self.ready.lock(), &mut self.polled);
        let (now, frame_bytes) = (Instant::now(), frame_bytes(content_bytes));
        let mut count = 0;
        for session in &self.polled {
            let session = &mut self.sessions[*session as usize];
            session.woken.listed.store(false, Ordering::Release);
            let mut cx = Context::from_waker(&session.waker);
            loop {
                self.out.clear();
                let more = session.subscriber.poll_frames(POLL_BYTES, now, &mut self.out, &mut cx);
                let frames = self.out.chunks_exact(frame_bytes);
                if !frames.remainder().is_empty() {
                    return Err("a session was sent what was not published".into());
                }
                count += frames.len() as u64;
                session.got.count += frames.len() as u64;
                for frame in frames {
                    let number = frame[frame_bytes - content_bytes..].first_chunk().ok_or("a number is in it")?;
                    session.got.sum = session.got.sum.wrapping_add(u64::from_be_bytes(*number));
                }
                if !more {
                    break;
                }
            }
            if session.subscriber.over().is_some() {
                return Err("a session fell behind".into());
            }
        }
        let sessions = self.polled.len() as u64;
        self.polled.clear();
        Ok((count, sessions))
    }
}

/// How long the frame of a content is. RFC 6455 §5.2.
pub fn frame_bytes(content_bytes: usize) -> usize {
    content_bytes + if content_bytes < 126 { 2 } else { 4 }
}

/// A channel of the simulations.
pub fn channel(nth: usize) -> Result<Channel> {
    Ok(Channel::new(&channel_name(nth))?)
}

pub fn channel_name(nth: usize) -> String {
    format!("room:{nth}")
}

/// A publication as the gateway stores it, whose content begins with its number.
pub fn publication(channel: &Channel, number: u64, content_bytes: usize) -> Result<Stored> {
    let mut content = vec![b'x'; content_bytes.max(8)];
    content[..8].copy_from_slice(&number.to_be_bytes());
    let message = WsMessage::Send { kind: Kind::Binary, content: content.into(), content_filters: None };
    let item = Item {
        channel: channel.as_str().to_owned(),
        id: Some(format!("m-{number}")),
        prev_id: None,
        no_seq: false,
        size: None,
        meta: Meta::default(),
        formats: Formats { ws_message: Some(message), ..Formats::default() },
    };
    let mut payload = Vec::new();
    item.encode(&mut payload);
    Ok(Stored { id: MessageId::new(&format!("m-{number}"))?, key: None, payload: Bytes::from(payload) })
}
