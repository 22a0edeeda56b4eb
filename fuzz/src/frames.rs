//! Frames, scanned in pieces, and written without the code that is under test.

use std::ops::Range;

use sluicegate::ws::deflate::MAX_RATIO;
use sluicegate::ws::error::ProtocolError;
use sluicegate::ws::header::FrameHeader;
use sluicegate::ws::scan::{Message, Scanner, Step};

/// A header on the wire, its length in the shortest form.
pub fn write_header(header: &FrameHeader) -> Vec<u8> {
    let mask_bit = if header.mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![u8::from(header.fin) << 7 | u8::from(header.rsv1) << 6 | header.opcode.bits()];
    match header.payload_bytes {
        len @ 0..126 => bytes.push(mask_bit | len as u8),
        len @ 126..65536 => {
            bytes.push(mask_bit | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(mask_bit | 127);
            bytes.extend(len.to_be_bytes());
        }
    }
    bytes.extend(header.mask.into_iter().flatten());
    bytes
}

/// What a scan saw, with the parts of one payload joined, so that the way in which the bytes came does not show.
#[derive(Debug, PartialEq)]
pub struct Scan {
    /// Frames and ends of messages, in their order.
    pub items: Vec<Item>,
    /// What was inflated, of all messages.
    pub plain: Vec<u8>,
    /// The rule that was broken.
    pub error: Option<ProtocolError>,
    /// How many bytes belong to the items.
    pub taken: usize,
}

/// A part of a stream, with the place of its payload.
#[derive(Debug, PartialEq)]
pub enum Item {
    /// The header of a data frame, and its message so far.
    Data(FrameHeader, Message),
    /// Payload of the data frame before it.
    Payload(Range<usize>),
    /// The last payload ended this message.
    Ends(Message),
    /// A control frame with its payload.
    Control(FrameHeader, Range<usize>),
}

/// Scans `bytes` in pieces that end at `cuts`; what a piece leaves is shown again with the next one, as the tunnel does.
pub fn scan(mut scanner: Scanner, bytes: &[u8], cuts: &[usize]) -> Scan {
    let mut scan = Scan { items: Vec::new(), plain: Vec::new(), error: None, taken: 0 };
    for &end in cuts.iter().chain([&bytes.len()]) {
        while scan.error.is_none() {
            let at = scan.taken;
            let before = scan.plain.len();
            match scanner.next_into(&bytes[at..end], &mut |plain| scan.plain.extend_from_slice(plain)) {
                Ok(Step::NeedMore) => break,
                Ok(Step::Header { header, len, message }) => {
                    scan.taken += len;
                    scan.items.push(Item::Data(header, message));
                }
                Ok(Step::Payload { len, inflated, ends_message }) => {
                    assert!(len > 0);
                    let made = inflated.map_or(0, |inflated| inflated.bytes);
                    // The end of a message may flush a little more.
                    assert!(made <= (scan.plain.len() - before) as u64 && made <= (len as u64 + 2) * MAX_RATIO);
                    scan.taken += len;
                    match scan.items.last_mut() {
                        Some(Item::Payload(before)) => before.end += len,
                        _ => scan.items.push(Item::Payload(at..at + len)),
                    }
                    scan.items.extend(ends_message.map(Item::Ends));
                }
                Ok(Step::Control { header, header_len }) => {
                    scan.taken += header_len + header.payload_bytes as usize;
                    scan.items.push(Item::Control(header, at + header_len..scan.taken));
                }
                Err(rule) => scan.error = Some(rule),
            }
            assert!(scan.taken <= end);
        }
    }
    scan
}

/// The items as a stream again.
pub fn write(items: &[Item], bytes: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    for item in items {
        match item {
            Item::Data(header, _) => written.extend(write_header(header)),
            Item::Payload(payload) => written.extend(&bytes[payload.clone()]),
            Item::Control(header, payload) => {
                written.extend(write_header(header));
                written.extend(&bytes[payload.clone()]);
            }
            Item::Ends(_) => {}
        }
    }
    written
}
