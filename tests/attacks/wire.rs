//! One end of a connection that plays a script on a raw socket, and keeps what the other end sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::bytes::{self, find};

/// How long a script waits for what must come. Generous: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long a write may take before its peer counts as one that takes no more.
const WRITE_TIMEOUT: Duration = Duration::from_millis(700);

/// How much of what came is kept, in bytes; all of it is counted. More than the largest head of a case.
const KEPT_BYTES: usize = 3 << 19;

/// The receive buffer of a client that is going to stop reading, in bytes.
const SMALL_BUFFER_BYTES: usize = 16 << 10;

/// What one end does.
pub type Script = Vec<Step>;

/// Makes what is to be sent from all that came.
pub type Answering = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// One thing that one end does. A step that cannot be done, since the other end is gone, is passed over.
#[derive(Clone)]
pub enum Step {
    /// Sends these bytes at once.
    Send(Vec<u8>),
    /// Sends these bytes so many times, until the other end takes no more.
    Flood(Vec<u8>, usize),
    /// Sends these bytes one at a time, with a pause behind each.
    Drip(Vec<u8>, Duration),
    /// Sends what is made of all that came.
    Reply(Answering),
    /// Sends the end of the stream, and goes on reading.
    Finish,
    /// Waits for the next head.
    Head,
    /// Waits until these bytes came.
    Until(Vec<u8>),
    /// Answers frames to the end of the connection: data with itself, a ping with a pong, a Close frame with itself.
    Echo,
    /// Takes no more from its socket, until [`Wire::read_again`].
    StopReading,
    /// Waits so long, or until the connection ends.
    Hold(Duration),
}

/// Lets time pass: the pace of an attack, or between two looks.
#[expect(clippy::disallowed_methods, reason = "no runtime: each end is a thread, and slowness is the attack")]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// An end of a connection. Dropped, it is closed.
pub struct Wire {
    stream: TcpStream,
    talk: Arc<Talk>,
}

struct Talk {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Clone, Debug)]
struct State {
    heard: Heard,
    reading: bool,
    closed: bool,
    played: bool,
}

/// What one end was sent.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Its beginning. Shared, since it is looked at far more often than it grows.
    pub bytes: Arc<Vec<u8>>,
    /// How many bytes it was.
    pub total: u64,
    /// Whether the connection ended.
    pub ended: bool,
}

impl Wire {
    /// Connects.
    pub fn connect(to: SocketAddr, script: &[Step]) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        if script.iter().any(|step| matches!(step, Step::StopReading)) {
            socket.set_recv_buffer_size(SMALL_BUFFER_BYTES).expect("an open socket");
        }
        socket.connect_timeout(&to.into(), DEADLINE).expect("it takes connections");
        Self::over(socket.into())
    }

    /// Takes a connection over.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an open socket");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("an open socket");
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).expect("an open socket");
        let state = State { heard: Heard::default(), reading: true, closed: false, played: false };
        let talk = Arc::new(Talk { state: Mutex::new(state), more: Condvar::new() });
        let reader = stream.try_clone().expect("a descriptor");
        thread::spawn({
            let talk = talk.clone();
            move || talk.read(reader)
        });
        Self { stream, talk }
    }

    /// What came so far.
    pub fn heard(&self) -> Heard {
        self.talk.state.lock().heard.clone()
    }

    /// How much came so far, and whether the end did.
    pub fn progress(&self) -> (u64, bool) {
        let state = self.talk.state.lock();
        (state.heard.total, state.heard.ended)
    }

    /// Whether its script is over.
    pub fn played(&self) -> bool {
        self.talk.state.lock().played
    }

    /// Takes from its socket again, if it had stopped.
    pub fn read_again(&self) {
        self.talk.state.lock().reading = true;
        self.talk.more.notify_all();
    }

    /// Closes it.
    pub fn close(&self) {
        self.talk.state.lock().closed = true;
        self.talk.more.notify_all();
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The first head that comes.
    pub fn first_head(&self) -> Option<bytes::Head> {
        self.wait(DEADLINE, |heard| find(heard, b"\r\n\r\n"));
        bytes::Head::parse(&self.heard().bytes)
    }

    /// Plays a script.
    pub fn play(&self, script: &[Step]) {
        let mut at = 0;
        for step in script {
            match step {
                Step::Send(bytes) => drop(self.send(bytes)),
                Step::Flood(bytes, times) => self.flood(bytes, *times),
                Step::Drip(bytes, every) => self.drip(bytes, *every),
                Step::Reply(make) => drop(self.send(&make(&self.heard().bytes))),
                // It may be closed already.
                Step::Finish => drop(self.stream.shutdown(Shutdown::Write)),
                Step::Head => at += self.wait(DEADLINE, |heard| find(&heard[at..], b"\r\n\r\n").map(|found| found + 4)),
                Step::Until(what) => {
                    self.wait(DEADLINE, |heard| find(&heard[at..], what));
                }
                Step::Echo => self.echo(at),
                Step::StopReading => self.talk.state.lock().reading = false,
                Step::Hold(within) => {
                    self.wait(*within, |_| None);
                }
            }
        }
        self.talk.state.lock().played = true;
    }

    fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    fn flood(&self, bytes: &[u8], times: usize) {
        let at_once = (32 << 10) / bytes.len() + 1;
        let block = bytes.repeat(at_once.min(times));
        for _ in 0..times.div_ceil(at_once) {
            if self.progress().1 || self.send(&block).is_err() {
                return;
            }
        }
    }

    fn drip(&self, bytes: &[u8], every: Duration) {
        for byte in bytes {
            if self.progress().1 || self.send(&[*byte]).is_err() {
                return;
            }
            if !every.is_zero() {
                self.wait(every, |_| None);
            }
        }
    }

    fn echo(&self, mut at: usize) {
        loop {
            let mut frame = None;
            self.wait(DEADLINE, |heard| {
                frame = bytes::Frame::parse(&heard[at..]);
                frame.as_ref().map(|_| 0)
            });
            let Some((frame, len)) = frame else { return };
            at += len;
            let first = if frame.first == bytes::PING { bytes::PONG } else { frame.first };
            if frame.first != bytes::PONG && self.send(&bytes::from_backend(first, &frame.payload)).is_err() {
                return;
            }
        }
    }

    /// Waits until `find` finds something in what came, the connection ends, or the time is over. 0 without a find.
    fn wait(&self, within: Duration, mut find: impl FnMut(&[u8]) -> Option<usize>) -> usize {
        let deadline = Instant::now() + within;
        let mut state = self.talk.state.lock();
        loop {
            if let Some(found) = find(&state.heard.bytes) {
                return found;
            }
            if state.heard.ended || state.closed || self.talk.more.wait_until(&mut state, deadline).timed_out() {
                return 0;
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.close();
    }
}

impl Talk {
    fn read(&self, mut stream: TcpStream) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let mut state = self.state.lock();
            while !state.reading && !state.closed {
                self.more.wait(&mut state);
            }
            if state.closed {
                break;
            }
            drop(state);
            let read = stream.read(&mut buffer);
            let mut state = self.state.lock();
            match read {
                Ok(len @ 1..) => {
                    let room = KEPT_BYTES.saturating_sub(state.heard.bytes.len());
                    Arc::make_mut(&mut state.heard.bytes).extend_from_slice(&buffer[..len.min(room)]);
                    state.heard.total += len as u64;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Ok(_) | Err(_) => break,
            }
            self.more.notify_all();
        }
        self.state.lock().heard.ended = true;
        self.more.notify_all();
    }
}
