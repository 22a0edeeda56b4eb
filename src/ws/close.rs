//! Close codes and the payload of a Close frame. RFC 6455 §5.5.1 and §7.4.

use super::error::ProtocolError;

/// A WebSocket close code, as registered with IANA or not: an unknown one passes through unchanged.
///
/// # RFC
/// RFC 6455 §7.4 and the "WebSocket Close Code Number Registry".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// 1000: the purpose of the session is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: an endpoint goes away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: protocol error.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1005: no code was given. Never on the wire.
    pub const NO_STATUS: Self = Self(1005);
    /// 1006: no Close frame was seen. Never on the wire.
    pub const ABNORMAL: Self = Self(1006);
    /// 1007: data that does not fit the message's type, such as text that is not UTF-8.
    pub const INVALID_DATA: Self = Self(1007);
    /// 1008: a policy was violated.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: the message is too big.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1011: the server met a condition that it did not expect.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: service restart; the client should come back.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: try again later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// Whether an endpoint may put this code on the wire.
    ///
    /// 1004, 1005, 1006 and 1015 are reserved, 1016-2999 are not registered, and everything below 1000 or above 4999
    /// is outside the protocol.
    ///
    /// # RFC
    /// RFC 6455 §7.4.1 and §7.4.2; 1012-1014 from the IANA registry.
    pub const fn is_valid_on_wire(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// The longest reason that fits a Close frame, in bytes: 125 less the two of the code. RFC 6455 §5.5.
pub const MAX_REASON_BYTES: usize = 123;

/// Parses the unmasked payload of a Close frame: its code, or `None` when it is empty.
///
/// # Errors
/// `CloseTooShort` for a payload of one byte, `InvalidCloseCode` for a code that must not be on the wire,
/// `InvalidCloseReason` when the reason is not UTF-8.
///
/// # RFC
/// RFC 6455 §5.5.1 and §7.4.
pub fn parse_close(payload: &[u8]) -> Result<Option<CloseCode>, ProtocolError> {
    match payload {
        [] => Ok(None),
        [_] => Err(ProtocolError::CloseTooShort),
        [high, low, reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([*high, *low]));
            if !code.is_valid_on_wire() {
                return Err(ProtocolError::InvalidCloseCode(code));
            }
            if simdutf8::basic::from_utf8(reason).is_err() {
                return Err(ProtocolError::InvalidCloseReason);
            }
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_code_and_checks_the_reason() {
        assert_eq!(parse_close(b""), Ok(None));
        assert_eq!(parse_close(&[3]), Err(ProtocolError::CloseTooShort));
        assert_eq!(parse_close(b"\x03\xe8bye"), Ok(Some(CloseCode::NORMAL)));
        assert_eq!(parse_close(b"\x03\xe8\xff"), Err(ProtocolError::InvalidCloseReason));
        assert_eq!(parse_close(&4999u16.to_be_bytes()), Ok(Some(CloseCode(4999))));
    }

    #[test]
    fn refuses_the_codes_that_must_not_be_on_the_wire() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert_eq!(parse_close(&u16::to_be_bytes(code)), Err(ProtocolError::InvalidCloseCode(CloseCode(code))),);
        }
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4000] {
            assert_eq!(parse_close(&u16::to_be_bytes(code)), Ok(Some(CloseCode(code))));
        }
    }
}
