//! The tunnel over in-memory streams, with time passed in: forwarding, keepalive, slow clients, and every end.
//!
//! The streams take 64 KiB before they push back, so what a policy sees is exact and no test waits for real time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use sluicegate::cause::Cause;
use sluicegate::metrics::Metrics;
use sluicegate::policy::{keepalive, message, slow_client};
use sluicegate::tunnel::registry::{Control, Order};
use sluicegate::tunnel::session::{Opening, Outcome, Session};
use sluicegate::tunnel::{Backlog, Compression, Depth, Settings, Wire};
use sluicegate::ws::close::CloseCode;
use sluicegate::ws::deflate::Deflater;
use sluicegate::ws::error::ProtocolError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::{JoinHandle, unconstrained};
use tokio::time::{sleep, timeout};

const PIPE_BYTES: usize = 64 << 10;

struct Tunnel {
    client: DuplexStream,
    upstream: DuplexStream,
    session: JoinHandle<Outcome>,
    control: Arc<Control>,
    metrics: Arc<Metrics>,
    endpoint_answers: Arc<AtomicBool>,
}

fn settings() -> Settings {
    Settings {
        message: message::Settings {
            max_size_bytes: Some(1 << 20),
            max_fragments: Some(1024),
            max_ratio: Some(200),
            messages: None,
            bytes: None,
            control: Some(message::Rate::per_second(20, 100)),
            stall_timeout: Some(secs(60)),
            timeout: Some(secs(600)),
            utf8: true,
            upstream_max_size_bytes: Some(16 << 20),
        },
        keepalive: Some(keepalive::Settings { interval: secs(25), timeout: secs(30), client: true, upstream: true }),
        idle_timeout: None,
        slow_client: Some(slow_client::Settings { timeout: secs(30), min_rate_bytes: 1024 }),
        close_timeout: secs(5),
        report_only: false,
    }
}

/// Settings that leave a test alone with the policy that it sets.
fn quiet() -> Settings {
    Settings { keepalive: None, slow_client: None, ..settings() }
}

fn open(settings: Settings) -> Tunnel {
    open_with(settings, Vec::new(), Compression::Off)
}

fn open_with(settings: Settings, upstream_preread: Vec<u8>, compression: Compression) -> Tunnel {
    let (client, client_far) = tokio::io::duplex(PIPE_BYTES);
    let (upstream, upstream_far) = tokio::io::duplex(PIPE_BYTES);
    let metrics = Metrics::new();
    let control = Arc::<Control>::default();
    let endpoint_answers = Arc::new(AtomicBool::new(true));
    let session = tokio::spawn(Session::new(Opening {
        client: client_far,
        upstream: upstream_far,
        upstream_preread,
        compression,
        settings: Arc::new(settings),
        metrics: metrics.rule("test"),
        control: control.clone(),
        endpoint_answers: endpoint_answers.clone(),
    }));
    Tunnel { client, upstream, session, control, metrics, endpoint_answers }
}

impl Tunnel {
    async fn outcome(self) -> Outcome {
        drop((self.client, self.upstream));
        timeout(secs(600), self.session).await.expect("the session ends").unwrap()
    }

    /// Waits for the end while both peers stay connected.
    async fn ended(&mut self) -> Outcome {
        timeout(secs(3600), &mut self.session).await.expect("the session ends").unwrap()
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A server's frame.
fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(len as u8),
        len @ 126..65536 => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// A client's frame.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = plain(first, payload);
    let payload_at = frame.len() - payload.len();
    frame[1] |= 0x80;
    let key = [0x11, 0x22, 0x33, 0x44];
    for (i, byte) in frame[payload_at..].iter_mut().enumerate() {
        *byte ^= key[i % 4];
    }
    frame.splice(payload_at..payload_at, key);
    frame
}

fn close(code: CloseCode, reason: &str) -> Vec<u8> {
    [&code.0.to_be_bytes(), reason.as_bytes()].concat()
}

async fn expect(stream: &mut DuplexStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    timeout(secs(120), stream.read_exact(&mut got)).await.expect("bytes in time").expect("bytes");
    assert!(got == wanted, "got {:02x?}, wanted {:02x?}", &got[..got.len().min(40)], &wanted[..wanted.len().min(40)]);
}

/// Reads one frame: its first byte and its payload, unmasked.
async fn read_frame(stream: &mut DuplexStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    timeout(secs(120), stream.read_exact(&mut head)).await.expect("a frame in time").expect("a frame");
    let mut len = usize::from(head[1] & 0x7f);
    if len == 126 {
        len = usize::from(stream.read_u16().await.unwrap());
    } else if len == 127 {
        len = stream.read_u64().await.unwrap() as usize;
    }
    let mut key = [0; 4];
    if head[1] & 0x80 != 0 {
        stream.read_exact(&mut key).await.unwrap();
    }
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).await.unwrap();
    for (i, byte) in payload.iter_mut().enumerate() {
        *byte ^= key[i % 4];
    }
    (head[0], payload)
}

async fn expect_close(stream: &mut DuplexStream, code: CloseCode) -> String {
    let (first, payload) = read_frame(stream).await;
    assert_eq!((first, &payload[..2]), (0x88, &code.0.to_be_bytes()[..]), "{payload:?}");
    String::from_utf8(payload[2..].to_vec()).unwrap()
}

async fn expect_end(stream: &mut DuplexStream) {
    let mut rest = Vec::new();
    timeout(secs(120), stream.read_to_end(&mut rest)).await.expect("the end in time").expect("an end");
    assert_eq!(rest, b"", "nothing more");
}

async fn expect_nothing(stream: &mut DuplexStream, during: Duration) {
    let mut byte = [0];
    let read = timeout(during, stream.read(&mut byte)).await;
    assert!(read.is_err(), "{read:?} {byte:?}");
}

/// Echoes our pings as a peer does; everything else is an error of the test.
async fn answer_ping(stream: &mut DuplexStream, as_client: bool) {
    let (first, payload) = read_frame(stream).await;
    assert_eq!(first, 0x89);
    let pong = if as_client { masked(0x8a, &payload) } else { plain(0x8a, &payload) };
    stream.write_all(&pong).await.unwrap();
}

// ---- forwarding -----------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn forwards_frames_untouched_both_ways() {
    let mut tunnel = open(settings());
    for frame in [masked(0x81, b"hi"), masked(0x02, &[0xff; 300]), masked(0x80, b""), masked(0x89, b"theirs")] {
        tunnel.client.write_all(&frame).await.unwrap();
        expect(&mut tunnel.upstream, &frame).await;
    }
    for frame in [plain(0x81, "é".as_bytes()), plain(0x8a, b"theirs"), plain(0x82, &[7; 70_000])] {
        tunnel.upstream.write_all(&frame).await.unwrap();
        expect(&mut tunnel.client, &frame).await;
    }
    let text = tunnel.metrics.render();
    for (metric, count) in [
        (r#"sluicegate_message_size_bytes_count{direction="in",rule="test"}"#, 1),
        (r#"sluicegate_message_size_bytes_sum{direction="out",rule="test"}"#, 2),
        (r#"sluicegate_message_latency_seconds_count{path="tunnel",rule="test"}"#, 2),
        ("sluicegate_queued_bytes", 0),
    ] {
        assert!(text.contains(&format!("{metric} {count}\n")), "{metric} {count}\n{text}");
    }
    let outcome = tunnel.outcome().await;
    assert_eq!((outcome.stats.inbound.messages, outcome.stats.outbound.messages), (2, 2));
    assert_eq!(outcome.stats.outbound.bytes, 4 + 8 + 70_010);
}

#[tokio::test(start_paused = true)]
async fn forwards_one_byte_at_a_time_without_holding_payload_back() {
    let mut tunnel = open(settings());
    let frame = masked(0x81, b"slowly");
    for byte in &frame {
        tunnel.client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    expect(&mut tunnel.upstream, &frame).await;
}

#[tokio::test(start_paused = true)]
async fn forwards_what_came_behind_the_101() {
    let early = [plain(0x81, b"hello"), plain(0x81, b"again")].concat();
    let mut tunnel = open_with(settings(), early.clone(), Compression::Off);
    expect(&mut tunnel.client, &early).await;
}

#[tokio::test(start_paused = true)]
async fn reads_no_more_than_the_other_side_takes() {
    let mut tunnel = open(quiet());
    let message = plain(0x82, &vec![1; 4 << 20]);
    let sent = message.clone();
    let mut writer = tunnel.upstream;
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer
    });
    sleep(secs(1000)).await;
    assert!(!writing.is_finished(), "the upstream is held back");
    expect(&mut tunnel.client, &message).await;
    tunnel.upstream = writing.await.unwrap();
    let outcome = tunnel.outcome().await;
    assert!(outcome.stats.queue_max_bytes <= 70_000, "{}", outcome.stats.queue_max_bytes);
}

// ---- the peers' own ends --------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn passes_close_codes_and_reasons_unchanged() {
    for code in [1000, 1001, 1011, 1014, 3000, 4999] {
        let mut tunnel = open(settings());
        let theirs = masked(0x88, &close(CloseCode(code), "because"));
        tunnel.client.write_all(&theirs).await.unwrap();
        expect(&mut tunnel.upstream, &theirs).await;
        let reply = plain(0x88, &close(CloseCode(code), "ok"));
        tunnel.upstream.write_all(&reply).await.unwrap();
        expect(&mut tunnel.client, &reply).await;
        // We act as server: the client sees the end of the stream before it has closed its own.
        expect_end(&mut tunnel.client).await;
        let outcome = tunnel.outcome().await;
        assert_eq!(outcome.cause, Cause::ClientClosed(Some(CloseCode(code))));
        assert_eq!(outcome.close_sent, Some(CloseCode(code)));
    }
}

#[tokio::test(start_paused = true)]
async fn delivers_what_the_upstream_sends_until_its_own_close() {
    let mut tunnel = open(settings());
    tunnel.client.write_all(&masked(0x88, b"")).await.unwrap();
    read_frame(&mut tunnel.upstream).await;
    let rest = [plain(0x81, b"last words"), plain(0x88, b"")].concat();
    // In pieces, so that a header is cut while the session is closing.
    for byte in &rest {
        tunnel.upstream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    expect(&mut tunnel.client, &rest).await;
    assert_eq!(tunnel.outcome().await.cause, Cause::ClientClosed(None));
}

#[tokio::test(start_paused = true)]
async fn forwards_nothing_behind_a_close_frame() {
    let mut tunnel = open(settings());
    let theirs = masked(0x88, &close(CloseCode::NORMAL, ""));
    tunnel.client.write_all(&[theirs.clone(), masked(0x81, b"late")].concat()).await.unwrap();
    expect(&mut tunnel.upstream, &theirs).await;
    expect_nothing(&mut tunnel.upstream, secs(1)).await;
    assert_eq!(tunnel.ended().await.cause, Cause::ClientClosed(Some(CloseCode::NORMAL)));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_close_ends_after_the_close_timeout() {
    let mut tunnel = open(settings());
    let start = tokio::time::Instant::now();
    tunnel.upstream.write_all(&plain(0x88, &close(CloseCode::GOING_AWAY, ""))).await.unwrap();
    let outcome = tunnel.ended().await;
    assert_eq!(outcome.cause, Cause::UpstreamClosed(Some(CloseCode::GOING_AWAY)));
    assert!((5..6).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_vanished_client_takes_the_upstream_along_without_a_close_frame() {
    let mut tunnel = open(settings());
    let message = masked(0x81, b"the last one");
    tunnel.client.write_all(&message).await.unwrap();
    drop(tunnel.client);
    expect(&mut tunnel.upstream, &message).await;
    expect_end(&mut tunnel.upstream).await;
    drop(tunnel.upstream);
    let outcome = tunnel.session.await.unwrap();
    assert_eq!((outcome.cause, outcome.close_sent), (Cause::ClientGone, None));
}

#[tokio::test(start_paused = true)]
async fn a_vanished_upstream_tells_the_client_1012() {
    let mut tunnel = open(settings());
    let message = plain(0x81, b"the last one");
    tunnel.upstream.write_all(&message).await.unwrap();
    drop(tunnel.upstream);
    expect(&mut tunnel.client, &message).await;
    expect_close(&mut tunnel.client, CloseCode::SERVICE_RESTART).await;
    tunnel.client.write_all(&masked(0x88, &close(CloseCode::SERVICE_RESTART, ""))).await.unwrap();
    expect_end(&mut tunnel.client).await;
    drop(tunnel.client);
    let outcome = tunnel.session.await.unwrap();
    assert_eq!((outcome.cause, outcome.close_sent), (Cause::UpstreamGone, Some(CloseCode::SERVICE_RESTART)));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_vanishes_inside_a_frame_leaves_no_close_frame_in_it() {
    let mut tunnel = open(settings());
    let half = &plain(0x82, &[1; 100])[..50];
    tunnel.upstream.write_all(half).await.unwrap();
    expect(&mut tunnel.client, half).await;
    drop(tunnel.upstream);
    expect_end(&mut tunnel.client).await;
    drop(tunnel.client);
    let outcome = tunnel.session.await.unwrap();
    assert_eq!((outcome.cause, outcome.close_sent), (Cause::UpstreamGone, None));
}

// ---- violations -----------------------------------------------------------------------------------------------------

/// A client that breaks a rule behind a good message: the message arrives, the client is told, the upstream gets 1001.
async fn client_violates(settings: Settings, bad: &[u8], code: CloseCode) -> Outcome {
    let mut tunnel = open(settings);
    let good = masked(0x81, b"in order");
    tunnel.client.write_all(&[&good, bad].concat()).await.unwrap();
    expect(&mut tunnel.upstream, &good).await;
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    let reason = expect_close(&mut tunnel.client, code).await;
    assert!(!reason.is_empty());
    tunnel.upstream.write_all(&plain(0x88, &close(CloseCode::GOING_AWAY, ""))).await.unwrap();
    let outcome = tunnel.outcome().await;
    assert_eq!(outcome.close_sent, Some(code));
    assert_eq!(outcome.stats.inbound.messages, 1);
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_gets_1002() {
    for (bad, rule) in [
        (plain(0x81, b"unmasked"), ProtocolError::Unmasked),
        (masked(0x83, b""), ProtocolError::ReservedOpcode(3)),
        (masked(0xc1, b"x"), ProtocolError::ReservedBit),
        (masked(0x80, b"x"), ProtocolError::UnexpectedContinuation),
        (masked(0x09, b"x"), ProtocolError::FragmentedControl),
        (masked(0x88, b"x"), ProtocolError::CloseTooShort),
        (masked(0x88, &close(CloseCode(1005), "")), ProtocolError::InvalidCloseCode(CloseCode(1005))),
        (masked(0x88, b"\x03\xe8\xff"), ProtocolError::InvalidCloseReason),
    ] {
        let outcome = client_violates(settings(), &bad, CloseCode::PROTOCOL_ERROR).await;
        assert_eq!(outcome.cause, Cause::ClientProtocol(rule));
    }
}

#[tokio::test(start_paused = true)]
async fn text_that_is_not_utf8_gets_1007_and_none_of_its_frame_passes() {
    let bad = masked(0x81, b"good until \xff");
    let outcome = client_violates(settings(), &bad, CloseCode::INVALID_DATA).await;
    assert_eq!(outcome.cause, Cause::ClientInvalidUtf8);
}

#[tokio::test(start_paused = true)]
async fn text_is_not_checked_when_utf8_is_off() {
    let mut settings = settings();
    settings.message.utf8 = false;
    let mut tunnel = open(settings);
    let frame = masked(0x81, b"\xff");
    tunnel.client.write_all(&frame).await.unwrap();
    expect(&mut tunnel.upstream, &frame).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_limit_gets_1009_from_its_header_alone() {
    let mut header = masked(0x82, &[0; 70_000])[..14].to_vec();
    header[2..10].copy_from_slice(&(1u64 << 40).to_be_bytes());
    let outcome = client_violates(settings(), &header, CloseCode::MESSAGE_TOO_BIG).await;
    assert_eq!(outcome.cause, Cause::MessageTooBig { size_bytes: 1 << 40, limit_bytes: 1 << 20 });
}

#[tokio::test(start_paused = true)]
async fn fragments_add_up_to_1009_and_a_message_at_the_limit_passes() {
    let mut tunnel = open(settings());
    let half = vec![0; 512 << 10];
    let whole = [masked(0x02, &half), masked(0x80, &half)].concat();
    let (mut reader, mut writer) = tokio::io::split(tunnel.client);
    let sent = whole.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.write_all(&masked(0x02, &vec![0; 512 << 10])).await.unwrap();
        writer.write_all(&masked(0x80, &vec![0; (512 << 10) + 1])[..14]).await.unwrap();
        writer
    });
    expect(&mut tunnel.upstream, &whole).await;
    let (first, _) = read_frame(&mut tunnel.upstream).await;
    assert_eq!(first, 0x02, "the first fragment had passed");
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    let _writer = writing.await.unwrap();
    let mut told = [0; 4];
    reader.read_exact(&mut told).await.unwrap();
    assert_eq!(told[2..], CloseCode::MESSAGE_TOO_BIG.0.to_be_bytes());
    drop((reader, _writer, tunnel.upstream));
    let outcome = tunnel.session.await.unwrap();
    assert_eq!(outcome.cause, Cause::MessageTooBig { size_bytes: (1 << 20) + 1, limit_bytes: 1 << 20 });
}

#[tokio::test(start_paused = true)]
async fn too_many_fragments_messages_bytes_and_pings_get_1008() {
    let mut limited = settings();
    limited.message.max_fragments = Some(2);
    let bad = [masked(0x01, b""), masked(0x00, b""), masked(0x00, b"")].concat();
    let mut tunnel = open(limited);
    tunnel.client.write_all(&bad).await.unwrap();
    expect(&mut tunnel.upstream, &bad[..12]).await;
    expect_close(&mut tunnel.client, CloseCode::POLICY_VIOLATION).await;
    assert_eq!(tunnel.outcome().await.cause, Cause::TooManyFragments { limit: 2 });

    let mut limited = settings();
    limited.message.messages = Some(message::Rate::per_second(1, 1));
    let outcome = client_violates(limited, &masked(0x81, b"one too many"), CloseCode::POLICY_VIOLATION).await;
    assert_eq!(outcome.cause, Cause::MessageRate);

    let mut limited = settings();
    limited.message.bytes = Some(message::Rate::per_second(10, 10));
    let outcome = client_violates(limited, &masked(0x81, b"too many bytes"), CloseCode::POLICY_VIOLATION).await;
    assert_eq!(outcome.cause, Cause::ByteRate);

    let mut tunnel = open(settings());
    tunnel.client.write_all(&masked(0x89, b"").repeat(101)).await.unwrap();
    expect_close(&mut tunnel.client, CloseCode::POLICY_VIOLATION).await;
    expect(&mut tunnel.upstream, &masked(0x89, b"").repeat(100)).await;
    assert_eq!(tunnel.outcome().await.cause, Cause::ControlRate);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_never_finished_gets_1008() {
    let mut tunnel = open(settings());
    tunnel.endpoint_answers.store(false, Ordering::Relaxed);
    tunnel.client.write_all(&masked(0x01, b"begun")).await.unwrap();
    let start = tokio::time::Instant::now();
    // Pings are answered meanwhile: the peer is alive, its message is not.
    loop {
        let (first, payload) = read_frame(&mut tunnel.client).await;
        match first {
            0x89 => tunnel.client.write_all(&masked(0x8a, &payload)).await.unwrap(),
            _ => {
                assert_eq!(payload[..2], CloseCode::POLICY_VIOLATION.0.to_be_bytes());
                break;
            }
        }
    }
    assert_eq!(start.elapsed().as_secs(), 60, "a pong is no byte of the message");
    assert!(matches!(tunnel.outcome().await.cause, Cause::MessageStalled(_)));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_drips_gets_1008() {
    let (ping, begins) = (masked(0x89, b"alive"), masked(0x01, b"begun"));
    // A fragment, a ping and a header come a byte at a time, and so does a frame.
    let fragments = [&begins[..], &[ping.as_slice(), &masked(0x00, b"")].concat().repeat(20)].concat();
    for (drips, enforced) in [(masked(0x81, &[b'a'; 1000]), true), (fragments.clone(), true), (fragments, false)] {
        let mut tunnel = open(Settings { report_only: !enforced, ..quiet() });
        let whole = masked(0x81, b"whole");
        tunnel.client.write_all(&[&whole[..], &drips[..1]].concat()).await.unwrap();
        expect(&mut tunnel.upstream, &whole).await;
        let start = tokio::time::Instant::now();
        for byte in &drips[1..25] {
            sleep(secs(50)).await;
            let _ = tunnel.client.write_all(std::slice::from_ref(byte)).await;
        }
        if enforced {
            expect_close(&mut tunnel.client, CloseCode::POLICY_VIOLATION).await;
            let outcome = tunnel.ended().await;
            assert_eq!(outcome.cause, Cause::MessageTimeout(secs(600)));
            assert!(outcome.duration < start.elapsed());
        } else {
            assert!(!tunnel.session.is_finished());
            let counted = tunnel.metrics.render();
            let line = counted.lines().find(|line| line.contains("policy=\"message_timeout\"")).unwrap();
            assert!(line.ends_with(" 1"), "{line}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_violation_inside_a_half_forwarded_frame_injects_nothing_into_it() {
    let mut tunnel = open(settings());
    let frame = masked(0x81, &[&[b'a'; 50][..], &[0xff; 50]].concat());
    tunnel.client.write_all(&frame[..30]).await.unwrap();
    expect(&mut tunnel.upstream, &frame[..30]).await;
    tunnel.client.write_all(&frame[30..]).await.unwrap();
    expect_end(&mut tunnel.upstream).await;
    expect_close(&mut tunnel.client, CloseCode::INVALID_DATA).await;
    expect_end(&mut tunnel.client).await;
    assert_eq!(tunnel.outcome().await.cause, Cause::ClientInvalidUtf8);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_inside_a_frame_of_the_upstream_is_closed_without_a_close_frame() {
    let mut tunnel = open(settings());
    let half = &plain(0x82, &[1; 100])[..50];
    tunnel.upstream.write_all(half).await.unwrap();
    expect(&mut tunnel.client, half).await;
    tunnel.client.write_all(&plain(0x81, b"unmasked")).await.unwrap();
    expect_end(&mut tunnel.client).await;
    let outcome = tunnel.outcome().await;
    assert_eq!((outcome.cause.code(), outcome.close_sent), (CloseCode::PROTOCOL_ERROR, None));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_breaks_a_rule_gets_its_code_and_the_client_1011() {
    let mut too_big = plain(0x82, &[0; 70_000])[..10].to_vec();
    too_big[2..10].copy_from_slice(&(17u64 << 20).to_be_bytes());
    for (bad, code, cause) in [
        (masked(0x81, b"x"), CloseCode::PROTOCOL_ERROR, Cause::UpstreamProtocol(ProtocolError::Masked)),
        (plain(0x81, b"\xff"), CloseCode::INVALID_DATA, Cause::UpstreamInvalidUtf8),
        (
            too_big,
            CloseCode::MESSAGE_TOO_BIG,
            Cause::UpstreamMessageTooBig { size_bytes: 17 << 20, limit_bytes: 16 << 20 },
        ),
    ] {
        let mut tunnel = open(settings());
        let good = plain(0x81, b"in order");
        tunnel.upstream.write_all(&[good.clone(), bad].concat()).await.unwrap();
        expect(&mut tunnel.client, &good).await;
        expect_close(&mut tunnel.client, CloseCode::INTERNAL_ERROR).await;
        expect_close(&mut tunnel.upstream, code).await;
        assert_eq!(tunnel.outcome().await.cause, cause);
    }
}

#[tokio::test(start_paused = true)]
async fn after_our_close_nothing_more_is_forwarded() {
    let mut tunnel = open(settings());
    tunnel.client.write_all(&masked(0x83, b"")).await.unwrap();
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    tunnel.upstream.write_all(&plain(0x81, b"too late")).await.unwrap();
    expect_close(&mut tunnel.client, CloseCode::PROTOCOL_ERROR).await;
    expect_end(&mut tunnel.client).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_floods_behind_its_end_is_given_up() {
    for flood in [masked(0x82, &[7; 1000]).repeat(100), masked(0x89, b"").repeat(5000), vec![0xff; 30_000]] {
        let mut tunnel = open(settings());
        tunnel.client.write_all(&masked(0x83, b"")).await.unwrap();
        // Its own Close frame never comes, and no time passes: only the amount ends it.
        let mut sent = 0;
        while tunnel.client.write_all(&flood).await.is_ok() {
            sent += flood.len();
            assert!(sent < 20 << 20, "{sent} bytes are read");
        }
        assert!(sent > 15 << 20, "{sent} bytes are read, which may have been on their way");
        expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    }
}

#[tokio::test(start_paused = true)]
async fn policies_that_only_report_close_nothing_and_are_counted() {
    let mut settings = settings();
    settings.report_only = true;
    settings.message.max_size_bytes = Some(10);
    settings.message.max_fragments = Some(1);
    settings.message.messages = Some(message::Rate { count: 1, per: secs(1), burst: 1 });
    settings.idle_timeout = Some(secs(600));
    let mut tunnel = open(Settings { keepalive: None, ..settings });
    let frames =
        [masked(0x01, b"a"), masked(0x80, b"b"), masked(0x81, b"more than ten"), masked(0x81, b"again")].concat();
    tunnel.client.write_all(&frames).await.unwrap();
    expect(&mut tunnel.upstream, &frames).await;
    sleep(secs(1900)).await;
    // Broken protocol is closed all the same.
    tunnel.client.write_all(&masked(0x83, b"")).await.unwrap();
    expect_close(&mut tunnel.client, CloseCode::PROTOCOL_ERROR).await;
    let text = tunnel.metrics.render();
    for (policy, count) in [("message_size", 1), ("message_fragments", 1), ("message_rate", 1), ("idle_timeout", 3)] {
        let line = format!(
            r#"sluicegate_policy_decisions_total{{decision="would_refuse",policy="{policy}",rule="test"}} {count}"#
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

// ---- liveness -------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn pings_both_sides_every_interval_and_swallows_only_our_pongs() {
    let mut tunnel = open(settings());
    let start = tokio::time::Instant::now();
    for round in 1..=10 {
        answer_ping(&mut tunnel.client, true).await;
        answer_ping(&mut tunnel.upstream, false).await;
        assert_eq!(start.elapsed().as_secs(), 25 * round);
    }
    let theirs = masked(0x8a, b"unasked");
    tunnel.client.write_all(&theirs).await.unwrap();
    expect(&mut tunnel.upstream, &theirs).await;
    let metrics = tunnel.metrics.clone();
    let outcome = tunnel.outcome().await;
    assert!(outcome.stats.ping_rtt.is_some());
    let text = metrics.render();
    assert!(text.contains(r#"sluicegate_ping_rtt_seconds_count{rule="test",side="client"} 10"#), "{text}");
    assert!(text.contains(r#"sluicegate_messages_total{direction="in",rule="test",type="pong"} 1"#), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed_after_interval_and_timeout() {
    let mut tunnel = open(settings());
    let start = tokio::time::Instant::now();
    answer_ping(&mut tunnel.upstream, false).await;
    let answering = async {
        answer_ping(&mut tunnel.upstream, false).await;
        // Nobody tells the upstream a code: it sees what it would see without us.
        expect_end(&mut tunnel.upstream).await;
    };
    answering.await;
    assert_eq!(start.elapsed().as_secs(), 55);
    drop(tunnel.upstream);
    let outcome = tunnel.session.await.unwrap();
    assert_eq!((outcome.cause, outcome.close_sent), (Cause::ClientSilent(secs(30)), None));
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_tells_the_client_1012() {
    let mut tunnel = open(settings());
    for _ in 0..2 {
        answer_ping(&mut tunnel.client, true).await;
    }
    expect_close(&mut tunnel.client, CloseCode::SERVICE_RESTART).await;
    drop(tunnel.client);
    assert_eq!(tunnel.session.await.unwrap().cause, Cause::UpstreamSilent(secs(30)));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_never_pongs_keeps_its_sessions() {
    let mut tunnel = open(settings());
    tunnel.endpoint_answers.store(false, Ordering::Relaxed);
    let start = tokio::time::Instant::now();
    while start.elapsed() < secs(1000) {
        answer_ping(&mut tunnel.client, true).await;
    }
    let text = tunnel.metrics.render();
    assert!(!text.contains(r#"sluicegate_pings_unanswered_total{rule="test",side="upstream"} 0"#), "{text}");
    assert!(!tunnel.session.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_large_frame_that_arrives_slowly_survives_a_short_timeout() {
    let keepalive = keepalive::Settings { interval: secs(1), timeout: secs(2), client: true, upstream: true };
    let tunnel = open(Settings { keepalive: Some(keepalive), ..settings() });
    let frame = masked(0x82, &vec![5; 1 << 20]);
    let (mut client_reader, mut client_writer) = tokio::io::split(tunnel.client);
    let (mut upstream_reader, mut upstream_writer) = tokio::io::split(tunnel.upstream);
    let pongs = tokio::spawn(async move {
        // The upstream answers pings, and sees them between frames only.
        let mut head = [0; 1];
        let mut received = 0;
        while received < 1 {
            upstream_reader.read_exact(&mut head).await.unwrap();
            let second = upstream_reader.read_u8().await.unwrap();
            let mut key_and_payload = vec![0; 4 + usize::from(second & 0x7f)];
            if head[0] == 0x89 {
                upstream_reader.read_exact(&mut key_and_payload).await.unwrap();
                let payload: Vec<u8> =
                    key_and_payload[4..].iter().enumerate().map(|(i, byte)| byte ^ key_and_payload[i % 4]).collect();
                upstream_writer.write_all(&plain(0x8a, &payload)).await.unwrap();
            } else {
                let mut rest = vec![0; 8 + 4 + (1 << 20)];
                upstream_reader.read_exact(&mut rest).await.unwrap();
                received += 1;
            }
        }
        (upstream_reader, upstream_writer)
    });
    // 10 KiB a second: 103 seconds in which the client cannot answer a ping.
    for piece in frame.chunks(10 << 10) {
        client_writer.write_all(piece).await.unwrap();
        sleep(secs(1)).await;
    }
    timeout(secs(5), pongs).await.expect("the message arrives whole").unwrap();
    let mut ping = [0; 10];
    client_reader.read_exact(&mut ping).await.unwrap();
    assert_eq!(ping[0], 0x89, "the client was pinged meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_client_does_not_get_its_live_upstream_declared_dead() {
    let mut tunnel = open(Settings { slow_client: None, ..settings() });
    // More than the pipe takes: the client is stopped, and the upstream is not read.
    let message = plain(0x82, &vec![1; 200 << 10]);
    let (_reader, mut writer) = tokio::io::split(tunnel.upstream);
    let sent = message.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer
    });
    sleep(secs(3600)).await;
    assert!(!tunnel.session.is_finished());
    expect(&mut tunnel.client, &message).await;
    drop(writing.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_idle_for_longer_than_the_idle_timeout() {
    let mut tunnel = open(Settings { idle_timeout: Some(secs(3600)), ..quiet() });
    sleep(secs(3599)).await;
    tunnel.client.write_all(&masked(0x89, b"")).await.unwrap();
    expect(&mut tunnel.upstream, &masked(0x89, b"")).await;
    let start = tokio::time::Instant::now();
    let mut frame = [0; 4];
    tunnel.client.read_exact(&mut frame).await.unwrap();
    assert_eq!((start.elapsed().as_secs(), &frame[2..]), (3600, &CloseCode::GOING_AWAY.0.to_be_bytes()[..]));
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    assert!(matches!(tunnel.outcome().await.cause, Cause::IdleTimeout(_)));
}

// ---- slow readers ---------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_a_byte_a_second_is_closed() {
    let mut tunnel = open(settings());
    let message = plain(0x82, &vec![1; 15 << 20]);
    let (_reader, mut writer) = tokio::io::split(tunnel.upstream);
    tokio::spawn(async move { writer.write_all(&message).await });
    let start = tokio::time::Instant::now();
    let metrics = tunnel.metrics.clone();
    let reading = tokio::spawn(async move {
        loop {
            sleep(secs(1)).await;
            if tunnel.client.read_u8().await.is_err() {
                return;
            }
        }
    });
    sleep(secs(2)).await;
    assert!(metrics.render().contains("sluicegate_slow_clients 1"));
    let outcome = timeout(secs(600), tunnel.session).await.unwrap().unwrap();
    assert!(matches!(outcome.cause, Cause::SlowClient { .. }), "{:?}", outcome.cause);
    assert!((30..=36).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(metrics.render().contains("sluicegate_slow_clients 0"));
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_that_wakes_up_within_the_close_timeout_learns_why() {
    let mut tunnel = open(settings());
    // A little more than the pipe holds: what is pending ends between two frames.
    let message = plain(0x82, &[1; PIPE_BYTES]);
    tunnel.upstream.write_all(&message).await.unwrap();
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    sleep(secs(4)).await;
    expect(&mut tunnel.client, &message).await;
    expect_close(&mut tunnel.client, CloseCode::TRY_AGAIN_LATER).await;
    let outcome = tunnel.outcome().await;
    assert!(matches!(outcome.cause, Cause::SlowClient { .. }), "{:?}", outcome.cause);
    assert_eq!(outcome.close_sent, Some(CloseCode::TRY_AGAIN_LATER));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_100_kb_a_second_of_50_mb_is_never_closed() {
    let mut settings = settings();
    settings.message.upstream_max_size_bytes = None;
    let mut tunnel = open(settings);
    let message = plain(0x82, &vec![1; 50 << 20]);
    let len = message.len();
    let (_reader, mut writer) = tokio::io::split(tunnel.upstream);
    tokio::spawn(async move {
        writer.write_all(&message).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut taken = 0;
    let mut piece = vec![0; 100 << 10];
    while taken < len {
        let want = piece.len().min(len - taken);
        tunnel.client.read_exact(&mut piece[..want]).await.unwrap();
        taken += want;
        sleep(secs(1)).await;
    }
    assert!(!tunnel.session.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_upstream_is_given_up_like_a_silent_one() {
    let tunnel = open(settings());
    let (mut reader, mut writer) = tokio::io::split(tunnel.client);
    tokio::spawn(async move {
        loop {
            if writer.write_all(&masked(0x82, &[0; 10_000])).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::spawn(async move { while reader.read_u8().await.is_ok() {} });
    let outcome = timeout(secs(600), tunnel.session).await.unwrap().unwrap();
    assert!(matches!(outcome.cause, Cause::UpstreamSilent(_)), "{:?}", outcome.cause);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_and_reads_no_more_does_not_hold_the_session() {
    let mut tunnel = open(quiet());
    let (_reader, mut writer) = tokio::io::split(tunnel.upstream);
    tokio::spawn(async move {
        // It goes on sending, and its Close frame never comes.
        while writer.write_all(&plain(0x82, &[1; 10_000])).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    sleep(secs(60)).await;
    tunnel.client.write_all(&masked(0x88, &close(CloseCode::NORMAL, ""))).await.unwrap();
    let start = tokio::time::Instant::now();
    let outcome = timeout(secs(600), tunnel.session).await.unwrap().unwrap();
    assert_eq!(outcome.cause, Cause::ClientClosed(Some(CloseCode::NORMAL)));
    assert!(start.elapsed() <= secs(70), "{:?}", start.elapsed());
}

// ---- orders from outside --------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_drain_closes_with_1012_and_1001() {
    let mut tunnel = open(settings());
    tunnel.control.give(Order::Drain);
    // The order finds a session that sleeps.
    expect_close(&mut tunnel.client, CloseCode::SERVICE_RESTART).await;
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    tunnel.client.write_all(&masked(0x88, &close(CloseCode::SERVICE_RESTART, ""))).await.unwrap();
    tunnel.upstream.write_all(&plain(0x88, &close(CloseCode::GOING_AWAY, ""))).await.unwrap();
    assert_eq!(tunnel.outcome().await.cause, Cause::Drain);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_end_of_the_message() {
    let mut tunnel = open(settings());
    let frame = plain(0x81, b"a message in two reads");
    tunnel.upstream.write_all(&frame[..10]).await.unwrap();
    expect(&mut tunnel.client, &frame[..10]).await;
    tunnel.control.give(Order::Drain);
    expect_nothing(&mut tunnel.client, secs(2)).await;
    tunnel.upstream.write_all(&[&frame[10..], &plain(0x81, b"not any more")[..]].concat()).await.unwrap();
    expect(&mut tunnel.client, &frame[10..]).await;
    expect_close(&mut tunnel.client, CloseCode::SERVICE_RESTART).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_closes_with_a_code() {
    let mut tunnel = open(settings());
    tunnel.control.give(Order::Close(CloseCode(4321)));
    expect_close(&mut tunnel.client, CloseCode(4321)).await;
    expect_close(&mut tunnel.upstream, CloseCode::GOING_AWAY).await;
    let outcome = tunnel.outcome().await;
    assert_eq!((outcome.cause, outcome.close_sent), (Cause::Operator(CloseCode(4321)), Some(CloseCode(4321))));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever() {
    let mut tunnel = open(settings());
    tunnel.client.write_all(&masked(0x01, b"never finished")).await.unwrap();
    tunnel.control.give(Order::Drain);
    let start = tokio::time::Instant::now();
    expect_close(&mut tunnel.client, CloseCode::SERVICE_RESTART).await;
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_a_session_that_a_drain_waits_for() {
    let mut tunnel = open(settings());
    let begun = masked(0x01, b"never finished");
    tunnel.client.write_all(&begun).await.unwrap();
    expect(&mut tunnel.upstream, &begun).await;
    tunnel.control.give(Order::Drain);
    expect_nothing(&mut tunnel.client, secs(1)).await;
    let start = tokio::time::Instant::now();
    tunnel.control.give(Order::Cut);
    let outcome = tunnel.ended().await;
    assert_eq!((outcome.cause, start.elapsed().as_secs()), (Cause::DrainCut, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_at_once() {
    let mut tunnel = open(settings());
    let start = tokio::time::Instant::now();
    tunnel.control.give(Order::Cut);
    let outcome = tunnel.ended().await;
    assert_eq!((outcome.cause, start.elapsed().as_secs()), (Cause::DrainCut, 0));
}

/// What each poll of a session passes to the upstream, in bytes, of what the client has `sent` before the first.
async fn passed_by_each_poll(sent: &[u8], compression: Compression) -> Vec<usize> {
    let (mut client, client_far) = tokio::io::duplex(1 << 22);
    let (mut upstream, upstream_far) = tokio::io::duplex(1 << 22);
    let mut settings = quiet();
    (settings.message.control, settings.message.max_ratio, settings.message.max_size_bytes) = (None, None, None);
    let session = Session::new(Opening {
        client: client_far,
        upstream: upstream_far,
        upstream_preread: Vec::new(),
        compression,
        settings: Arc::new(settings),
        metrics: Metrics::new().rule("test"),
        control: Arc::default(),
        endpoint_answers: Arc::default(),
    });
    let mut session = std::pin::pin!(session);
    client.write_all(sent).await.unwrap();
    upstream.write_all(&plain(0x81, b"the other way")).await.unwrap();
    let mut passed = Vec::new();
    let mut came = Vec::with_capacity(sent.len() + 1);
    while came.len() < sent.len() {
        let polled = std::future::poll_fn(|cx| Poll::Ready(session.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        let before = came.len();
        while let Some(read) = upstream.read_buf(&mut came).now_or_never() {
            read.unwrap();
        }
        passed.push(came.len() - before);
        if passed.len() == 1 {
            // A flood of one side leaves the other its turn.
            expect(&mut client, &plain(0x81, b"the other way")).now_or_never().expect("it came with the first poll");
        }
        // What a session that has more to do waits for.
        tokio::task::yield_now().await;
    }
    assert!(came == sent);
    passed
}

#[tokio::test]
async fn a_poll_ends_after_so_much_work_whatever_it_consists_of() {
    let nothing = [0x03, 0x00].repeat(8 << 10);
    let loads = [
        ("messages of a byte", masked(0x81, b"x"), 4200 * 7),
        ("pings", masked(0x89, b""), 2200 * 6),
        ("compressed nothing", masked(0xc1, &nothing), 1600),
        ("messages of 64 KiB", masked(0x82, &[1; 64 << 10]), 512 << 10),
    ];
    for (what, frame, most) in loads {
        let sent = frame.repeat((2 << 20) / frame.len());
        let compression = if frame[0] & 0x40 == 0 { Compression::Off } else { Compression::Passthrough };
        let passed = unconstrained(passed_by_each_poll(&sent, compression)).await;
        let largest = passed.iter().copied().max().unwrap();
        assert!(largest <= most, "{what}: {largest} bytes in one poll");
        // And it does something in each, so that a flood is as cheap as it can be.
        let usual = passed[passed.len() / 2];
        assert!(usual * 4 > most, "{what}: {usual} bytes in a poll");
    }
}

#[tokio::test]
async fn honest_compression_passes_however_it_is_flushed() {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let deflater = Deflater::new();
    let deflated = |plain: &[u8], last| {
        let mut bytes = Vec::new();
        deflater.feed(plain, last, &mut bytes);
        bytes
    };
    // Flushed behind each byte, in fragments; in many small messages; and what cannot be compressed.
    for _ in 0..20 {
        for at in 0..1000 {
            pieces.push(masked(if at == 0 { 0x41 } else { 0x00 }, &deflated(b"a", false)));
        }
        pieces.push(masked(0x80, &deflated(b"", true)));
    }
    let text = br#"{"type":"message","id":1,"text":"the quick brown fox"}"#;
    pieces.extend((0..50_000).map(|_| masked(0xc1, &deflated(text, true))));
    let mut state = 1u64;
    let noise = (0..1_000_000).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let noise = masked(0xc2, &deflated(&noise.collect::<Vec<_>>(), true));
    pieces.extend(vec![noise; 5]);
    let mut tunnel = open_with(quiet(), Vec::new(), Compression::Passthrough);
    let sent = pieces.concat();
    let (from, to) = (&mut tunnel.client, &mut tunnel.upstream);
    let (wrote, ()) = tokio::join!(from.write_all(&sent), expect(to, &sent));
    wrote.unwrap();
}

/// A stream in front of which something else waits for the client.
struct Fed {
    io: DuplexStream,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Waiting(Mutex<Depth>);

impl Backlog for Waiting {
    fn depth(&self) -> Depth {
        *self.0.lock()
    }
}

impl AsyncRead for Fed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Fed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Wire for Fed {
    fn backlog(&self) -> Option<Arc<dyn Backlog>> {
        Some(self.waiting.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_behind_what_waits_for_it_is_slow_after_a_second_until_it_has_caught_up() {
    let waiting = Arc::new(Waiting(Mutex::new(Depth { messages: 0, bytes: 0, behind_since: None })));
    let (mut client, client_far) = tokio::io::duplex(PIPE_BYTES);
    let (mut upstream, upstream_far) = tokio::io::duplex(PIPE_BYTES);
    let metrics = Metrics::new();
    let session = tokio::spawn(Session::new(Opening {
        client: client_far,
        upstream: Fed { io: upstream_far, waiting: waiting.clone() },
        upstream_preread: Vec::new(),
        compression: Compression::Off,
        settings: Arc::new(quiet()),
        metrics: metrics.rule("test"),
        control: Arc::default(),
        endpoint_answers: Arc::new(AtomicBool::new(true)),
    }));
    let slow = || metrics.render().contains("sluicegate_slow_clients 1");
    // All that is sent is taken at once: the tunnel itself never waits for the client.
    let mut send = async |text: &[u8], behind_since| {
        *waiting.0.lock() = Depth { messages: 9, bytes: 900, behind_since };
        upstream.write_all(&plain(0x81, text)).await.unwrap();
        expect(&mut client, &plain(0x81, text)).await;
    };
    let since = tokio::time::Instant::now().into_std();
    send(b"one", Some(since)).await;
    assert!(!slow());
    sleep(secs(2)).await;
    assert!(slow());
    send(b"two", Some(since)).await;
    assert!(slow(), "it has taken something, and is as far behind");
    send(b"three", None).await;
    sleep(Duration::from_millis(1)).await;
    assert!(!slow());
    session.abort();
}
