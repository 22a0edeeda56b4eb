//! What the gateway counts: one scrape, and what came of it since another.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::Result;

/// The series of a scrape, with their values.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub fn of(admin: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(admin)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").ok_or("an answer has a body")?.1;
        let series = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Ok(Self(series.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()))
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What a counter, of all its labels, has more than in an earlier scrape.
    pub fn more(&self, counter: &str, before: &Self) -> f64 {
        let total = |scrape: &Self| -> f64 {
            let of = |series: &str| series.split('{').next() == Some(counter);
            scrape.0.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
        };
        total(self) - total(before)
    }

    /// What refused requests and ended sessions since an earlier scrape, and how often.
    pub fn causes_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut causes = BTreeMap::new();
        for (series, value) in &self.0 {
            let label = match series.split_once('{') {
                Some(("sluicegate_closes_total", labels)) => label(labels, "cause"),
                Some(("sluicegate_handshakes_total", labels)) => label(labels, "result"),
                _ => None,
            };
            let more = value - before.0.get(series).copied().unwrap_or(0.0);
            if let Some(label) = label.filter(|_| more > 0.0) {
                *causes.entry(label.to_owned()).or_default() += more as u64;
            }
        }
        causes
    }
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split_once(&format!("{name}=\""))?.1.split('"').next()
}
