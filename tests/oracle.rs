//! The scanner against another implementation: `tungstenite` reads the same bytes in the server's role.
//!
//! Valid client streams are broken in many ways, and both must agree about each: what was delivered, byte for byte, and
//! how it ended. Where tungstenite is known to be laxer or later, [`KNOWN`] says why and checks that the case is really
//! that one; any other difference fails. `SLUICEGATE_SEED=n` tries other streams than the default ones.

use std::io::{self, Cursor, Read, Write};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use sluicegate::ws::close::{CloseCode, parse_close};
use sluicegate::ws::error::ProtocolError;
use sluicegate::ws::header::{ControlFrame, MAX_CONTROL_PAYLOAD_BYTES, Opcode, Sender};
use sluicegate::ws::mask;
use sluicegate::ws::scan::{MessageType, Scanner, Step};
use tokio_tungstenite::tungstenite;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};

/// How many streams are read.
const STREAMS: u64 = 30_000;

/// Which streams, when `SLUICEGATE_SEED` does not say.
const SEED: u64 = 6455;

/// tungstenite reserves what a frame declares, so it needs a limit here; the scanner leaves sizes to a policy.
const ORACLE_MAX_FRAME_BYTES: usize = 1 << 20;

/// How the bytes of a stream ended.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// No rule is broken so far, and more may come.
    Open,
    /// A Close frame, with this code if any.
    Closed(Option<CloseCode>),
    /// A rule is broken.
    Refused(Breach),
}

#[derive(Clone, Debug, PartialEq)]
enum Breach {
    Ours(ProtocolError),
    /// tungstenite's limit of a frame's size.
    Capacity,
    /// Any other rule of tungstenite's, in its words.
    Theirs(String),
}

/// What was delivered, with its payload: a message, a Ping or a Pong.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

/// What one implementation made of a stream.
#[derive(Clone, Debug, PartialEq)]
struct Reading {
    items: Vec<Item>,
    end: End,
}

/// A stream that the two read differently.
struct Case<'a> {
    ours: &'a Reading,
    theirs: &'a Reading,
    /// The bytes from the frame on at which the scanner stopped.
    last_frame: &'a [u8],
}

/// A difference that is understood, and how to tell that a case is that one.
struct Known {
    name: &'static str,
    is_this: fn(&Case) -> bool,
}

const KNOWN: [Known; 5] = [
    Known {
        // RFC 6455 §5.2: "the minimal number of bytes MUST be used to encode the length". tungstenite takes each form
        // and reads on, so nothing behind that frame can be compared. In a control frame the scanner refuses any longer
        // form as too long, before it sees the length.
        name: "tungstenite takes a length that is not in its shortest form",
        is_this: |case| {
            let rule = [ProtocolError::NonMinimalLength, ProtocolError::ControlTooLong]
                .into_iter()
                .any(|rule| case.ours.end == End::Refused(Breach::Ours(rule)));
            rule && case.theirs.items.starts_with(&case.ours.items)
                && Declared::read(case.last_frame).is_some_and(|frame| !frame.is_minimal())
        },
    },
    Known {
        // A proxy must not forward what it will have to refuse, so the scanner refuses at the first byte that breaks a
        // rule; tungstenite looks at a frame when it is whole, and at the text of an unfragmented message likewise.
        name: "tungstenite waits for the rest of a frame that is already wrong",
        is_this: |case| {
            matches!(case.ours.end, End::Refused(Breach::Ours(_)))
                && case.theirs.end == End::Open
                && case.theirs.items == case.ours.items
                && Declared::read(case.last_frame).is_none_or(|frame| !frame.is_whole(case.last_frame))
        },
    },
    Known {
        // RFC 6455 §7.4.1 and §7.4.2. A gateway refuses the code rather than pass it on; tungstenite reports 1002 as if
        // the peer had sent that.
        name: "tungstenite turns a close code that must not be on the wire into 1002",
        is_this: |case| {
            matches!(case.ours.end, End::Refused(Breach::Ours(ProtocolError::InvalidCloseCode(_))))
                && case.theirs.end == End::Closed(Some(CloseCode::PROTOCOL_ERROR))
                && case.theirs.items == case.ours.items
        },
    },
    Known {
        // IANA registered 1014 (bad gateway) in 2016; tungstenite's table ends before it.
        name: "tungstenite does not know close code 1014",
        is_this: |case| {
            case.ours.end == End::Closed(Some(CloseCode(1014)))
                && case.theirs.end == End::Closed(Some(CloseCode::PROTOCOL_ERROR))
                && case.theirs.items == case.ours.items
        },
    },
    Known {
        // The limit that this test sets. The scanner reads the frame as it comes, and the policy of message sizes
        // refuses it from its header.
        name: "tungstenite is given a limit of a frame's size",
        is_this: |case| {
            case.ours.end == End::Open
                && case.theirs.end == End::Refused(Breach::Capacity)
                && case.theirs.items == case.ours.items
                && Declared::read(case.last_frame)
                    .is_some_and(|frame| frame.payload_bytes > ORACLE_MAX_FRAME_BYTES as u64)
        },
    },
];

#[test]
fn reads_broken_client_streams_as_tungstenite_does() {
    let seed = seed();
    let mut tally = Tally::default();
    for number in 0..STREAMS {
        // A stream of its own for each number, so that one can be looked at alone.
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let mut frames = valid(&mut random);
        mutate(&mut frames, &mut random);
        let stream = frames.concat();
        compare(&stream, &mut tally).unwrap_or_else(|difference| {
            panic!("stream {number} of SLUICEGATE_SEED={seed} is read differently: {}\n{difference}", hex(&stream))
        });
    }
    // A generator that makes only one kind of stream would compare nothing.
    assert!(tally.open > STREAMS / 20 && tally.closed > STREAMS / 20 && tally.refused > STREAMS / 20, "{tally:?}");
    for (known, seen) in KNOWN.iter().zip(tally.known) {
        assert!(seen > 0, "no stream of SLUICEGATE_SEED={seed} shows any more that {}", known.name);
    }
}

#[test]
fn reads_valid_client_streams_as_tungstenite_does() {
    let seed = seed();
    for number in 0..STREAMS / 10 {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let stream = valid(&mut random).concat();
        let (ours, _) = read_with_scanner(&stream);
        assert!(!matches!(ours.end, End::Refused(_)), "stream {number} of SLUICEGATE_SEED={seed}: {:?}", ours.end);
        assert_eq!(ours, read_with_tungstenite(&stream), "stream {number} of SLUICEGATE_SEED={seed}: {}", hex(&stream));
    }
}

fn seed() -> u64 {
    std::env::var("SLUICEGATE_SEED").map_or(SEED, |seed| seed.parse().expect("SLUICEGATE_SEED is a number"))
}

/// How the streams were read, to show that all kinds were there.
#[derive(Debug, Default)]
struct Tally {
    open: u64,
    closed: u64,
    refused: u64,
    known: [u64; KNOWN.len()],
}

fn compare(stream: &[u8], tally: &mut Tally) -> Result<(), String> {
    let (ours, last_frame) = read_with_scanner(stream);
    let theirs = read_with_tungstenite(stream);
    let agree = match (&ours.end, &theirs.end) {
        // Which of several broken rules is named first is nobody's business.
        (End::Refused(_), End::Refused(_)) => true,
        (ours, theirs) => ours == theirs,
    };
    if agree && ours.items == theirs.items {
        match ours.end {
            End::Open => tally.open += 1,
            End::Closed(_) => tally.closed += 1,
            End::Refused(_) => tally.refused += 1,
        }
        return Ok(());
    }
    let case = Case { ours: &ours, theirs: &theirs, last_frame: &stream[last_frame..] };
    match KNOWN.iter().position(|known| (known.is_this)(&case)) {
        Some(known) => tally.known[known] += 1,
        None => return Err(format!("scanner:     {ours:?}\ntungstenite: {theirs:?}")),
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a stream as the tunnel does: up to a Close frame, whose payload is parsed. Also says where the last frame is
/// that it looked at.
fn read_with_scanner(stream: &[u8]) -> (Reading, usize) {
    let mut scanner = Scanner::new(Sender::Client, true);
    let mut items = Vec::new();
    let (mut message, mut kind) = (Vec::new(), MessageType::Binary);
    let (mut key, mut frame_at, mut payload_at, mut at) = ([0; 4], 0, 0, 0);
    let deliver = |kind, message: &mut Vec<u8>| match kind {
        MessageType::Text => Item::Text(std::mem::take(message)),
        MessageType::Binary => Item::Binary(std::mem::take(message)),
    };
    let end = loop {
        if scanner.at_frame_boundary() {
            frame_at = at;
        }
        match scanner.next(&stream[at..]) {
            Ok(Step::NeedMore) => break End::Open,
            Ok(Step::Header { header, len, message: seen }) => {
                at += len;
                (key, payload_at, kind) = (header.mask.expect("a client's frame is masked"), at, seen.kind);
                if header.payload_bytes == 0 && header.fin {
                    items.push(deliver(kind, &mut message));
                }
            }
            Ok(Step::Payload { len, ends_message, .. }) => {
                let start = message.len();
                message.extend_from_slice(&stream[at..at + len]);
                mask::apply(&mut message[start..], key, (at - payload_at) as u64);
                at += len;
                if let Some(ended) = ends_message {
                    assert_eq!(ended.kind, kind);
                    items.push(deliver(kind, &mut message));
                }
            }
            Ok(Step::Control { header, header_len }) => {
                let end = at + header_len + header.payload_bytes as usize;
                let mut payload = stream[at + header_len..end].to_vec();
                mask::apply(&mut payload, header.mask.expect("a client's frame is masked"), 0);
                match header.opcode {
                    Opcode::Ping => items.push(Item::Ping(payload)),
                    Opcode::Pong => items.push(Item::Pong(payload)),
                    _ => match parse_close(&payload) {
                        Ok(code) => break End::Closed(code),
                        Err(rule) => break End::Refused(Breach::Ours(rule)),
                    },
                }
                at = end;
            }
            Err(rule) => break End::Refused(Breach::Ours(rule)),
        }
    };
    (Reading { items, end }, frame_at)
}

/// A connection whose peer sent `.0` and went away; what it is sent is dropped.
struct Sent<'a>(Cursor<&'a [u8]>);

impl Read for Sent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Sent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_with_tungstenite(stream: &[u8]) -> Reading {
    use tungstenite::error::ProtocolError as Theirs;
    use tungstenite::{Error, Message};
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(None)
        .max_frame_size(Some(ORACLE_MAX_FRAME_BYTES));
    let mut socket = WebSocket::from_raw_socket(Sent(Cursor::new(stream)), Role::Server, Some(config));
    let mut items = Vec::new();
    let end = loop {
        match socket.read() {
            Ok(Message::Text(text)) => items.push(Item::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => items.push(Item::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => items.push(Item::Ping(bytes.to_vec())),
            Ok(Message::Pong(bytes)) => items.push(Item::Pong(bytes.to_vec())),
            Ok(Message::Close(frame)) => break End::Closed(frame.map(|frame| CloseCode(frame.code.into()))),
            Ok(Message::Frame(_)) => unreachable!("tungstenite reads no raw frames"),
            Err(Error::Protocol(Theirs::ResetWithoutClosingHandshake)) => break End::Open,
            Err(Error::Capacity(_)) => break End::Refused(Breach::Capacity),
            Err(error @ (Error::Protocol(_) | Error::Utf8(_))) => {
                break End::Refused(Breach::Theirs(error.to_string()));
            }
            Err(error) => panic!("tungstenite fails otherwise than by a rule: {error}"),
        }
    };
    Reading { items, end }
}

/// What a frame declares about its length, read without any rule and without the scanner's parser.
struct Declared {
    header_bytes: usize,
    length_bytes: usize,
    payload_bytes: u64,
}

impl Declared {
    /// `None` when the header is not whole.
    fn read(frame: &[u8]) -> Option<Self> {
        let second = *frame.get(1)?;
        let (length_bytes, payload_bytes) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes(frame.get(2..4)?.try_into().ok()?))),
            127 => (8, u64::from_be_bytes(frame.get(2..10)?.try_into().ok()?)),
            short => (0, u64::from(short)),
        };
        let header_bytes = 2 + length_bytes + if second & 0x80 == 0 { 0 } else { 4 };
        (frame.len() >= header_bytes).then_some(Self { header_bytes, length_bytes, payload_bytes })
    }

    fn is_minimal(&self) -> bool {
        match self.length_bytes {
            0 => true,
            2 => self.payload_bytes > 125,
            _ => self.payload_bytes > 65535,
        }
    }

    fn is_whole(&self, frame: &[u8]) -> bool {
        self.payload_bytes <= (frame.len() - self.header_bytes) as u64
    }
}

/// The frames of a valid client stream: a few messages, some in fragments, control frames anywhere, at times a Close.
fn valid(random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..random.random_range(1..5) {
        let (opcode, payload) = if random.random() { (1, text(random)) } else { (2, bytes(random)) };
        let fragments = if random.random_ratio(1, 3) { random.random_range(2..5) } else { 1 };
        // Cut anywhere, inside of a character too; a fragment may be empty.
        let mut cuts: Vec<usize> = (1..fragments).map(|_| random.random_range(0..=payload.len())).collect();
        cuts.extend([0, payload.len()]);
        cuts.sort_unstable();
        for (number, cut) in cuts.windows(2).enumerate() {
            let opcode = if number == 0 { opcode } else { 0 };
            let fin = if number + 1 == fragments { 0x80 } else { 0 };
            frames.push(data_frame(fin | opcode, &payload[cut[0]..cut[1]], random));
            while random.random_ratio(1, 6) {
                frames.push(control(random));
            }
        }
    }
    if random.random_ratio(1, 2) {
        frames.push(close(random));
    }
    frames
}

/// A masked data frame with its length in the shortest form.
fn data_frame(first: u8, payload: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    let key: [u8; 4] = random.random();
    frame.extend(key);
    let start = frame.len();
    frame.extend_from_slice(payload);
    mask::apply(&mut frame[start..], key, 0);
    frame
}

fn control(random: &mut StdRng) -> Vec<u8> {
    let mut payload = vec![0; random.random_range(0..=MAX_CONTROL_PAYLOAD_BYTES)];
    random.fill(&mut payload[..]);
    let opcode = if random.random() { Opcode::Ping } else { Opcode::Pong };
    ControlFrame::new(opcode, &payload, Some(random.random())).as_bytes().to_vec()
}

fn close(random: &mut StdRng) -> Vec<u8> {
    let mut payload = Vec::new();
    if random.random_ratio(4, 5) {
        let code: u16 = *[1000, 1001, 1002, 1003, 1007, 1008, 1011, 1013, 3000, 4000, 4999].choose(random).unwrap();
        payload.extend(code.to_be_bytes());
        payload.extend_from_slice(["".as_bytes(), b"bye", "à bientôt".as_bytes()].choose(random).unwrap());
    }
    ControlFrame::new(Opcode::Close, &payload, Some(random.random())).as_bytes().to_vec()
}

fn length(random: &mut StdRng) -> usize {
    match random.random_range(0..200) {
        0 => random.random_range(65530..65600),
        1..40 => random.random_range(120..300),
        _ => random.random_range(0..20),
    }
}

fn bytes(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; length(random)];
    random.fill(&mut bytes[..]);
    bytes
}

fn text(random: &mut StdRng) -> Vec<u8> {
    let len = length(random);
    let mut text = String::new();
    while text.len() < len {
        text.push(*['a', 'é', '€', '😀', '\u{0}', '\u{7ff}', '\u{d7ff}', '\u{10ffff}'].choose(random).unwrap());
    }
    text.into_bytes()
}

/// Breaks a stream in one to three places, or leaves it as it is.
fn mutate(frames: &mut Vec<Vec<u8>>, random: &mut StdRng) {
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..frames.len());
        match random.random_range(0..13) {
            // The header: any bit of its first byte, its opcode, its mask bit and length.
            0 => frames[at][0] ^= 1 << random.random_range(0..8),
            1 => frames[at][0] = frames[at][0] & 0xf0 | random.random_range(0..16),
            2 => frames[at][1] ^= 0x80,
            3 => frames[at][1] = 0x80 | random.random_range(0..128),
            4 => lengthen_form(&mut frames[at], random),
            // The order of the frames, and frames twice, missing or empty.
            5 => {
                let other = random.random_range(0..frames.len());
                frames.swap(at, other);
            }
            6 => frames.insert(at, frames[at].clone()),
            7 if frames.len() > 1 => drop(frames.remove(at)),
            8 => frames.insert(at, data_frame(*[0x00, 0x80, 0x01, 0x81].choose(random).unwrap(), b"", random)),
            // Any byte anywhere, and payload that is no longer text.
            9 => {
                let byte = random.random_range(0..frames[at].len());
                frames[at][byte] ^= 1 << random.random_range(0..8);
            }
            10 => {
                let broken: &[u8] = [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok\xe2\x82"]
                    .choose(random)
                    .unwrap();
                let first = *[0x81, 0x01, 0x80].choose(random).unwrap();
                frames.insert(at, data_frame(first, broken, random));
            }
            // A Close frame with any payload.
            11 => {
                let code =
                    *[0, 999, 1004, 1005, 1006, 1014, 1015, 1016, 2999, 3000, 5000, 65535].choose(random).unwrap();
                let payload = [&u16::to_be_bytes(code)[..], b"\xc3\xa9"].concat();
                let payload = &payload[..random.random_range(0..=payload.len())];
                frames.insert(at, ControlFrame::new(Opcode::Close, payload, Some(random.random())).as_bytes().to_vec());
            }
            // The end is missing.
            _ => {
                let len = random.random_range(0..=frames[at].len());
                frames[at].truncate(len);
                frames.truncate(at + 1);
                if frames.concat().is_empty() {
                    frames[at] = data_frame(0x82, b"", random);
                }
                return;
            }
        }
    }
}

/// Gives a frame a longer form of its length than it needs, or a length that is not its own.
fn lengthen_form(frame: &mut Vec<u8>, random: &mut StdRng) {
    let Some(declared) = Declared::read(frame) else { return };
    let mask_bit = frame[1] & 0x80;
    let long = match random.random_range(0..4) {
        0 => (declared.payload_bytes as u16).to_be_bytes().to_vec(),
        1 => declared.payload_bytes.to_be_bytes().to_vec(),
        2 => random.random::<u64>().to_be_bytes().to_vec(),
        _ => random.random_range(0..1u64 << 21).to_be_bytes().to_vec(),
    };
    frame[1] = mask_bit | if long.len() == 2 { 126 } else { 127 };
    frame.splice(2..2 + declared.length_bytes, long);
}
