//! A message of a stream, as bytes: what is published, or a probe that is only to come back.
//!
//! All of it is in the body. RabbitMQ keeps what is in headers in another encoding than it came in, and names of ours are
//! longer than its short strings.
//!
//! ```text
//! "sg1"  kind: 1 byte  stamp_ms: 8  nonce: 8  channel length: 2  channel  id length: 2  id  payload
//! ```

use bytes::{Buf as _, BufMut as _, Bytes};

use super::super::engine::{Channel, MessageId};
use super::super::position::MAX_N;

const MAGIC: &[u8; 3] = b"sg1";
const ITEM: u8 = 0;
const PROBE: u8 = 1;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// When it was published by the publisher's clock, in milliseconds since 1970, and not before anything that the
    /// publisher had seen of the stream.
    pub stamp_ms: u64,
    /// Tells it from every other message: the publisher's own choice, at random.
    pub nonce: u64,
    /// What it carries.
    pub content: Content,
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An item of a channel.
    Item {
        /// The channel.
        channel: Channel,
        /// The item's id.
        message: MessageId,
        /// The item's payload.
        payload: Bytes,
    },
    /// Nothing: that it comes back is all that it is for.
    Probe,
}

impl Envelope {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_slice(MAGIC);
        out.put_u8(if self.content == Content::Probe { PROBE } else { ITEM });
        out.put_u64(self.stamp_ms);
        out.put_u64(self.nonce);
        if let Content::Item { channel, message, payload } = &self.content {
            for name in [channel.as_str(), message.as_str()] {
                // Both are bounded far below.
                out.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
                out.put_slice(name.as_bytes());
            }
            out.put_slice(payload);
        }
        out
    }

    /// What bytes say; `None` if they are not ours. What lies beyond what any clock says is taken for no time.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < MAGIC.len() || bytes.split_to(MAGIC.len()) != MAGIC.as_slice() {
            return None;
        }
        let kind = bytes.try_get_u8().ok()?;
        let stamp_ms = Some(bytes.try_get_u64().ok()?).filter(|ms| *ms <= MAX_N).unwrap_or(0);
        let nonce = bytes.try_get_u64().ok()?;
        let content = match kind {
            PROBE => Content::Probe,
            ITEM => {
                let channel = Channel::new(&name(&mut bytes)?).ok()?;
                let message = MessageId::new(&name(&mut bytes)?).ok()?;
                Content::Item { channel, message, payload: bytes }
            }
            _ => return None,
        };
        Some(Self { stamp_ms, nonce, content })
    }
}

fn name(bytes: &mut Bytes) -> Option<String> {
    let length = usize::from(bytes.try_get_u16().ok()?);
    let name = (bytes.len() >= length).then(|| bytes.split_to(length))?;
    String::from_utf8(name.into()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(channel: &str, message: &str, payload: &[u8]) -> Envelope {
        let channel = Channel::new(channel).unwrap();
        let (message, payload) = (MessageId::new(message).unwrap(), Bytes::copy_from_slice(payload));
        Envelope { stamp_ms: 1_795_489_098_605, nonce: u64::MAX, content: Content::Item { channel, message, payload } }
    }

    #[test]
    fn what_is_not_ours_is_none() {
        let whole = item("a", "m", b"payload").encode();
        let names = whole.len() - b"payload".len();
        for length in 0..names {
            assert_eq!(Envelope::decode(Bytes::copy_from_slice(&whole[..length])), None, "{length}");
        }
        for (at, byte) in [(0, b'S'), (3, 2), (20, 0xff), (21, 0), (22, 0xff)] {
            let mut other = whole.clone();
            other[at] = byte;
            assert_eq!(Envelope::decode(other.into()), None, "{at}");
        }
        let mut future = whole;
        future[4] = 0xff;
        assert_eq!(Envelope::decode(future.into()).map(|envelope| envelope.stamp_ms), Some(0));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            channel in "\\PC{1,128}", message in "\\PC{1,64}", payload: Vec<u8>, is_probe: bool,
        ) {
            let mut envelope = item(&channel, &message, &payload);
            if is_probe {
                envelope.content = Content::Probe;
            }
            prop_assert_eq!(Envelope::decode(envelope.encode().into()), Some(envelope));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Envelope::decode([MAGIC.as_slice(), &bytes].concat().into());
        }
    }
}
