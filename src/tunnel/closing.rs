//! How a session ends: from the first cause to the moment when both connections may be dropped.
//!
//! ```text
//!   a peer's Close frame, forwarded        --> Relayed: the other direction runs on until its Close frame came too
//!   anything else (see [`Cause`])          --> Originated: nothing is forwarded any more; Close frames of ours go out
//!                                              where the table has a code and the output ends between two frames
//!   both ends finished, or `close_timeout` --> over
//! ```
//!
//! The side that acts as server closes TCP first (RFC 6455 §7.1.1): we do so to the client, and wait for the upstream.
//! A sending half is shut down before the connection is dropped, and what still arrives is read and dropped, so that
//! the kernel does not answer it with a reset that would destroy the Close frame on its way (RFC 6455 §7.1.1).

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Wire;
use super::side::Side;
use crate::cause::Cause;
use crate::ws::close::CloseCode;
use crate::ws::header::Sender;

/// The end of a session that has begun.
#[derive(Debug)]
pub(super) struct Ending {
    /// The first cause: later ones change nothing.
    pub(super) cause: Cause,
    /// Whether we end the session, and forward nothing more.
    pub(super) originated: bool,
    announced: bool,
    /// Whether a forwarded Close frame is on its way, and nothing waits before it.
    flushed: bool,
    /// When the connections are dropped whatever happens.
    pub(super) deadline: Instant,
}

/// How long output may stand before a forwarded Close frame: `slow_client` may be off, or generous. There is at most
/// one read of it, 64 KiB, which the slowest client that `slow_client` keeps by default takes in this time.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(64);

/// How much of what a side sends behind the end is read and dropped: more than was on its way when the end came, and no
/// flood. Then its connection is given up, also where its Close frame is still awaited.
pub(super) const MAX_DISCARDED_BYTES: usize = 16 << 20;

/// After a read of at least so many bytes that are dropped the next one waits for a while: who floods behind its end gets
/// 6 MB/s at most, which is enough for what is on its way from an honest peer, and takes little of a core.
pub(super) const DISCARD_BURST_BYTES: usize = 32 << 10;

/// How long it waits.
pub(super) const DISCARD_PAUSE: Duration = Duration::from_millis(10);

/// What a frame counts there besides its bytes: about as many bytes as it takes time to look at. So a flood of pings ends
/// at a megabyte.
pub(super) const DISCARDED_FRAME_BYTES: usize = 64;

impl Ending {
    pub(super) fn new(cause: Cause, close_timeout: Duration, now: Instant) -> Self {
        let originated = !matches!(cause, Cause::ClientClosed(_) | Cause::UpstreamClosed(_));
        let deadline = if originated { now + close_timeout } else { now + close_timeout + FLUSH_TIMEOUT };
        Self { cause, originated, announced: false, flushed: originated, deadline }
    }

    /// Goes on with the end. Ready when both connections may be dropped.
    pub(super) fn advance<C: Wire, U: Wire>(
        &mut self,
        client: &mut Side<C>,
        upstream: &mut Side<U>,
        close_timeout: Duration,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.originated && !self.announced {
            self.announced = true;
            let row = self.cause.row();
            match self.cause {
                Cause::ClientSilent(_) => client.bury(),
                Cause::UpstreamSilent(_) => upstream.bury(),
                Cause::DrainCut => return Poll::Ready(()),
                _ => {}
            }
            announce(client, row.to_client, row.reason, now, cx);
            announce(upstream, row.to_upstream, row.reason, now, cx);
        }
        // A forwarded Close frame may wait behind output that its peer takes slowly: that is judged as ever, and the
        // closing handshake begins when the frame is on its way.
        if !self.flushed && client.out.is_empty() && upstream.out.is_empty() {
            self.flushed = true;
            self.deadline = self.deadline.min(now + close_timeout);
        }
        // A peer that vanished inside the closing handshake: its Close frame will never come to be forwarded.
        client.end.cut |= upstream.end.dead && client.end.close_sent.is_none();
        upstream.end.cut |= client.end.dead && upstream.end.close_sent.is_none();

        let finished = [advance_side(client, cx), advance_side(upstream, cx)];
        if now >= self.deadline || finished == [true, true] { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Tells one side that the session ends, where a Close frame is possible. RFC 6455 §5.4, §5.5.1.
fn announce<S: Wire>(side: &mut Side<S>, code: Option<CloseCode>, reason: &str, now: Instant, cx: &mut Context<'_>) {
    match code {
        _ if side.end.close_sent.is_some() || side.end.dead => {}
        Some(code) if !side.out_mid_frame => side.write_close(code, reason, now, cx),
        Some(_) | None => side.end.cut = true,
    }
}

/// Goes on with the end of one side, and says whether it is over.
fn advance_side<S: Wire>(side: &mut Side<S>, cx: &mut Context<'_>) -> bool {
    let end = &side.end;
    let exchanged = end.close_sent.is_some() && (end.close_received || end.unreadable);
    let may_shut_down = match side.role {
        Sender::Client => exchanged,
        Sender::Server => exchanged && end.read_ended,
    };
    if (may_shut_down || end.cut) && !end.shut_down && !end.dead {
        if end.close_sent.is_none() {
            side.io.break_off();
        }
        match side.out.poll_shutdown(&mut side.io, cx) {
            Poll::Ready(Ok(())) => side.end.shut_down = true,
            Poll::Ready(Err(_)) => side.bury(),
            Poll::Pending => {}
        }
    }
    side.end.dead || (side.end.shut_down && side.end.read_ended)
}
