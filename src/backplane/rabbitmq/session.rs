//! Two connections to the broker that end together: one that streams come by, one that is published by. The broker stops
//! reading from a connection that publishes more than it can take, and what comes must not wait for that.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer, PublisherConfirm};
use tokio::sync::watch;

use super::super::engine::EngineError;
use super::dial::{Link, dial};
use super::envelope::{Content, Envelope};
use super::settings::Settings;
use super::wire;

/// How many messages of a stream are on their way to this node at once. Acknowledged in halves of a half.
pub const PREFETCH: u16 = 512;

/// After so many heartbeats that did not come back, a session is lost.
const MISSED_HEARTBEATS: u32 = 3;

/// How large one piece of a stream on the broker's disk is, and so how coarsely it is trimmed.
const SEGMENT_BYTES: i64 = 16 << 20;

/// A session.
#[derive(Debug)]
pub struct Session {
    consuming: Link,
    _publishing: Link,
    /// Of which each publication is confirmed.
    publisher: Channel,
    /// Of which nothing is: what it sends is to come back.
    prober: Channel,
    /// Where heartbeats come back.
    echo: ShortString,
    lost: watch::Sender<bool>,
}

impl Session {
    /// Connects.
    pub async fn connect(settings: &Settings) -> Result<(Self, Consumer), EngineError> {
        let (consuming, publishing) = tokio::try_join!(dial(settings), dial(settings))?;
        let steps = async {
            let publisher = publishing.connection.create_channel().await?;
            publisher.confirm_select(ConfirmSelectOptions::default()).await?;
            let prober = publishing.connection.create_channel().await?;
            let echoes = consuming.connection.create_channel().await?;
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(i64::from(MISSED_HEARTBEATS)));
            let echo = echoes.queue_declare("".into(), options, arguments).await?.name().clone();
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let beats = echoes.basic_consume(echo.clone(), "".into(), options, FieldTable::default()).await?;
            Ok((publisher, prober, echo, beats))
        };
        let steps = tokio::time::timeout(settings.timeout.saturating_mul(2), steps).await;
        let (publisher, prober, echo, beats) =
            steps.map_err(|_| EngineError::TimedOut)?.map_err(|error: lapin::Error| wire::error(&error))?;
        let lost = watch::Sender::new(false);
        Ok((Self { consuming, _publishing: publishing, publisher, prober, echo, lost }, beats))
    }

    /// Says that nothing comes of it any more.
    pub fn lose(&self) {
        self.lost.send_replace(true);
    }

    /// Returns when nothing comes of it any more.
    pub async fn lost(&self) {
        // The sender lives as long as `self`.
        let _ = self.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// Asks the broker, in this rhythm, whether it lives, until it does not. `beat` is told of each answer.
    pub async fn watch(&self, mut beats: Consumer, heartbeat: Duration, beat: impl Fn(u64, Duration)) -> EngineError {
        let mut ticks = tokio::time::interval(heartbeat);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut missed, mut sent) = (0, (0_u64, Instant::now()));
        loop {
            tokio::select! {
                () = self.lost() => return EngineError::Unreachable,
                came = beats.next() => match came {
                    Some(Ok(delivery)) => {
                        let envelope = Envelope::decode(delivery.data.into());
                        // One that is late says nothing of now.
                        if let Some(envelope) = envelope.filter(|envelope| envelope.nonce == sent.0) {
                            missed = 0;
                            beat(envelope.stamp_ms, sent.1.elapsed());
                        }
                    }
                    Some(Err(error)) => return wire::error(&error),
                    None => return EngineError::Unreachable,
                },
                _ = ticks.tick() => {
                    if missed >= MISSED_HEARTBEATS {
                        return EngineError::TimedOut;
                    }
                    missed += 1;
                    sent = (rand::random(), Instant::now());
                    if let Err(error) = self.send(self.echo.clone(), sent.0, super::now_ms()).await {
                        return error;
                    }
                }
            }
        }
    }

    /// Sends a probe into a stream.
    pub async fn probe(&self, stream: &str, nonce: u64, stamp_ms: u64) -> Result<(), EngineError> {
        self.send(stream.into(), nonce, stamp_ms).await
    }

    async fn send(&self, queue: ShortString, nonce: u64, stamp_ms: u64) -> Result<(), EngineError> {
        let body = Envelope { stamp_ms, nonce, content: Content::Probe }.encode();
        let options = BasicPublishOptions::default();
        let sent = self.prober.basic_publish("".into(), queue, options, &body, BasicProperties::default()).await;
        sent.map(drop).map_err(|error| wire::error(&error))
    }

    /// Sends a publication; the confirmation is still to come.
    pub async fn publish(&self, stream: &str, body: &[u8]) -> Result<PublisherConfirm, EngineError> {
        // One that goes nowhere comes back, which a confirmation alone does not tell.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_content_type("application/x-sluicegate".into());
        let sent = self.publisher.basic_publish("".into(), stream.into(), options, body, properties).await;
        sent.map_err(|error| wire::error(&error))
    }

    /// Has a stream come from an offset on, or the end of it that is as old as is wanted. The stream is made if there is
    /// none.
    pub async fn consume(
        &self,
        stream: &str,
        from: Option<u64>,
        settings: &Settings,
    ) -> Result<(Channel, Consumer), EngineError> {
        let steps = async {
            let channel = self.declare(stream, settings).await?;
            let error = |error: lapin::Error| wire::error(&error);
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(error)?;
            let offset = match from {
                Some(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
                None => {
                    let reach = settings.reach().saturating_add(super::CLOCKS_APART);
                    AMQPValue::Timestamp(super::now_ms().saturating_sub(super::millis(reach)) / 1000)
                }
            };
            let mut arguments = FieldTable::default();
            arguments.insert("x-stream-offset".into(), offset);
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(stream.into(), "".into(), options, arguments).await.map_err(error)?;
            Ok((channel, consumer))
        };
        let steps = tokio::time::timeout(settings.timeout.saturating_mul(2), steps).await;
        steps.map_err(|_| EngineError::TimedOut)?
    }

    /// A channel, and a stream that is there. One that is there already keeps the bounds that it was made with: to ask for
    /// others would be refused.
    async fn declare(&self, stream: &str, settings: &Settings) -> Result<Channel, EngineError> {
        let error = |error: lapin::Error| wire::error(&error);
        let connection = &self.consuming.connection;
        let channel = connection.create_channel().await.map_err(error)?;
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(stream.into(), options, FieldTable::default()).await {
            Ok(_) => return Ok(channel),
            Err(error) if wire::is_absent(&error) => {}
            Err(error) => return Err(wire::error(&error)),
        }
        // The refusal has closed the channel.
        let channel = connection.create_channel().await.map_err(error)?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        let age = format!("{}s", settings.reach().saturating_add(super::CLOCKS_APART).as_secs());
        let bytes = i64::try_from(settings.max_stream_bytes).unwrap_or(i64::MAX);
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        arguments.insert("x-max-age".into(), AMQPValue::LongString(age.into()));
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes));
        arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(SEGMENT_BYTES));
        channel.queue_declare(stream.into(), options, arguments).await.map_err(error)?;
        Ok(channel)
    }
}
