//! What a session does before it gives its core to others: counted and not timed, so that it is the same on every
//! machine and in every run.
//!
//! A unit is meant to take about a nanosecond on a core of today. The figures are estimates, in part from docs/bench.md;
//! those of control frames, reads, writes and deflating were never measured. They need only be in proportion.

use crate::ws::scan::Inflated;

/// What one poll of a session may do: so long others wait for its core.
pub(super) const POLL_UNITS: u32 = 250_000;

/// And what it may do with one read, so that both directions have their turn in each poll.
const READ_UNITS: u32 = POLL_UNITS / 2;

/// A read, and the write that follows it.
const PER_READ: u32 = 6_000;

/// A write in between.
const PER_WRITE: u32 = 4_000;

/// A frame: its header, its end, and what is counted of it.
const PER_FRAME: u32 = 70;

/// A ping or a pong, which is unmasked to be looked at, and which its receiver may have to answer.
const PER_CONTROL_FRAME: u32 = 120;

/// A byte of a compressed message on the wire.
const PER_COMPRESSED_BYTE: u32 = 8;

/// A block of a compressed message: its Huffman tables.
const PER_BLOCK: u32 = 700;

/// A byte that is deflated for a client.
const PER_DEFLATED_BYTE: u32 = 8;

/// The work of one poll so far.
#[derive(Debug, Default)]
pub(super) struct Work {
    units: u32,
    /// The read in progress stops here.
    read_until: u32,
}

impl Work {
    pub(super) fn start_poll(&mut self) {
        *self = Self::default();
    }

    pub(super) fn start_read(&mut self) {
        self.add(PER_READ);
        // One frame at least, so that it goes on.
        let end = POLL_UNITS.max(self.units.saturating_add(1));
        self.read_until = self.units.saturating_add(READ_UNITS).min(end);
    }

    /// A write in the middle of a read.
    pub(super) fn on_write(&mut self) {
        self.add(PER_WRITE);
    }

    pub(super) fn on_frame(&mut self) {
        self.add(PER_FRAME);
    }

    pub(super) fn on_control_frame(&mut self) {
        self.add(PER_CONTROL_FRAME);
    }

    /// Payload that passes as it is.
    pub(super) fn on_bytes(&mut self, len: usize) {
        self.add(u32::try_from(len / 2).unwrap_or(u32::MAX));
    }

    /// Payload that was inflated.
    pub(super) fn on_inflated(&mut self, wire_bytes: usize, inflated: &Inflated) {
        let wire = u32::try_from(wire_bytes).unwrap_or(u32::MAX);
        self.add(wire.saturating_mul(PER_COMPRESSED_BYTE).saturating_add(PER_FRAME));
        self.add(inflated.blocks.saturating_mul(PER_BLOCK));
        self.add(u32::try_from(inflated.bytes / 3).unwrap_or(u32::MAX));
    }

    pub(super) fn on_deflated(&mut self, plain_bytes: usize) {
        self.add(u32::try_from(plain_bytes).unwrap_or(u32::MAX).saturating_mul(PER_DEFLATED_BYTE));
    }

    /// Whether the rest of the read in progress has to wait for the next turn.
    pub(super) fn read_is_used_up(&self) -> bool {
        self.units >= self.read_until
    }

    /// Whether the session has to give its core to others.
    pub(super) fn poll_is_used_up(&self) -> bool {
        self.units >= POLL_UNITS
    }

    fn add(&mut self, units: u32) {
        self.units = self.units.saturating_add(units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_uses_up_half_a_poll_and_both_directions_have_one() {
        let mut work = Work::default();
        let frames_of_a_read = |work: &mut Work| {
            work.start_read();
            let mut frames = 0u32;
            while !work.read_is_used_up() {
                work.on_frame();
                frames += 1;
            }
            frames
        };
        for _ in 0..2 {
            work.start_poll();
            let (one, other) = (frames_of_a_read(&mut work), frames_of_a_read(&mut work));
            assert!(one * PER_FRAME < READ_UNITS + PER_FRAME && other * PER_FRAME + 3 * PER_READ >= READ_UNITS);
            assert!(work.poll_is_used_up());
            // It ends there to the frame.
            assert!((one + other) * PER_FRAME <= POLL_UNITS);
        }
    }

    #[test]
    fn no_number_overflows() {
        let mut work = Work::default();
        for _ in 0..3 {
            let blocks = u32::MAX;
            work.on_inflated(usize::MAX, &Inflated { bytes: u64::MAX, message_bytes: u64::MAX, blocks });
            work.on_bytes(usize::MAX);
            work.on_deflated(usize::MAX);
            work.start_read();
        }
        assert!(work.poll_is_used_up() && work.read_is_used_up());
    }
}
