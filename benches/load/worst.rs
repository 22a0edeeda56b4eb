//! What the worst that a client can send costs, as CPU time of the proxy per byte on the wire.

use std::net::SocketAddr;

use sluicegate::ws::header::Sender;

use super::Result;
use super::compression::{deflate, json, text};
use super::proxy::Proxy;
use super::wire::{BINARY, FIN, RSV1, Socket, TEXT, frame};

/// The payload of a message that is repeated, in bytes.
const MESSAGE_BYTES: usize = 16 << 10;

/// What a client sends, again and again.
struct Load {
    name: &'static str,
    message: Vec<u8>,
    /// How many bytes of it altogether.
    wire_bytes: usize,
}

fn loads() -> Vec<Load> {
    let compressed = |payload: &[u8]| frame(FIN | RSV1 | TEXT, payload, Sender::Client);
    let filled = |piece: &[u8]| compressed(&piece.repeat(MESSAGE_BYTES / piece.len()));
    vec![
        Load { name: "plain JSON, 16 KiB", message: text(&json(MESSAGE_BYTES), false), wire_bytes: 512 << 20 },
        Load { name: "the same, compressed", message: text(&json(MESSAGE_BYTES), true), wire_bytes: 64 << 20 },
        Load {
            name: "16 MiB of zeros, compressed: 1 to 1,030",
            message: compressed(&deflate(&vec![0; 16 << 20])),
            wire_bytes: 4 << 20,
        },
        Load { name: "last blocks that are empty, `03 00`", message: filled(&[0x03, 0x00]), wire_bytes: 32 << 20 },
        Load {
            name: "dynamic Huffman blocks, the shortest",
            message: compressed(&dynamic_blocks(1)),
            wire_bytes: 32 << 20,
        },
        Load {
            name: "the same, with codes of up to 9 bits",
            message: compressed(&dynamic_blocks(9)),
            wire_bytes: 32 << 20,
        },
        Load {
            name: "the same, with codes of up to 15 bits",
            message: compressed(&dynamic_blocks(15)),
            wire_bytes: 32 << 20,
        },
        Load {
            name: "plain messages of 1 byte",
            message: frame(FIN | TEXT, b"x", Sender::Client),
            wire_bytes: 32 << 20,
        },
        Load { name: "compressed messages of 1 byte", message: compressed(&[0x00]), wire_bytes: 32 << 20 },
    ]
}

pub async fn measure(backend: SocketAddr) -> Result<()> {
    let open = "message: { max_size: off, max_ratio: off, stall_timeout: off, utf8: on }";
    let proxies = [
        Proxy::nginx("nginx", backend)?,
        Proxy::sluicegate("sluicegate, `passthrough`", backend, open)?,
        Proxy::sluicegate("sluicegate, `terminate`", backend, &format!("{open}, compression: terminate"))?,
    ];
    println!("\n## The worst that a client can send\n");
    println!(
        "CPU ns of the proxy per byte on the wire, with `max_size` and `max_ratio` off; in brackets against plain JSON.\n"
    );
    println!("| | {} |", proxies.iter().map(|proxy| proxy.name).collect::<Vec<_>>().join(" | "));
    println!("| --- | --- | --- | --- |");
    let mut plain = Vec::new();
    for load in loads() {
        eprintln!("measuring {}", load.name);
        let mut cells = Vec::new();
        for (at, proxy) in proxies.iter().enumerate() {
            let nanos = nanos_per_byte(proxy, &load).await?;
            if plain.len() == at {
                plain.push(nanos);
            }
            // nginx does not look at what it passes: only the resolution of the kernel's clock shows.
            let times = if at == 0 { String::new() } else { format!(" (×{:.0})", nanos / plain[at]) };
            cells.push(format!("{nanos:.1}{times}"));
        }
        println!("| {} | {} |", load.name, cells.join(" | "));
    }
    Ok(())
}

async fn nanos_per_byte(proxy: &Proxy, load: &Load) -> Result<f64> {
    let mut socket = Socket::open(proxy.address, "/sink", true).await?;
    let burst = load.message.repeat((MESSAGE_BYTES / load.message.len()).max(1));
    let before = proxy.cpu()?;
    let mut sent = 0;
    while sent < load.wire_bytes {
        socket.send(&burst).await?;
        sent += burst.len();
    }
    // Its echo comes when everything in front of it has passed.
    socket.send(&frame(FIN | BINARY, b"end", Sender::Client)).await?;
    socket.message().await?.ok_or("the session ended")?;
    Ok((proxy.cpu()? - before) * 1e9 / sent as f64)
}

/// Bits, the least significant first. RFC 1951 §3.1.1.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    fn push(&mut self, value: usize, len: usize) {
        for bit in 0..len {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> bit & 1) as u8) << (self.len % 8);
            }
            self.len += 1;
        }
    }

    /// A Huffman code goes the other way around.
    fn push_code(&mut self, code: usize, len: usize) {
        for bit in (0..len).rev() {
            self.push(code >> bit & 1, 1);
        }
    }
}

/// The canonical code of a symbol among symbols with these lengths, and its length. RFC 1951 §3.2.2.
fn code_of(lengths: &[usize], symbol: usize) -> (usize, usize) {
    let mut code = 0;
    for len in 1..=15 {
        for (other, _) in lengths.iter().enumerate().filter(|(_, of)| **of == len) {
            if other == symbol {
                return (code, len);
            }
            code += 1;
        }
        code <<= 1;
    }
    (0, 0)
}

/// A message of dynamic Huffman blocks that hold nothing, and whose two codes have lengths of 1, 2 and so on up to
/// `longest`: what they cost is making their tables. RFC 1951 §3.2.7.
pub fn dynamic_blocks(longest: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    while bits.bytes.len() < MESSAGE_BYTES {
        push_dynamic_block(&mut bits, longest);
    }
    // The beginning of the stored block whose rest a sender leaves out. RFC 7692 §7.2.1.
    bits.push(0, 3);
    bits.bytes
}

fn push_dynamic_block(bits: &mut Bits, longest: usize) {
    // One symbol for each length, and the last length twice: the code is complete.
    let lengths: Vec<usize> = if longest == 1 { vec![] } else { (1..=longest).collect() };
    let zeros = 256 - lengths.len();
    // Every symbol of the code length code: thirteen have four bits and six have five.
    let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let mut of_lengths = [4; 19];
    of_lengths[13..].fill(5);
    bits.push(0, 1);
    bits.push(2, 2);
    bits.push(0, 5);
    bits.push(lengths.len(), 5);
    bits.push(15, 4);
    for symbol in order {
        bits.push(of_lengths[symbol], 3);
    }
    let mut push = |symbol, extra, extra_bits| {
        let (code, len) = code_of(&of_lengths, symbol);
        bits.push_code(code, len);
        bits.push(extra, extra_bits);
    };
    for &len in &lengths {
        push(len, 0, 0);
    }
    push(18, 138 - 11, 7);
    push(18, zeros - 138 - 11, 7);
    push(longest, 0, 0);
    for &len in &lengths {
        push(len, 0, 0);
    }
    push(longest, 0, 0);
    let mut literals = lengths;
    literals.resize(256, 0);
    literals.push(longest);
    let (code, len) = code_of(&literals, 256);
    bits.push_code(code, len);
}
