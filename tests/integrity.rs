//! Nothing is lost, doubled, reordered or torn: random streams through narrow pipes, cut anywhere, with pings of ours
//! injected all the time, and slow readers on both sides.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sluicegate::cause::Cause;
use sluicegate::metrics::Metrics;
use sluicegate::policy::{keepalive, message};
use sluicegate::tunnel::registry::Control;
use sluicegate::tunnel::session::{Opening, Session};
use sluicegate::tunnel::{Compression, Settings};
use sluicegate::ws::deflate::{Deflater, Inflater};
use sluicegate::ws::header::{Opcode, Sender, parse};
use sluicegate::ws::mask;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::time::sleep;

/// One thing that a peer does.
#[derive(Clone, Debug)]
enum Act {
    /// Sends a frame: its first byte, its payload, and at how many bytes the frame is cut into writes.
    Send(u8, Vec<u8>, usize),
    /// Waits for so many milliseconds.
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let payload = prop_oneof![
        4 => proptest::collection::vec(b'a'..=b'z', 0..200),
        1 => proptest::collection::vec(b'a'..=b'z', 60_000..70_000),
    ];
    let message = (payload, any::<bool>(), 1usize..5000, any::<bool>()).prop_map(|(payload, text, cut, fragmented)| {
        let first = if text { 1 } else { 2 };
        if !fragmented {
            return vec![Act::Send(0x80 | first, payload, cut)];
        }
        let (one, two) = payload.split_at(payload.len() / 2);
        // A ping of the peer's own between two fragments.
        vec![
            Act::Send(first, one.to_vec(), cut),
            Act::Send(0x89, b"own".to_vec(), cut),
            Act::Send(0x80, two.to_vec(), cut),
        ]
    });
    let act = prop_oneof![5 => message, 1 => (1u64..3000).prop_map(|ms| vec![Act::Wait(ms)])];
    proptest::collection::vec(act, 1..12).prop_map(|acts| acts.concat())
}

fn frame(role: Sender, first: u8, payload: &[u8]) -> Vec<u8> {
    let mask_bit = if role == Sender::Client { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(mask_bit | len as u8),
        len @ 126..65536 => {
            frame.push(mask_bit | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(mask_bit | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    let mut payload = payload.to_vec();
    if role == Sender::Client {
        let key = [9, 8, 7, 6];
        frame.extend(key);
        mask::apply(&mut payload, key, 0);
    }
    frame.extend(payload);
    frame
}

/// One message that is compressed by itself, as frames; the payload is cut in two where the act is a fragment.
fn compress(acts: Vec<Act>) -> Vec<Act> {
    let mut compressed = Vec::new();
    let mut deflater = None;
    for act in acts {
        let Act::Send(first, payload, cut) = act else {
            compressed.push(act);
            continue;
        };
        if first & 0x08 != 0 {
            compressed.push(Act::Send(first, payload, cut));
            continue;
        }
        let begins = first & 0x0f != 0;
        let deflater = if begins { deflater.insert(Deflater::new()) } else { deflater.as_mut().expect("it began") };
        let mut into = Vec::new();
        deflater.feed(&payload, first & 0x80 != 0, &mut into);
        compressed.push(Act::Send(if begins { first | 0x40 } else { first }, into, cut));
    }
    compressed
}

/// The messages and control frames of a stream, inflated where they are compressed.
fn messages(frames: &[(u8, Vec<u8>)]) -> Vec<(u8, Vec<u8>)> {
    let (mut whole, mut open) = (Vec::new(), None);
    for (first, payload) in frames {
        if first & 0x08 != 0 {
            whole.push((*first, payload.clone()));
            continue;
        }
        let message: &mut (u8, Vec<u8>) = open.get_or_insert((first & 0x4f, Vec::new()));
        message.1.extend(payload);
        if first & 0x80 != 0 {
            let (first, payload) = open.take().expect("it began");
            let mut plain = Vec::new();
            if first & 0x40 == 0 {
                plain = payload;
            } else {
                let mut inflater = Inflater::new();
                let mut sink = |bytes: &[u8]| {
                    plain.extend_from_slice(bytes);
                    Ok(())
                };
                inflater.feed(&payload, &mut sink).expect("it inflates");
                inflater.finish(&mut sink).expect("it ends");
            }
            whole.push((first & 0x0f, plain));
        }
    }
    // A control frame may overtake the end of the message that it came in: only their order among themselves counts.
    whole.sort_by_key(|(first, _)| first & 0x08);
    whole
}

/// Sends all acts and then a Close frame. Returns the frames without the pings' pongs.
async fn send(role: Sender, acts: Vec<Act>, mut to: WriteHalf<DuplexStream>) -> WriteHalf<DuplexStream> {
    for act in acts {
        match act {
            Act::Wait(ms) => sleep(Duration::from_millis(ms)).await,
            Act::Send(first, payload, cut) => {
                for piece in frame(role, first, &payload).chunks(cut) {
                    to.write_all(piece).await.expect("the session takes it");
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    to
}

/// Reads frames that `sender` sends, slowly, until the stream ends. Our pings are left out.
async fn receive(sender: Sender, mut from: ReadHalf<DuplexStream>, pause_ms: u64) -> Vec<(u8, Vec<u8>)> {
    let (mut bytes, mut frames, mut piece) = (Vec::new(), Vec::new(), vec![0; 700]);
    loop {
        while let Some((header, len)) = parse(&bytes, sender, true).expect("valid frames come out") {
            let end = len + header.payload_bytes as usize;
            if bytes.len() < end {
                break;
            }
            let mut payload = bytes[len..end].to_vec();
            if let Some(key) = header.mask {
                mask::apply(&mut payload, key, 0);
            }
            let first = bytes[0];
            bytes.drain(..end);
            if header.opcode != Opcode::Ping || payload == b"own" {
                frames.push((first, payload));
            }
        }
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
        }
        if pause_ms > 0 {
            sleep(Duration::from_millis(pause_ms)).await;
        }
    }
    assert!(bytes.is_empty(), "a torn frame at the end: {} bytes", bytes.len());
    frames
}

fn sent(acts: &[Act]) -> Vec<(u8, Vec<u8>)> {
    acts.iter()
        .filter_map(|act| match act {
            Act::Send(first, payload, _) => Some((*first, payload.clone())),
            Act::Wait(_) => None,
        })
        .collect()
}

async fn run(client_acts: Vec<Act>, upstream_acts: Vec<Act>, pipe: usize, pauses: [u64; 2], compression: Compression) {
    let (client, client_far) = tokio::io::duplex(pipe);
    let (upstream, upstream_far) = tokio::io::duplex(pipe);
    let metrics = Metrics::new();
    let settings = Settings {
        message: message::Settings {
            max_size_bytes: None,
            max_fragments: None,
            max_ratio: None,
            messages: None,
            bytes: None,
            control: None,
            stall_timeout: None,
            timeout: None,
            utf8: true,
            upstream_max_size_bytes: None,
        },
        // Pings all the time, and nobody answers: nobody is given up within an hour.
        keepalive: Some(keepalive::Settings {
            interval: Duration::from_millis(7),
            timeout: Duration::from_secs(36_000),
            client: true,
            upstream: true,
        }),
        idle_timeout: None,
        slow_client: None,
        close_timeout: Duration::from_secs(3600),
        report_only: false,
    };
    let session = tokio::spawn(Session::new(Opening {
        client: client_far,
        upstream: upstream_far,
        upstream_preread: Vec::new(),
        compression,
        settings: Arc::new(settings),
        metrics: metrics.rule("test"),
        control: Arc::<Control>::default(),
        endpoint_answers: Arc::default(),
    }));
    let (client_read, client_write) = split(client);
    let (upstream_read, upstream_write) = split(upstream);
    let at_client = tokio::spawn(receive(Sender::Server, client_read, pauses[0]));
    let at_upstream = tokio::spawn(receive(Sender::Client, upstream_read, pauses[1]));
    let from_client = tokio::spawn(send(Sender::Client, client_acts.clone(), client_write));
    let from_upstream = tokio::spawn(send(Sender::Server, upstream_acts.clone(), upstream_write));
    let (mut client_write, mut upstream_write) = (from_client.await.unwrap(), from_upstream.await.unwrap());
    client_write.write_all(&frame(Sender::Client, 0x88, b"\x03\xe8")).await.unwrap();
    upstream_write.write_all(&frame(Sender::Server, 0x88, b"\x03\xe8")).await.unwrap();
    client_write.shutdown().await.unwrap();
    upstream_write.shutdown().await.unwrap();
    let outcome = session.await.unwrap();
    assert!(matches!(outcome.cause, Cause::ClientClosed(_) | Cause::UpstreamClosed(_)), "{:?}", outcome.cause);
    for (received, acts) in [(at_upstream.await.unwrap(), client_acts), (at_client.await.unwrap(), upstream_acts)] {
        let (close, received) = received.split_last().expect("a Close frame");
        assert_eq!(close, &(0x88, b"\x03\xe8".to_vec()));
        let sent = sent(&acts);
        if matches!(compression, Compression::Terminate { .. }) {
            assert!(messages(received) == messages(&sent), "{} frames came of {}", received.len(), sent.len());
        } else {
            assert!(received == sent, "{} frames came of {}", received.len(), sent.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(
        client_acts in acts(),
        upstream_acts in acts(),
        pipe in prop_oneof![Just(16usize), Just(64), Just(1000), Just(100_000)],
        client_pause in 0u64..3,
        upstream_pause in 0u64..3,
        compression in prop_oneof![
            Just(Compression::Off), Just(Compression::Passthrough), Just(Compression::Terminate { window_bits: 9 }),
            Just(Compression::Terminate { window_bits: 12 })
        ],
        compressed: bool,
    ) {
        let upstream_acts = match compression {
            Compression::Passthrough if compressed => compress(upstream_acts),
            _ => upstream_acts,
        };
        let client_acts = if compressed && compression != Compression::Off { compress(client_acts) } else { client_acts };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(client_acts, upstream_acts, pipe, [client_pause, upstream_pause], compression));
    }
}
