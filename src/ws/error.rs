//! The rules of RFC 6455 and RFC 7692 that a peer can break, one variant each, in the order of their sections.

use super::close::CloseCode;

/// A rule of the WebSocket protocol that a peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// RFC 6455 §5.1: a client's frame must be masked.
    #[error("client frame is not masked")]
    Unmasked,
    /// RFC 6455 §5.1: a server's frame must not be masked.
    #[error("server frame is masked")]
    Masked,
    /// RFC 6455 §5.2: a reserved bit that no negotiated extension defines is set.
    #[error("reserved bit is set without an extension that defines it")]
    ReservedBit,
    /// RFC 6455 §5.2: opcodes 3-7 and 11-15 are reserved.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// RFC 6455 §5.2: the shortest length form must be used.
    #[error("payload length is not in its shortest form")]
    NonMinimalLength,
    /// RFC 6455 §5.2: the most significant bit of a 64-bit length must be 0.
    #[error("most significant bit of the payload length is set")]
    LengthTooLarge,
    /// RFC 6455 §5.4: a continuation frame outside a fragmented message.
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// RFC 6455 §5.4: a new message before the fragmented one has ended.
    #[error("new message inside a fragmented message")]
    InterleavedMessage,
    /// RFC 6455 §5.5: a control frame carries at most 125 bytes.
    #[error("control frame of more than 125 bytes")]
    ControlTooLong,
    /// RFC 6455 §5.5: a control frame must not be fragmented.
    #[error("fragmented control frame")]
    FragmentedControl,
    /// RFC 6455 §5.5.1: a Close payload is empty or begins with a two-byte code.
    #[error("close payload of one byte")]
    CloseTooShort,
    /// RFC 6455 §7.4: the close code must not be on the wire.
    #[error("close code {} must not be on the wire", .0.0)]
    InvalidCloseCode(CloseCode),
    /// RFC 6455 §5.5.1: the reason of a Close frame is UTF-8.
    #[error("close reason is not UTF-8")]
    InvalidCloseReason,
    /// RFC 6455 §8.1: text is UTF-8.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// RFC 7692 §7.2.2: a compressed message is a deflate stream that refers to nothing before its start.
    #[error("compressed message is not a deflate stream of its own")]
    InvalidDeflate,
}
