//! The clients as the measuring process has them: a process of its own program, which is asked and answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Result;
use super::histogram::Histogram;
use super::proxy::cpu_of;

/// The word by which the program knows that it is one of these processes.
pub const ARGUMENT: &str = "clients";

/// Away from where everything else on this machine connects from.
const SOURCE: &str = "127.0.1.1";

pub struct Crowd {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What was counted of a kind of clients.
pub struct Counted {
    pub frames: u64,
    pub bytes: u64,
    pub updates: u64,
    pub back: u64,
    /// In microseconds.
    pub staleness: Histogram,
}

pub struct Report {
    /// Clients whose connection is gone.
    pub gone: u64,
    /// By kind, as in [`super::clients::KINDS`].
    pub kinds: Vec<Counted>,
}

impl Crowd {
    /// Opens `count` WebSockets, which offer compression or not.
    pub fn open(gateway: SocketAddr, count: usize, compressed: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &gateway.to_string(), SOURCE, &count.to_string(), &compressed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or("its output is piped")?);
        let mut this = Self { child, commands, answers };
        this.answer("open")?;
        Ok(this)
    }

    /// The next line, behind a word that it begins with.
    fn answer(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_prefix(word) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(format!("the clients were asked for {word:?} and said {line:?}").into()),
        }
    }

    /// Asks, and returns what the answer has behind the command's first word.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.commands.as_ref().ok_or("the clients are there")?, "{command}")?;
        self.answer(command.split(' ').next().unwrap_or_default())
    }

    /// How many clients of each kind there are of which something holds.
    pub fn count(&mut self, command: &str) -> Result<Vec<usize>> {
        Ok(self.ask(command)?.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?)
    }

    /// What was counted since `begin`.
    pub fn report(&mut self) -> Result<Report> {
        let text = self.ask("report")?;
        // An empty histogram is an empty word.
        let mut words = text.split(' ');
        let gone = words.next().unwrap_or_default().parse()?;
        let mut kinds = Vec::new();
        while let Some(frames) = words.next() {
            let mut number = || words.next().unwrap_or_default().parse::<u64>();
            let (bytes, updates, back) = (number()?, number()?, number()?);
            let staleness = Histogram::of_text(words.next().unwrap_or_default())?;
            kinds.push(Counted { frames: frames.parse()?, bytes, updates, back, staleness });
        }
        Ok(Report { gone, kinds })
    }

    pub fn cpu(&self) -> Result<f64> {
        cpu_of(self.child.id())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // The end of its input is its own end, but one that still opens does not read it.
        drop(self.commands.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
