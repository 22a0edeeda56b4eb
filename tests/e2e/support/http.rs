//! HTTP/1 heads as they are on the wire: nothing is normalised.

/// A head of a request or an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The first line.
    pub line: String,
    /// The headers in their order and case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head and says how long it is; `None` when it is not whole.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let len = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let text: String = bytes[..len - 4].iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').expect("a header has a colon");
            (name.to_owned(), value.trim().to_owned())
        });
        Some((Self { line, headers: headers.collect() }, len))
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer has a status")
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).expect("a request has a target")
    }

    /// All values of a header, its name in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a header; `None` without it.
    pub fn one(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} comes once: {all:?}");
        all.first().copied()
    }

    /// Whether a header is there.
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The names of the headers in lower case, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names
    }

    /// How the body behind an answer's or a request's head ends.
    pub fn framing(&self) -> Framing {
        match (self.one("content-length"), self.one("transfer-encoding")) {
            (Some(len), None) => Framing::Length(len.parse().expect("a length")),
            (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
            (None, None) => Framing::Close,
            both => panic!("a body with two ends: {both:?}"),
        }
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body, decoded.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// Its body as text.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body_text()))
    }
}
