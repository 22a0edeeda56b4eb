//! The names of keys and channels in Redis.
//!
//! All keys of a channel carry the hash tag of its partition, so that one script may use them on a Cluster too. There are
//! 128 partitions: channels of one partition share a slot.

use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

use super::super::engine::{Channel, MessageId};

/// How many partitions there are. Every node must agree: it is part of the names.
pub const PARTITIONS: usize = 128;

/// How many slots a Cluster has.
const SLOTS: u16 = 16_384;

/// One of the [`PARTITIONS`], by its number.
pub type Partition = usize;

/// The key that says which region an engine belongs to.
pub const REGION: &str = "sg:region";

/// The same for one partition, since a Cluster's nodes have no key in common.
pub fn region_of(partition: Partition) -> String {
    format!("sg:{{p{partition}}}:region")
}

/// The partition of a channel.
pub fn partition(channel: &Channel) -> Partition {
    partition_of(channel.as_str())
}

/// The slot of a Cluster that has a partition's keys and Pub/Sub channels: CRC16 (XMODEM) of the hash tag.
pub fn slot(partition: Partition) -> u16 {
    crc16(format!("p{partition}").as_bytes()) % SLOTS
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

/// The key that has the life of what is stored in a channel's partition: it is written once, goes where the partition goes,
/// and is lost with it.
pub fn life(channel: &Channel) -> String {
    format!("sg:{{p{}}}:life", partition(channel))
}

/// The key of a channel's stream.
pub fn stream(channel: &Channel) -> String {
    key(channel, 's')
}

/// The key of the hash beside it.
pub fn log(channel: &Channel) -> String {
    key(channel, 'm')
}

/// The key of the hash with the newest values of a channel whose items have keys.
pub fn values(channel: &Channel) -> String {
    key(channel, 'v')
}

/// The key that remembers a message's id.
pub fn dedupe(channel: &Channel, message: &MessageId) -> String {
    let mut key = key(channel, 'd');
    key.push(':');
    // 128 bits: two ids of a channel that meet would be taken for one message.
    for byte in Sha1::digest(message.as_str()).iter().take(16) {
        // Writing to a string does not fail.
        let _ = write!(key, "{byte:02x}");
    }
    key
}

/// The Pub/Sub channel that a channel's entries are pushed by.
pub fn push(channel: &Channel) -> String {
    key(channel, 'c')
}

/// The Pub/Sub channel that one gateway hears its own heartbeats by, from the server that has the partition.
pub fn heartbeat(partition: Partition, node: u64) -> String {
    format!("sg:{{p{partition}}}:hb:{node:016x}")
}

/// The channel whose entries a Pub/Sub channel pushes.
pub fn pushed(name: &str) -> Option<Channel> {
    let (partition, rest) = name.strip_prefix("sg:{p")?.split_once("}:c:")?;
    let channel = Channel::new(rest).ok()?;
    (partition == partition_of(rest).to_string()).then_some(channel)
}

fn key(channel: &Channel, kind: char) -> String {
    let name = channel.as_str();
    format!("sg:{{p{}}}:{kind}:{name}", partition_of(name))
}

/// FNV-1a, 64 bits.
fn partition_of(name: &str) -> Partition {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % PARTITIONS as u64) as Partition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_lead_back_to_the_channel() {
        for (name, partition) in [("room:42", 10), ("a", 12), ("}{:c:", 0), ("sg:{p1}:c:x", 0), ("ä\n\0", 0)] {
            let channel = Channel::new(name).unwrap();
            let push = push(&channel);
            assert_eq!(pushed(&push), Some(channel.clone()), "{push:?}");
            assert!(push.starts_with(&format!("sg:{{p{}}}:c:", partition_of(name))));
            if partition > 0 {
                assert_eq!(stream(&channel), format!("sg:{{p{partition}}}:s:{name}"));
                assert_eq!(log(&channel), format!("sg:{{p{partition}}}:m:{name}"));
                assert_eq!(values(&channel), format!("sg:{{p{partition}}}:v:{name}"));
            }
        }
        let id = MessageId::new("abc").unwrap();
        let channel = Channel::new("a").unwrap();
        assert_eq!(dedupe(&channel, &id), "sg:{p12}:d:a:a9993e364706816aba3e25717850c26c");
    }

    #[test]
    fn other_names_lead_nowhere() {
        for name in ["", "sg:{p12}:c:", "sg:{p13}:c:a", "sg:{p12}:s:a", "sg:{p012}:c:a", "x", "sg:{p0}:hb:01"] {
            assert_eq!(pushed(name), None, "{name:?}");
        }
    }

    #[test]
    fn slots_are_those_of_a_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // As `CLUSTER KEYSLOT` has them.
        assert_eq!((slot(0), slot(1), slot(127)), (15_882, 11_819, 5_539));
    }

    #[test]
    fn partitions_are_even() {
        let mut counts = [0; PARTITIONS];
        for nth in 0..12_800 {
            counts[partition_of(&format!("room:{nth}"))] += 1;
        }
        assert!(counts.iter().all(|count| (40..200).contains(count)), "{counts:?}");
    }
}
