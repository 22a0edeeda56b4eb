//! From one side to the other: what was read is scanned, judged, and written on, in one pass over the bytes.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use super::Wire;
use super::closing::{DISCARD_BURST_BYTES, DISCARD_PAUSE, DISCARDED_FRAME_BYTES, MAX_DISCARDED_BYTES};
use super::core::Core;
use super::recode::FrameBuffer;
use super::side::{HELD_BYTES, READ_BYTES, Side};
use super::work::Work;
use crate::cause::Cause;
use crate::events::{self, Event};
use crate::policy::message::Progress;
use crate::ws::close::{CloseCode, parse_close};
use crate::ws::error::ProtocolError;
use crate::ws::header::{FrameHeader, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::Step;

thread_local! {
    /// Where a session's bytes are while it runs: nothing stays here when it does not.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; HELD_BYTES + READ_BYTES].into_boxed_slice(),
        frame: FrameBuffer::default(),
    });
}

struct Scratch {
    /// What was read.
    input: Box<[u8]>,
    /// What a step of it becomes where it is recoded.
    frame: FrameBuffer,
}

/// Whether neither side is inside a message, as far as it was forwarded.
pub(super) fn between_messages<A: Wire, B: Wire>(one: &Side<A>, other: &Side<B>) -> bool {
    one.scanner.at_message_boundary() && other.scanner.at_message_boundary()
}

/// Why a scan stopped before a rule was broken.
enum Stop {
    /// The rest of the input is the start of a header or of a control frame.
    NeedMore,
    /// Nothing more of this direction is forwarded.
    Ended,
    /// What came of the input so far has to be taken first, or others have to have the core first.
    Full,
}

/// What becomes of a control frame.
enum Fate {
    Forward,
    Swallow,
    Close(Option<CloseCode>),
}

/// Reads once from `from`, and writes what may pass to `to`. Returns whether there may be more to read.
pub(super) fn pump<A: Wire, B: Wire>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    now: Instant,
    cx: &mut Context<'_>,
) -> bool {
    if from.end.read_ended {
        return false;
    }
    let discard = from.end.close_received || core.originated();
    if !discard && !to.out.is_empty() {
        return false;
    }
    if core.work.poll_is_used_up() {
        return true;
    }
    match from.end.discard_after {
        Some(at) if now < at => return false,
        _ => from.end.discard_after = None,
    }
    SCRATCH.with_borrow_mut(|Scratch { input, frame }| match from.poll_read(input, now, cx) {
        Poll::Pending => false,
        Poll::Ready(Ok(Some(input))) if discard => {
            core.work.start_read();
            if input.len() >= DISCARD_BURST_BYTES {
                from.end.discard_after = Some(now + DISCARD_PAUSE);
            }
            from.end.discarded_bytes += look_for_close(from, input, &mut core.work);
            if from.end.discarded_bytes > MAX_DISCARDED_BYTES {
                from.bury();
            }
            true
        }
        Poll::Ready(Ok(Some(input))) => {
            core.work.start_read();
            forward(from, to, core, endpoint_answers, input, frame, now, cx);
            true
        }
        Poll::Ready(Ok(None)) => {
            from.end.read_ended = true;
            if !from.end.close_received {
                from.bury();
            }
            true
        }
        Poll::Ready(Err(_)) => {
            from.bury();
            true
        }
    })
}

/// Scans `input` and forwards it up to its end, or up to what must not pass.
#[allow(clippy::too_many_arguments, reason = "what a session is made of, borrowed apart")]
fn forward<A: Wire, B: Wire>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    input: &[u8],
    frame: &mut FrameBuffer,
    now: Instant,
    cx: &mut Context<'_>,
) {
    // `run..at` passed the scan and is not forwarded yet; `frame_at` is where the frame in progress begins, if here.
    let (mut run, mut at, mut frame_at) = (0, 0, None);
    let (mut saw_data, mut measured, mut ended) = (false, false, false);
    let mut between_frames = from.scanner.at_frame_boundary();
    if from.recode.is_some() {
        frame.start();
    }
    let verdict = loop {
        if between_frames && to.pings.due && core.ending.is_none() {
            core.pass_recoded(from.role, to, frame, &input[run..at], now, cx);
            to.write_ping(now, cx);
            run = at;
        }
        if between_frames
            && let Some((cause, _)) = core.ordered
            && between_messages(from, to)
        {
            core.end(cause, now);
            break Ok(Stop::Ended);
        }
        if core.work.read_is_used_up() || (from.recode.is_some() && at > 0 && !to.out.is_empty()) {
            break Ok(Stop::Full);
        }
        let step = match &from.recode {
            Some(recode) if recode.is_active() => {
                from.scanner.next_into(&input[at..], &mut |plain| frame.extend(plain))
            }
            _ => from.scanner.next(&input[at..]),
        };
        match step {
            Err(rule) => break Err(blame(from.role, rule)),
            Ok(Step::NeedMore) => break Ok(Stop::NeedMore),
            Ok(Step::Header { header, len, message }) => {
                if let Err(cause) = core.on_header(from.role, &message, now) {
                    break Err(cause);
                }
                (frame_at, saw_data) = (Some(at), true);
                let ends_message = header.fin && header.payload_bytes == 0;
                if let Some(recode) = &mut from.recode
                    && recode.on_header(&header, &message)
                {
                    if run < at {
                        core.pass_recoded(from.role, to, frame, &input[run..at], now, cx);
                    }
                    core.on_recoded(from.role, len);
                    if ends_message {
                        core.recode(from, frame, true);
                    }
                    (run, frame_at) = (at + len, None);
                }
                at += len;
                if ends_message {
                    measured |= core.on_message(from.role, &message);
                    ended = true;
                }
            }
            Ok(Step::Payload { len, inflated, ends_message }) => {
                if let Err(cause) = core.on_payload(from.role, len, inflated.as_ref(), now) {
                    break Err(cause);
                }
                if from.recode.as_ref().is_some_and(|recode| recode.is_active()) {
                    if from.role == Sender::Server {
                        frame.extend(&input[at..at + len]);
                    }
                    core.on_recoded(from.role, len);
                    if ends_message.is_some() || frame.is_full() {
                        core.recode(from, frame, ends_message.is_some());
                    }
                    if frame.ready().len() >= READ_BYTES {
                        core.pass_recoded(from.role, to, frame, &[], now, cx);
                    }
                    run = at + len;
                }
                at += len;
                saw_data = true;
                if let Some(message) = ends_message {
                    measured |= core.on_message(from.role, &message);
                    ended = true;
                }
            }
            Ok(Step::Control { header, header_len }) => {
                ended |= from.scanner.at_message_boundary();
                let end = at + header_len + header.payload_bytes as usize;
                match judge_control(from, core, endpoint_answers, &header, &input[at + header_len..end], now) {
                    Err(cause) => break Err(cause),
                    Ok(Fate::Forward) => at = end,
                    Ok(Fate::Swallow) => {
                        core.work.on_write();
                        core.pass_recoded(from.role, to, frame, &input[run..at], now, cx);
                        (run, at) = (end, end);
                    }
                    Ok(Fate::Close(code)) => {
                        at = end;
                        from.end.close_received = true;
                        to.end.close_sent = Some(code.unwrap_or(CloseCode::NO_STATUS));
                        let cause = match from.role {
                            Sender::Client => Cause::ClientClosed(code),
                            Sender::Server => Cause::UpstreamClosed(code),
                        };
                        core.end(cause, now);
                        break Ok(Stop::Ended);
                    }
                }
            }
        }
        between_frames = from.scanner.at_frame_boundary();
    };
    if verdict.is_ok() {
        core.recode(from, frame, false);
    }
    // What is in order passes, also when what follows it is not: an echo in flight is not lost. What is recoded passes
    // in whole frames.
    let recoded = from.recode.as_ref().is_some_and(|recode| recode.is_active());
    let (end, mid_frame) = match verdict {
        Ok(_) => (at, !between_frames && !recoded),
        Err(_) if between_frames || recoded => (at, false),
        // The frame in progress broke a rule: nothing of it passes, unless its beginning has.
        Err(_) => frame_at.map_or((at, true), |frame_at: usize| (frame_at, false)),
    };
    core.pass_recoded(from.role, to, frame, &input[run..end], now, cx);
    to.out_mid_frame = mid_frame;
    if measured {
        to.late_since.get_or_insert(now);
    }
    match verdict {
        Err(cause) => {
            from.end.unreadable = true;
            core.end(cause, now);
        }
        Ok(Stop::Ended) => {}
        Ok(stop) => {
            match stop {
                Stop::Full => from.put_back(&input[at..]),
                _ => from.hold(&input[at..]),
            }
            if from.role == Sender::Client {
                let begun = at < input.len();
                let unfinished = begun || !from.scanner.at_message_boundary();
                core.message.on_scanned(Progress { unfinished, moved: saw_data || begun, ended }, now);
            }
        }
    }
}

/// Decides what becomes of a whole control frame, whose `payload` is as it came.
fn judge_control<S: Wire>(
    from: &mut Side<S>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    header: &FrameHeader,
    payload: &[u8],
    now: Instant,
) -> Result<Fate, Cause> {
    core.work.on_control_frame();
    let mut plain = [0; 125];
    let plain = &mut plain[..payload.len()];
    plain.copy_from_slice(payload);
    if let Some(key) = header.mask {
        mask::apply(plain, key, 0);
    }
    let fate = match header.opcode {
        Opcode::Close => Fate::Close(parse_close(plain).map_err(|rule| blame(from.role, rule))?),
        Opcode::Pong if let Some(latest) = from.pings.matches(plain) => {
            if latest {
                on_pong(from, core, endpoint_answers, now);
            }
            return Ok(Fate::Swallow);
        }
        _ => Fate::Forward,
    };
    if from.role == Sender::Client && header.opcode != Opcode::Close {
        let verdict = core.message.on_control(now);
        core.judge(verdict)?;
    }
    core.last_active = now;
    core.direction(from.role).on_control(header.opcode);
    Ok(fate)
}

fn on_pong<S: Wire>(from: &mut Side<S>, core: &mut Core, endpoint_answers: &AtomicBool, now: Instant) {
    let Some(rtt) = from.keepalive.as_mut().and_then(|keepalive| keepalive.on_pong(now)) else { return };
    if events::debug_enabled() {
        let side = if from.role == Sender::Client { "client" } else { "upstream" };
        Event::debug("ping")
            .field("rule", core.metrics.name())
            .field("side", side)
            .field("rtt_ms", rtt.as_secs_f64() * 1e3)
            .emit();
    }
    match from.role {
        Sender::Client => {
            core.stats.ping_rtt = Some(rtt);
            core.metrics.ping_rtt_client.observe(rtt.as_secs_f64());
        }
        Sender::Server => {
            endpoint_answers.store(true, Ordering::Relaxed);
            core.metrics.ping_rtt_upstream.observe(rtt.as_secs_f64());
        }
    }
}

/// After the end was originated a side's bytes are dropped; only its Close frame still means something. Returns how much
/// was dropped, frames counted as well as bytes.
fn look_for_close<S: Wire>(from: &mut Side<S>, input: &[u8], work: &mut Work) -> usize {
    let (mut at, mut frames) = (0, 0);
    from.scanner.ignore_content();
    while !from.end.close_received && !from.end.unreadable {
        if work.read_is_used_up() {
            from.put_back(&input[at..]);
            return at + frames * DISCARDED_FRAME_BYTES;
        }
        work.on_frame();
        frames += 1;
        match from.scanner.next(&input[at..]) {
            Err(_) => from.end.unreadable = true,
            Ok(Step::NeedMore) => {
                from.hold(&input[at..]);
                return at + frames * DISCARDED_FRAME_BYTES;
            }
            Ok(Step::Header { len, .. } | Step::Payload { len, .. }) => at += len,
            Ok(Step::Control { header, header_len }) => {
                at += header_len + header.payload_bytes as usize;
                from.end.close_received = header.opcode == Opcode::Close;
            }
        }
    }
    input.len() + frames * DISCARDED_FRAME_BYTES
}

fn blame(role: Sender, rule: ProtocolError) -> Cause {
    match (role, rule) {
        (Sender::Client, ProtocolError::InvalidUtf8) => Cause::ClientInvalidUtf8,
        (Sender::Client, rule) => Cause::ClientProtocol(rule),
        (Sender::Server, ProtocolError::InvalidUtf8) => Cause::UpstreamInvalidUtf8,
        (Sender::Server, rule) => Cause::UpstreamProtocol(rule),
    }
}
