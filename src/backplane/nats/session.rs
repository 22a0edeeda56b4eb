//! One connection to a server, from its start to its loss, and what is asked over it.
//!
//! The client library would connect again by itself and say so by the way; here a connection that is lost is lost, so that
//! nothing that was asked of one server process is taken for an answer of another. The JetStream API is spoken as the JSON
//! that it is: what is read of a stream's configuration and not understood is written back as it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind, ServerError,
    StatusCode, Subscriber,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};

use super::super::engine::{Channel, EngineError};
use super::super::position::{Epoch, Region};
use super::Task;
use super::settings::{Credentials, Settings};
use super::stream::{self, Info, Seen};
use super::subjects::{self, STREAM};
use super::wire::{self, Ack, ApiError, Record, malformed};

/// How many commands wait for the connection. When there are as many, callers wait, for no longer than the time-out.
const COMMAND_CAPACITY: usize = 2048;

/// How often a stream is looked for and made, when others change it at the same time.
const STREAM_TRIES: usize = 5;

/// The first server that keeps publications to one subject apart in a stream that several servers have: those before it
/// store two that follow the same entry, or take what they refused for a duplicate when it comes again.
const REPLICATED_SINCE: (i64, i64, i64) = (2, 12, 0);

/// How long a consumer is kept by the server when nobody asks it any more.
const CONSUMER_LIFE: Duration = Duration::from_secs(10);

/// A connection that was made.
#[derive(Debug)]
pub struct Session {
    pub number: u64,
    /// Which life of the stream, under which process of the server.
    pub lineage: Epoch,
    /// How the stream was when the session began.
    pub seen: Seen,
    pub link: Arc<Link>,
    client: Client,
    client_id: u64,
    server_id: String,
    max_payload: usize,
    max_waiting: usize,
    timeout: Duration,
    /// What takes from each subscription; they end with the session.
    forwarders: Mutex<HashMap<Channel, Task>>,
    beats: Mutex<Option<Task>>,
}

/// What is noticed of a connection while it lives.
#[derive(Debug)]
pub struct Link {
    lost: watch::Sender<Option<EngineError>>,
    /// Messages were dropped on this side.
    pub dropped: Notify,
    /// When a heartbeat last came back by the way that entries take.
    pub heard: Mutex<Option<Instant>>,
}

impl Link {
    /// The session is of no use any more. The first reason stands.
    pub fn lose(&self, reason: EngineError) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(reason);
            }
            first
        });
    }

    /// Waits until it is lost.
    pub async fn lost(&self) -> EngineError {
        let mut lost = self.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(EngineError::Unreachable)
    }

    fn noticed(&self, event: &Event) {
        match event {
            Event::Disconnected | Event::Closed => self.lose(EngineError::Unreachable),
            Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) => self.dropped.notify_one(),
            // A subscription that is not permitted is silent otherwise.
            Event::ServerError(ServerError::AuthorizationViolation) => self.lose(refused("AUTHORIZATION")),
            Event::ServerError(ServerError::Other(text)) if text.to_ascii_lowercase().contains("permissions") => {
                self.lose(refused("PERMISSIONS"));
            }
            _ => {}
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: EngineError,
    /// Whether what was asked may have been done.
    pub asked: bool,
}

/// A message of the stream as the server gives it when asked for one.
#[derive(Debug, Deserialize)]
struct Got {
    #[serde(default)]
    error: Option<ApiError>,
    message: Option<GotMessage>,
}

#[derive(Debug, Deserialize)]
struct GotMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

#[derive(Debug, Deserialize)]
struct Done {
    #[serde(default)]
    error: Option<ApiError>,
    #[serde(default)]
    name: String,
}

impl Session {
    /// Connects, and finds the stream or makes it.
    pub async fn connect(settings: &Settings, region: &Region, number: u64) -> Result<Self, EngineError> {
        let link = Arc::new(Link { lost: watch::Sender::new(None), dropped: Notify::new(), heard: Mutex::new(None) });
        let client = connect(settings, link.clone()).await?;
        let info = client.server_info();
        if !info.headers {
            return Err(refused("NOHEADERS"));
        }
        let mut session = Self {
            number,
            lineage: Epoch::new("none").map_err(|_| malformed("epoch"))?,
            seen: Seen { created: String::new(), leader: None, replicas: 1, last_ms: 0 },
            link,
            client,
            client_id: info.client_id,
            server_id: info.server_id,
            max_payload: info.max_payload,
            max_waiting: settings.max_waiting.max(2),
            timeout: settings.timeout,
            forwarders: Mutex::default(),
            beats: Mutex::default(),
        };
        session.seen = session.find_stream(settings, region).await.map_err(|reason| {
            let connected = session.link.lost.borrow().is_none();
            if connected && reason == EngineError::Unreachable { refused("NOJETSTREAM") } else { reason }
        })?;
        session.lineage = session.lineage_of(&session.seen)?;
        Ok(session)
    }

    /// The most bytes of an item with its id.
    pub fn max_item(&self) -> usize {
        self.max_payload.saturating_sub(wire::OVERHEAD)
    }

    /// Whether it is still the connection that it was: the client library makes a new one unasked.
    pub fn is_same_connection(&self) -> bool {
        self.client.server_info().client_id == self.client_id
    }

    /// The stream and who answers for it: the leader in a cluster, else the process that this is connected to.
    fn lineage_of(&self, seen: &Seen) -> Result<Epoch, EngineError> {
        let who = seen.leader.as_deref().unwrap_or(&self.server_id);
        let digest = Sha256::new().chain_update(&seen.created).chain_update(" ").chain_update(who).finalize();
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Epoch::new(&name).map_err(|_| malformed("epoch"))
    }

    async fn find_stream(&self, settings: &Settings, region: &Region) -> Result<Seen, EngineError> {
        let (major, minor, patch) = REPLICATED_SINCE;
        let may_be_replicated = self.client.is_server_compatible(major, minor, patch);
        for _ in 0..STREAM_TRIES {
            let info = self.info().await?;
            let replicas = if info.error.is_none() { info.replicas() } else { settings.replicas as u64 };
            if replicas > 1 && !may_be_replicated {
                return Err(refused("REPLICAS BEFORE 2.12"));
            }
            let asked = match info.error {
                Some(error) if error.is_not_found() => ("CREATE", stream::wanted(settings, region)),
                Some(error) => return Err(error.as_engine_error()),
                None => match stream::check(&info.config, settings, region)? {
                    None => return info.seen(),
                    Some(raised) => ("UPDATE", raised.into()),
                },
            };
            let subject = format!("$JS.API.STREAM.{}.{STREAM}", asked.0);
            let done: Done = self.ask(subject, &asked.1).await?;
            if let Some(error) = done.error.filter(|error| !error.is_in_use()) {
                return Err(error.as_engine_error());
            }
        }
        Err(refused("STREAM"))
    }

    /// How the stream is now.
    pub async fn info(&self) -> Result<Info, EngineError> {
        self.ask(format!("$JS.API.STREAM.INFO.{STREAM}"), &Value::Null).await
    }

    /// Publishes into the stream.
    pub async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        within: Duration,
    ) -> Result<Ack, Failure> {
        let request = Request::new().headers(headers).payload(payload);
        let answer = self.request(subject, request, within).await?;
        let unread = |_| Failure { reason: malformed("publication"), asked: true };
        serde_json::from_slice(&answer.payload).map_err(unread)
    }

    /// The entry of a subject that a question (`last_by_subj`, `next_by_subj`, `seq`) leads to.
    ///
    /// Of a stream that several servers have the leader alone is asked: the others may be behind.
    pub async fn get(&self, region: &Region, subject: &str, question: Value) -> Result<Option<Record>, EngineError> {
        let (found_subject, headers, seq, payload) = if self.seen.replicas > 1 {
            let got: Got = self.ask(format!("$JS.API.STREAM.MSG.GET.{STREAM}"), &question).await?;
            match got {
                Got { error: Some(error), .. } if error.is_not_found() => return Ok(None),
                Got { error: Some(error), .. } => return Err(error.as_engine_error()),
                Got { message: None, .. } => return Err(malformed("message")),
                Got { message: Some(got), .. } => {
                    let decode = |text: &str| STANDARD.decode(text).map_err(|_| malformed("message"));
                    let headers = wire::stored_headers(&decode(&got.hdrs)?).unwrap_or_default();
                    (got.subject, headers, got.seq, decode(&got.data)?.into())
                }
            }
        } else {
            let request = Request::new().payload(question.to_string().into());
            let answer = self.request(format!("$JS.API.DIRECT.GET.{STREAM}"), request, self.timeout);
            let answer = answer.await.map_err(|failure| failure.reason)?;
            match answer.status {
                None => {}
                Some(StatusCode::NOT_FOUND) => return Ok(None),
                Some(status) => return Err(refused(&format!("STATUS {status}"))),
            }
            let headers = answer.headers.unwrap_or_default();
            let subject = headers.get("Nats-Subject").map(|subject| subject.as_str().to_owned()).unwrap_or_default();
            let seq = wire::sequence(&headers).ok_or_else(|| malformed("sequence"))?;
            (subject, headers, seq, answer.payload)
        };
        if found_subject != subject {
            // What was asked for by its sequence is somebody else's.
            return Ok(None);
        }
        // Whoever else publishes there breaks the numbers.
        wire::record(region, &headers, seq, payload).map(Some).ok_or_else(|| malformed("entry"))
    }

    /// The next `count` entries of a subject from a sequence on, or fewer if there are no more.
    pub async fn fetch(
        &self,
        region: &Region,
        subject: &str,
        from_seq: u64,
        count: usize,
    ) -> Result<Vec<Record>, EngineError> {
        let config = json!({
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": from_seq,
            "filter_subject": subject,
            "replay_policy": "instant",
            "inactive_threshold": u64::try_from(CONSUMER_LIFE.as_nanos()).unwrap_or(u64::MAX),
            "mem_storage": true,
            "num_replicas": 1,
        });
        let question = json!({ "stream_name": STREAM, "config": config });
        let made: Done = self.ask(format!("$JS.API.CONSUMER.CREATE.{STREAM}"), &question).await?;
        if let Some(error) = made.error {
            return Err(error.as_engine_error());
        }
        let name = made.name;
        let taking = tokio::time::timeout(self.timeout, self.take(region, &name, count));
        let taken = taking.await.unwrap_or(Err(EngineError::TimedOut));
        // The server forgets it by itself, if this does not arrive.
        let _ = self.client.publish(format!("$JS.API.CONSUMER.DELETE.{STREAM}.{name}"), Bytes::new()).await;
        taken
    }

    async fn take(&self, region: &Region, consumer: &str, count: usize) -> Result<Vec<Record>, EngineError> {
        let unreachable = |_| EngineError::Unreachable;
        let inbox = self.client.new_inbox();
        let mut incoming = self.client.subscribe(inbox.clone()).await.map_err(|_| EngineError::Unreachable)?;
        // In parts of what the subscription holds.
        let mut records = Vec::new();
        while records.len() < count {
            let part = (count - records.len()).min(self.max_waiting / 2);
            let question = json!({ "batch": part, "no_wait": true }).to_string();
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}");
            self.client.publish_with_reply(subject, inbox.clone(), question.into()).await.map_err(unreachable)?;
            for _ in 0..part {
                let message = incoming.next().await.ok_or(EngineError::Unreachable)?;
                if message.status.is_some() {
                    return Ok(records);
                }
                // $JS.ACK.stream.consumer.delivered.sequence…, and with a domain and an account in newer servers.
                let reply = message.reply.as_ref().map(ToString::to_string).unwrap_or_default();
                let tokens: Vec<_> = reply.split('.').collect();
                let at = if tokens.len() > 9 { 7 } else { 5 };
                let seq = tokens.get(at).and_then(|token| token.parse().ok()).ok_or_else(|| malformed("reply"))?;
                let headers = message.headers.unwrap_or_default();
                let record = wire::record(region, &headers, seq, message.payload);
                records.push(record.ok_or_else(|| malformed("entry"))?);
            }
        }
        Ok(records)
    }

    /// Drops what a subject has before a sequence.
    pub async fn purge(&self, subject: &str, before: u64) -> Result<(), EngineError> {
        let question = json!({ "filter": subject, "seq": before });
        let done: Done = self.ask(format!("$JS.API.STREAM.PURGE.{STREAM}"), &question).await?;
        done.error.map_or(Ok(()), |error| Err(error.as_engine_error()))
    }

    /// A subscription, as the server has it before anything that is asked of it after this returned.
    pub async fn subscribe(&self, subject: String) -> Result<Subscriber, EngineError> {
        let subscribed = tokio::time::timeout(self.timeout, self.client.subscribe(subject)).await;
        subscribed.map_err(|_| EngineError::TimedOut)?.map_err(|_| EngineError::Unreachable)
    }

    /// Keeps what takes from a channel's subscription, in place of any other.
    pub fn keep(&self, channel: &Channel, forwarder: Task) {
        self.forwarders.lock().insert(channel.clone(), forwarder);
    }

    /// Keeps what takes the heartbeats.
    pub fn keep_beats(&self, forwarder: Task) {
        *self.beats.lock() = Some(forwarder);
    }

    /// Ends a channel's subscription.
    pub fn end(&self, channel: &Channel) {
        self.forwarders.lock().remove(channel);
    }

    /// Ends all, since no session lasts longer than its supervisor wants it.
    pub fn close(&self, reason: EngineError) {
        self.link.lose(reason);
        self.forwarders.lock().clear();
    }

    async fn ask<T: for<'a> Deserialize<'a>>(&self, subject: String, question: &Value) -> Result<T, EngineError> {
        let payload = if question.is_null() { Bytes::new() } else { question.to_string().into() };
        let answer = self.request(subject, Request::new().payload(payload), self.timeout).await;
        let answer = answer.map_err(|failure| failure.reason)?;
        serde_json::from_slice(&answer.payload).map_err(|_| malformed("api"))
    }

    async fn request(&self, subject: String, request: Request, within: Duration) -> Result<Message, Failure> {
        let failed = |reason, asked| Err(Failure { reason, asked });
        if self.link.lost.borrow().is_some() {
            return failed(EngineError::Unreachable, false);
        }
        tokio::select! {
            answer = self.client.send_request(subject, request.timeout(None)) => answer.or_else(|error| match error.kind() {
                // Nobody listens: JetStream is off, or the stream is gone.
                RequestErrorKind::NoResponders => failed(EngineError::Unreachable, false),
                RequestErrorKind::MaxPayloadExceeded => {
                    let (found_bytes, limit_bytes) = (self.max_payload.saturating_add(1), self.max_item());
                    failed(EngineError::TooLarge { found_bytes, limit_bytes }, false)
                }
                RequestErrorKind::InvalidSubject => failed(malformed("subject"), false),
                RequestErrorKind::TimedOut => failed(EngineError::TimedOut, true),
                RequestErrorKind::Other => failed(EngineError::Unreachable, true),
            }),
            () = tokio::time::sleep(within) => failed(EngineError::TimedOut, true),
            _ = self.link.lost() => failed(EngineError::Unreachable, true),
        }
    }
}

/// Runs what takes from a subscription, until the session ends.
pub fn forward(mut subscriber: Subscriber, link: Arc<Link>, mut take: impl FnMut(Message) + Send + 'static) -> Task {
    Task(tokio::spawn(async move {
        while let Some(message) = subscriber.next().await {
            take(message);
        }
        link.lose(EngineError::Unreachable);
    }))
}

async fn connect(settings: &Settings, link: Arc<Link>) -> Result<Client, EngineError> {
    let addresses: Result<Vec<async_nats::ServerAddr>, _> = settings.urls.iter().map(|url| url.parse()).collect();
    let addresses = addresses.map_err(|_| refused("URL"))?;
    // A connection that is lost is left to itself, and what the library tries then should come to nothing before that.
    let (connected, pause) = (Arc::new(AtomicBool::new(false)), settings.timeout);
    let connected_now = connected.clone();
    let mut options = ConnectOptions::new()
        .name("sluicegate")
        .max_reconnects(addresses.len())
        .reconnect_delay_callback(move |_| if connected.load(Ordering::Relaxed) { pause } else { Duration::ZERO })
        .connection_timeout(settings.timeout)
        .request_timeout(None)
        .subscription_capacity(settings.max_waiting.max(2))
        .client_capacity(COMMAND_CAPACITY)
        .ignore_discovered_servers()
        .event_callback(move |event| {
            if event == Event::Connected {
                connected_now.store(true, Ordering::Relaxed);
            }
            link.noticed(&event);
            std::future::ready(())
        });
    let Credentials { username, password } = settings.credentials.clone();
    if username.is_some() || password.is_some() {
        options = options.user_and_password(username.unwrap_or_default(), password.unwrap_or_default());
    }
    if let Some(file) = &settings.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if settings.urls.iter().any(|url| url.starts_with("tls:")) {
        options = options.require_tls(true);
    }
    let whole = settings.timeout.saturating_mul(u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1));
    let client = tokio::time::timeout(whole, options.connect(addresses)).await.map_err(|_| EngineError::TimedOut)?;
    client.map_err(|error| match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => refused("AUTHORIZATION"),
        ConnectErrorKind::Tls => refused("TLS"),
        ConnectErrorKind::ServerParse => refused("URL"),
        ConnectErrorKind::TimedOut => EngineError::TimedOut,
        ConnectErrorKind::Dns | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => EngineError::Unreachable,
    })
}

fn refused(code: &str) -> EngineError {
    EngineError::Refused { code: code.to_owned() }
}

/// Publishes a heartbeat, and reads how the stream is behind it.
impl Session {
    pub async fn beat(&self, node: u64) -> Result<Seen, EngineError> {
        let mut headers = HeaderMap::new();
        // Of a node the newest alone is stored.
        headers.insert("Nats-Rollup", "sub");
        let ack = self.publish(subjects::beat(node), headers, Bytes::new(), self.timeout).await;
        if let Some(error) = ack.map_err(|failure| failure.reason)?.error {
            return Err(error.as_engine_error());
        }
        let info = self.info().await?;
        match &info.error {
            Some(error) => Err(error.as_engine_error()),
            None => info.seen(),
        }
    }
}
