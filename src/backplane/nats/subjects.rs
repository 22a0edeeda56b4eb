//! The names of the stream, of subjects and of messages in NATS.
//!
//! ```text
//! sluicegate.s.c.CHANNEL   what is published to a channel, stored in the stream
//! sluicegate.p.c.CHANNEL   what was stored of it, as the stream republishes it
//! sluicegate.s.h.NODE      heartbeats of a gateway, of which the newest is stored
//! sluicegate.p.h.NODE      the same, republished
//! ```

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::super::engine::{Channel, MessageId};

/// The stream.
pub const STREAM: &str = "SLUICEGATE";

/// What it stores.
pub const STORED: &str = "sluicegate.s.>";

/// What it republishes that as.
pub const PUSHED: &str = "sluicegate.p.>";

/// Where a channel is published to.
pub fn stored(channel: &Channel) -> String {
    format!("sluicegate.s.c.{}", token(channel))
}

/// Where what was stored of a channel is heard.
pub fn pushed(channel: &Channel) -> String {
    format!("sluicegate.p.c.{}", token(channel))
}

/// Where a node publishes its heartbeats.
pub fn beat(node: u64) -> String {
    format!("sluicegate.s.h.{node:016x}")
}

/// Where it hears them.
pub fn beat_pushed(node: u64) -> String {
    format!("sluicegate.p.h.{node:016x}")
}

/// What the server knows a message by: a digest of channel and id, since ids may have any characters and are told apart
/// within their channel alone. 24 bytes of SHA-256, so that no two are the same by chance or by design.
pub fn message(channel: &Channel, id: &MessageId) -> String {
    // A length in front, so that no two pairs are one text.
    let length = u64::try_from(channel.as_str().len()).unwrap_or(u64::MAX).to_be_bytes();
    let digest = Sha256::new().chain_update(length).chain_update(channel.as_str()).chain_update(id.as_str()).finalize();
    URL_SAFE_NO_PAD.encode(digest.get(..24).unwrap_or_default())
}

/// A channel's name as one token of a subject: letters, digits and some marks as they are, `=` and two hexadecimal digits
/// for every other byte. The longest name has 1,536 bytes so, of the 4,096 that a server takes in a line.
fn token(channel: &Channel) -> String {
    let mut token = String::with_capacity(channel.as_str().len());
    for byte in channel.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_:/@+,~".contains(&byte) {
            token.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(token, "={byte:02X}");
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn channel(name: &str) -> Channel {
        Channel::new(name).unwrap()
    }

    #[test]
    fn every_name_is_one_token_and_no_two_are_the_same() {
        let names =
            ["room:42", "room.42", "room=2E42", "room 42", "*", ">", "a>", "=", "é", "комната", "\0", "A", "a", "$JS"];
        let subjects: BTreeSet<_> = names.iter().map(|name| stored(&channel(name))).collect();
        assert_eq!(subjects.len(), names.len());
        for subject in &subjects {
            let token = subject.strip_prefix("sluicegate.s.c.").unwrap();
            let allowed = |byte: u8| byte.is_ascii_graphic() && !b".*>$".contains(&byte);
            assert!(!token.is_empty() && token.bytes().all(allowed), "{token}");
        }
        assert_eq!(stored(&channel("room:42")), "sluicegate.s.c.room:42");
        assert_eq!(pushed(&channel("a.b")), "sluicegate.p.c.a=2Eb");
        assert_eq!(stored(&channel(&"é".repeat(256))).len(), 15 + 1536);
    }

    #[test]
    fn a_message_is_known_by_its_channel_and_its_id() {
        let id = |text: &str| MessageId::new(text).unwrap();
        let one = message(&channel("ab"), &id("c"));
        assert_eq!(one, message(&channel("ab"), &id("c")));
        assert_ne!(one, message(&channel("a"), &id("bc")));
        assert_eq!(one.len(), 32);
    }
}
