//! Everything that is said of a refusal, checked in one place: the answer, the log line and the metrics.

use serde_json::{Value, json};
use sluicegate::cause::Refusal;

use super::metrics::Metrics;
use super::{Answer, Client, Gateway};

/// What was there before something is refused.
pub struct Before<'a> {
    gateway: &'a Gateway,
    metrics: Metrics,
    mark: usize,
}

impl Gateway {
    /// Notes what is there before a refusal.
    pub fn before(&self) -> Before<'_> {
        Before { gateway: self, metrics: self.metrics(), mark: self.mark() }
    }

    /// Sends bytes that are refused by the rule `app`.
    pub fn expect_refused(&self, bytes: impl AsRef<[u8]>, refusal: Refusal) -> Answer {
        self.expect_refused_by("app", bytes, refusal)
    }

    /// Sends bytes that are refused before a rule is known.
    pub fn expect_refused_unruled(&self, bytes: impl AsRef<[u8]>, refusal: Refusal) -> Answer {
        self.expect_refused_by("none", bytes, refusal)
    }

    fn expect_refused_by(&self, rule: &str, bytes: impl AsRef<[u8]>, refusal: Refusal) -> Answer {
        let before = self.before();
        let mut client = self.connect();
        client.send(bytes);
        before.expect(&mut client, rule, refusal)
    }
}

impl Before<'_> {
    /// Expects our own answer to a refusal on the client's connection, then its end, one log line and one count.
    pub fn expect(&self, client: &mut Client, rule: &str, refusal: Refusal) -> Answer {
        let answer = client.answer();
        client.expect_end();
        check_answer(&answer, refusal);
        self.expect_told(rule, refusal, refusal.row().status, &client.local_addr().ip().to_string());
        answer
    }

    /// Expects one log line and one count, of a client with this address.
    pub fn expect_told(&self, rule: &str, refusal: Refusal, status: Option<u16>, client_ip: &str) -> Value {
        self.expect_told_over("h1", rule, refusal, status, client_ip)
    }

    /// The same over `h1` or `h2`.
    pub fn expect_told_over(
        &self,
        protocol: &str,
        rule: &str,
        refusal: Refusal,
        status: Option<u16>,
        client_ip: &str,
    ) -> Value {
        let row = refusal.row();
        let line = self.gateway.wait_for_log_since(self.mark, |line| line["event"] == "refusal");
        let told = |key: &str| line[key].as_str().unwrap_or_default();
        assert_eq!((told("cause"), told("rule")), (row.name, rule), "{line}");
        assert_eq!(line["status"], json!(status), "{line}");
        assert_eq!(told("policy"), row.policy, "{line}");
        assert_eq!((told("listener"), told("protocol"), told("level")), ("public", protocol, "info"), "{line}");
        assert_eq!(told("client_ip"), client_ip, "{line}");
        assert!(line["session_id"].is_string() && line["time"].is_string(), "{line}");
        assert!(!told("path").contains('?'), "no query is logged: {line}");

        let now = self.gateway.metrics();
        let more = |name: &str, labels: &[(&str, &str)]| now.get(name, labels) - self.metrics.get(name, labels);
        let result = more("sluicegate_handshakes_total", &[("rule", rule), ("result", row.name)]);
        assert_eq!(result, 1.0, "sluicegate_handshakes_total of {rule}, {}", row.name);
        assert_eq!(more("sluicegate_handshakes_total", &[]), 1.0, "a refusal is counted once");
        let decisions = [("rule", rule), ("policy", row.policy), ("decision", "refused")];
        let decided = if row.status.is_some() { 1.0 } else { 0.0 };
        assert_eq!(more("sluicegate_policy_decisions_total", &decisions), decided, "{decisions:?}");
        let lines = self.gateway.lines();
        let refusals = lines.iter().skip(self.mark).filter(|line| line["event"] == "refusal").count();
        assert_eq!(refusals, 1, "one line of a refusal");
        line
    }
}

/// The answer of the contract: RFC 9457 with a fixed text, and the headers that go with its status.
pub fn check_answer(answer: &Answer, refusal: Refusal) {
    let row = refusal.row();
    let status = row.status.expect("an answer of ours");
    let Answer { head, .. } = answer;
    assert_eq!(answer.status(), status, "{head:?}");
    assert!(head.line.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
    assert_eq!(head.one("content-type"), Some("application/problem+json"));
    let problem = json!({ "type": format!("urn:sluicegate:{}", row.name), "title": row.title, "status": status });
    assert_eq!(answer.json(), problem);
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    assert_eq!(head.one("connection"), Some(connection));
    assert_eq!(head.one("upgrade"), (status == 426).then_some("websocket"));
    assert_eq!(head.one("sec-websocket-version"), (refusal == Refusal::UnsupportedVersion).then_some("13"), "{head:?}");
    let retry_after = head.one("retry-after").map(|seconds| seconds.parse::<u64>().expect("whole seconds"));
    assert_eq!(retry_after.is_some(), matches!(status, 429 | 503), "{head:?}");
    assert!(retry_after.is_none_or(|seconds| (1..=60).contains(&seconds)), "{head:?}");
    let own = ["connection", "content-length", "content-type"];
    // Date is there where Pingora writes the head.
    let known = ["allow", "date", "retry-after", "sec-websocket-version", "upgrade"];
    for name in head.names() {
        assert!(own.contains(&name.as_str()) || known.contains(&name.as_str()), "{name} is not ours to send: {head:?}");
    }
}
