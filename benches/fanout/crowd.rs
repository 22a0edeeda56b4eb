//! The subscribers as the measuring process has them: processes of its own program, which say what has come.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::Result;
use super::histogram::Histogram;

/// The word by which the program knows that it is one of these processes.
pub const ARGUMENT: &str = "subscribers";

/// A process has this many at most, so that few are woken for a publication: who writes to them pays for that.
const EACH: usize = 15_000;

/// How long all of them may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of the processes that wait; who says more waits.
const LINES: usize = 4096;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub struct Crowd {
    processes: Vec<Process>,
    lines: Receiver<String>,
    pub count: usize,
    phase: u64,
    /// How many processes have said of a publication that all of theirs have it.
    came: BTreeMap<u64, usize>,
}

struct Process {
    child: Child,
    commands: Option<ChildStdin>,
}

/// What was counted in a phase.
#[derive(Debug, Default)]
pub struct Counted {
    pub received: u64,
    pub disordered: u64,
    pub gone: u64,
    pub latency: Histogram,
}

impl Crowd {
    /// Opens `count` WebSockets.
    pub fn open(gateway: SocketAddr, count: usize) -> Result<Self> {
        let (send, lines) = sync_channel(LINES);
        let mut this = Self { processes: Vec::new(), lines, count, phase: 0, came: BTreeMap::new() };
        let mut left = count;
        while left > 0 {
            let of_this = left.div_ceil(left.div_ceil(EACH));
            left -= of_this;
            let source = Ipv4Addr::new(127, 0, 1, 1 + this.processes.len() as u8);
            let mut child = Command::new(std::env::current_exe()?)
                .args([ARGUMENT, &gateway.to_string(), &source.to_string(), &of_this.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let output = BufReader::new(child.stdout.take().ok_or("its output is piped")?);
            let send = send.clone();
            std::thread::spawn(move || {
                for line in output.lines().map_while(std::result::Result::ok) {
                    // Nobody listens when the measuring is over.
                    let _ = send.send(line);
                }
            });
            let commands = child.stdin.take();
            this.processes.push(Process { child, commands });
        }
        this.answers("open", OPEN_TIMEOUT)?;
        Ok(this)
    }

    /// Waits until each process has said something that begins with a word, and returns what follows it.
    fn answers(&mut self, word: &str, timeout: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + timeout;
        let mut found = Vec::new();
        while found.len() < self.processes.len() {
            for process in &mut self.processes {
                if let Some(status) = process.child.try_wait()? {
                    return Err(format!("a process of subscribers has ended with {status}").into());
                }
            }
            if Instant::now() > deadline {
                return Err(format!("the subscribers do not say {word:?}").into());
            }
            match self.lines.recv_timeout(Duration::from_secs(1)) {
                Ok(line) => found.extend(line.strip_prefix(word).map(|rest| rest.trim().to_owned())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("the subscribers are gone".into()),
            }
        }
        Ok(found)
    }

    fn command(&mut self, command: &str) -> Result<()> {
        for process in &mut self.processes {
            if let Some(commands) = &mut process.commands {
                writeln!(commands, "{command}")?;
            }
        }
        Ok(())
    }

    /// Begins a phase, and returns its number. What comes of an earlier one is not counted.
    pub fn begin(&mut self) -> Result<u64> {
        self.phase += 1;
        self.came.clear();
        self.command(&format!("phase {}", self.phase))?;
        self.answers("phase", ANSWER_TIMEOUT)?;
        Ok(self.phase)
    }

    /// Waits for the next publication of this phase that has come to everyone.
    pub fn came_to_all(&mut self, timeout: Duration) -> Result<Option<u64>> {
        let deadline = Instant::now() + timeout;
        loop {
            let line = match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err("the subscribers are gone".into()),
            };
            let Some((phase, sequence)) = line.strip_prefix("all ").and_then(|all| all.split_once(' ')) else {
                continue;
            };
            if phase.parse::<u64>()? != self.phase {
                continue;
            }
            let sequence = sequence.parse()?;
            let came = self.came.entry(sequence).or_default();
            *came += 1;
            if *came == self.processes.len() {
                self.came.remove(&sequence);
                return Ok(Some(sequence));
            }
        }
    }

    /// What was counted in this phase.
    pub fn counted(&mut self) -> Result<Counted> {
        self.command("report")?;
        let mut all = Counted::default();
        for report in self.answers("report", ANSWER_TIMEOUT)? {
            let mut words = report.split(' ');
            let mut number = || words.next().unwrap_or_default().parse::<u64>();
            all.received += number()?;
            all.disordered += number()?;
            all.gone += number()?;
            all.latency.add(&Histogram::of_text(words.next().unwrap_or_default())?);
        }
        Ok(all)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // The end of its input is its own end.
            drop(process.commands.take());
        }
        for process in &mut self.processes {
            // One that is still opening does not read its input.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}
