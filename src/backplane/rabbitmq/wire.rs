//! What the broker says, as this project's values.

use lapin::ErrorKind;
use lapin::message::Delivery;
use lapin::types::AMQPValue;

use super::super::engine::EngineError;

/// The most characters of a code.
const MAX_CODE: usize = 32;

/// An answer that is not one.
pub const fn malformed(what: &'static str) -> EngineError {
    EngineError::Malformed { what }
}

/// Why something failed.
pub fn error(error: &lapin::Error) -> EngineError {
    match error.kind() {
        ErrorKind::ProtocolError(said) => refused(said.get_message().as_str()),
        ErrorKind::MissingHeartbeatError => EngineError::TimedOut,
        ErrorKind::IOError(error) if error.kind() == std::io::ErrorKind::TimedOut => EngineError::TimedOut,
        ErrorKind::ParsingError(_) => malformed("a frame"),
        _ => EngineError::Unreachable,
    }
}

/// A refusal by what the broker says, such as `NOT_FOUND - no queue 'x' in vhost '/'`.
fn refused(text: &str) -> EngineError {
    let is_code = |letter: &char| letter.is_ascii_uppercase() || *letter == '_';
    let code: String = text.chars().take_while(is_code).take(MAX_CODE).collect();
    EngineError::Refused { code: if code.is_empty() { "REFUSED".to_owned() } else { code } }
}

/// Whether it says that there is no such queue. One that is there and cannot be reached has the same code.
pub fn is_absent(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(said) if says_absent(said.get_message().as_str()))
}

fn says_absent(text: &str) -> bool {
    text.starts_with("NOT_FOUND - no queue ")
}

/// Where in its stream a message is; `None` if it came from a queue that is no stream.
pub fn offset(delivery: &Delivery) -> Option<u64> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get("x-stream-offset")? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_brokers_code() {
        let code = |text: &str| match refused(text) {
            EngineError::Refused { code } => code,
            other => panic!("{other}"),
        };
        assert_eq!(code("NOT_FOUND - no queue 'x' in vhost '/'"), "NOT_FOUND");
        assert_eq!(code("something else"), "REFUSED");
        assert_eq!(code(&"A".repeat(100)), "A".repeat(32));
        assert!(says_absent("NOT_FOUND - no queue 'x' in vhost '/'"));
        let down = "NOT_FOUND - home node 'a@b' of durable queue 'x' in vhost '/' is down or inaccessible";
        assert_eq!((code(down).as_str(), says_absent(down)), ("NOT_FOUND", false));
    }
}
