//! Differences that more than one oracle shows.

use sluicegate::ws::close::CloseCode;
use sluicegate::ws::error::ProtocolError;

use crate::frames::{Declared, frames, open_message};
use crate::reading::{Breach, Case, End, ORACLE_MAX_BYTES};

/// RFC 6455 §5.2: "the minimal number of bytes MUST be used to encode the length". An oracle takes each form and reads
/// on, so nothing behind that frame can be compared.
pub fn takes_a_longer_length(case: &Case) -> bool {
    case.breaks(ProtocolError::NonMinimalLength)
        && case.theirs.items.starts_with(&case.ours.items)
        && Declared::read(case.last_frame()).is_some_and(|frame| !frame.is_minimal())
}

/// As [`takes_a_longer_length`], in a control frame, where the scanner refuses any longer form as too long before it
/// sees the length.
pub fn takes_a_longer_length_in_control(case: &Case) -> bool {
    case.breaks(ProtocolError::ControlTooLong)
        && case.theirs.items.starts_with(&case.ours.items)
        && Declared::read(case.last_frame()).is_some_and(|frame| frame.payload_bytes <= 125 && !frame.is_minimal())
}

/// A proxy must not forward what it will have to refuse, so the scanner refuses at the first byte that breaks a rule; an
/// oracle looks at a frame when its header or all of it is there.
pub fn waits_for_the_rest_of_a_frame(case: &Case) -> bool {
    matches!(case.ours.end, End::Refused(Breach::Ours(_)))
        && case.theirs.end == End::Open
        && case.theirs.items == case.ours.items
        && Declared::read(case.last_frame()).is_none_or(|frame| !frame.is_whole(case.last_frame()))
}

/// The text that the scanner refuses in the last frame is really none. An oracle that looks at whole messages answers
/// the control frames behind it, and may meet a Close frame, another breach or the end of the stream first.
///
/// `loses` says of a delivered item that the oracle loses the message with it.
pub fn checks_text_at_its_end(case: &Case, loses: fn(&crate::reading::Item) -> bool) -> bool {
    if !case.breaks(ProtocolError::InvalidUtf8) {
        return false;
    }
    let Some(behind) = case.theirs.items.strip_prefix(&case.ours.items[..]) else { return false };
    // Up to where the message is lost, nothing but control frames is delivered.
    let known = behind.iter().position(loses).unwrap_or(behind.len());
    behind[..known].iter().all(|item| item.is_control()) && breaks_text(case)
}

/// Whether the text up to the end of the last frame cannot be the beginning of any, or ends inside of a character.
fn breaks_text(case: &Case) -> bool {
    let open = open_message(case.stream, case.last_frame_at);
    let Some(last) = frames(case.stream).into_iter().find(|frame| frame.at == case.last_frame_at) else { return false };
    let opcode = if last.opcode == 0 { open.opcode } else { last.opcode };
    let text = [open.payload, last.payload].concat();
    let ends = last.fin && last.is_whole;
    opcode == 1 && std::str::from_utf8(&text).is_err_and(|error| ends || error.error_len().is_some())
}

/// RFC 6455 §7.4.1 and §7.4.2. A gateway refuses the code rather than pass it on; an oracle reports 1002 as if the peer
/// had sent that.
pub fn turns_the_code_into_1002(case: &Case) -> bool {
    matches!(case.ours.end, End::Refused(Breach::Ours(ProtocolError::InvalidCloseCode(_))))
        && case.theirs.end == End::Closed(Some(CloseCode::PROTOCOL_ERROR))
        && case.theirs.items == case.ours.items
}

/// IANA registered 1014 (bad gateway) in 2016; an oracle's table ends before it.
pub fn does_not_know_1014(case: &Case) -> bool {
    case.ours.end == End::Closed(Some(CloseCode(1014)))
        && case.theirs.end == End::Closed(Some(CloseCode::PROTOCOL_ERROR))
        && case.theirs.items == case.ours.items
}

/// The limit that this test sets, of a frame. The scanner reads the frame as it comes, and the policy of message sizes
/// refuses it from its header.
pub fn has_a_limit_of_a_frame(case: &Case) -> bool {
    is_stopped_by_a_limit(case, 0)
}

/// The limit that this test sets, of a message.
pub fn has_a_limit_of_a_message(case: &Case) -> bool {
    is_stopped_by_a_limit(case, open_message(case.stream, case.last_frame_at).payload.len() as u64)
}

fn is_stopped_by_a_limit(case: &Case, before_bytes: u64) -> bool {
    case.ours.end == End::Open
        && case.theirs.end == End::Refused(Breach::Capacity)
        && case.theirs.items == case.ours.items
        && Declared::read(case.last_frame())
            .is_some_and(|frame| frame.payload_bytes.saturating_add(before_bytes) > ORACLE_MAX_BYTES as u64)
}
