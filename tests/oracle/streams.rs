//! The streams: valid ones, and ways to break them.

use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use sluicegate::ws::header::{ControlFrame, MAX_CONTROL_PAYLOAD_BYTES, Opcode};
use sluicegate::ws::mask;

use crate::frames::Declared;

/// The frames of a valid client stream: a few messages, some in fragments, control frames anywhere, at times a Close.
pub fn valid(random: &mut SmallRng) -> Vec<Vec<u8>> {
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
fn data_frame(first: u8, payload: &[u8], random: &mut SmallRng) -> Vec<u8> {
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

fn control(random: &mut SmallRng) -> Vec<u8> {
    let mut payload = vec![0; random.random_range(0..=MAX_CONTROL_PAYLOAD_BYTES)];
    random.fill(&mut payload[..]);
    let opcode = if random.random() { Opcode::Ping } else { Opcode::Pong };
    ControlFrame::new(opcode, &payload, Some(random.random())).as_bytes().to_vec()
}

fn close(random: &mut SmallRng) -> Vec<u8> {
    let mut payload = Vec::new();
    if random.random_ratio(4, 5) {
        let code: u16 = *[1000, 1001, 1002, 1003, 1007, 1008, 1011, 1013, 3000, 4000, 4999].choose(random).unwrap();
        payload.extend(code.to_be_bytes());
        payload.extend_from_slice(["".as_bytes(), b"bye", "à bientôt".as_bytes()].choose(random).unwrap());
    }
    ControlFrame::new(Opcode::Close, &payload, Some(random.random())).as_bytes().to_vec()
}

fn length(random: &mut SmallRng) -> usize {
    match random.random_range(0..400) {
        0 => random.random_range(65530..65600),
        1..80 => random.random_range(120..300),
        _ => random.random_range(0..20),
    }
}

fn bytes(random: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; length(random)];
    random.fill(&mut bytes[..]);
    bytes
}

fn text(random: &mut SmallRng) -> Vec<u8> {
    let len = length(random);
    let mut text = String::new();
    while text.len() < len {
        text.push(*['a', 'é', '€', '😀', '\u{0}', '\u{7ff}', '\u{d7ff}', '\u{10ffff}'].choose(random).unwrap());
    }
    text.into_bytes()
}

/// Breaks a stream in one to three places, or leaves it as it is.
pub fn mutate(frames: &mut Vec<Vec<u8>>, random: &mut SmallRng) {
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
fn lengthen_form(frame: &mut Vec<u8>, random: &mut SmallRng) {
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
