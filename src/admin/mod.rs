//! The admin listener: health, readiness and metrics for machines, and control for operators; and the listener of
//! probes, which has the first three alone.
//!
//! Pingora parses and writes the HTTP; the loop that accepts is ours, and so are the bounds that `ServeHttp` has not: a
//! deadline for the head and a number of connections. A connection carries one request, which keeps both simple.
//! `origin.rs` keeps browsers' pages out.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::metrics::Metrics;

mod operator;
mod origin;
mod readiness;

pub use operator::Operator;
pub use readiness::{EngineDown, Readiness};

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;

/// From accept to the end of the head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From the end of the head to the end of the connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a body that nobody asked for is read: closing before it is read would reset the connection and with it,
/// perhaps, our answer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause after a failed accept, which is for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the endpoints answer from.
#[derive(Debug)]
pub struct AdminState {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For everything else. `None` on the listener of probes: it is read only, and open under any Host.
    pub operator: Option<Operator>,
}

/// Serves until `shutdown` is true. Draining is no reason: `/readyz` has to say so meanwhile.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, mut shutdown: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, listener.accept().await?))
        };
        // Both arms may lose: a place not used goes back, a connection not accepted stays in the backlog.
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = shutdown.wait_for(|down| *down) => return,
        };
        match accepted {
            Ok((place, (stream, peer))) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    answer_one(stream, Some(peer.ip()), &state, HEAD_TIMEOUT).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("admin listener cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Reads one request, answers it and closes the connection. A peer that breaks off is nobody's concern.
async fn answer_one(stream: TcpStream, peer: Option<IpAddr>, state: &AdminState, head_timeout: Duration) {
    let mut session = ServerSession::new_http1(Box::new(Stream::from(stream)));
    let (answer, has_head) = match timeout(head_timeout, session.read_request()).await {
        Ok(Ok(true)) => (answer(session.req_header(), peer, state), true),
        Ok(Ok(false)) => return,
        Ok(Err(_)) => (Answer::problem(400, "malformed_request", "malformed request"), false),
        Err(_) => (Answer::problem(408, "head_timeout", "request head not complete in time"), false),
    };
    session.set_keepalive(None);
    let drains = answer.drains;
    let _ = timeout(ANSWER_TIMEOUT, write(session, answer, has_head)).await;
    // Behind the answer: an idle process is gone at once.
    if let Some(operator) = state.operator.as_ref().filter(|_| drains) {
        operator.drain.send_replace(true);
    }
}

async fn write(mut session: ServerSession, answer: Answer, has_head: bool) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(6))?;
    head.insert_header("content-type", answer.content_type)?;
    head.insert_header("content-length", answer.body.len())?;
    head.insert_header("cache-control", "no-store")?;
    head.insert_header("x-content-type-options", "nosniff")?;
    if let Some((name, value)) = answer.header {
        head.insert_header(name, value)?;
    }
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(Bytes::from(answer.body), true).await?;
    // Pingora panics when it is asked for the body of a request without a head.
    if has_head {
        // Whether the body ends well or the time is over, there is nothing to say about it any more.
        let _ = timeout(DRAIN_TIMEOUT, session.drain_request_body()).await;
    }
    session.finish().await?;
    Ok(())
}

struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    /// What goes with it besides.
    header: Option<(&'static str, &'static str)>,
    /// Whether the process is to drain when it is written.
    drains: bool,
}

impl Answer {
    fn new(status: u16, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body, header: None, drains: false }
    }

    /// RFC 9457.
    fn problem(status: u16, kind: &str, title: &str) -> Self {
        let body = serde_json::json!({ "type": format!("urn:sluicegate:{kind}"), "title": title, "status": status });
        Self::new(status, "application/problem+json", body.to_string())
    }

    fn not_found() -> Self {
        Self::problem(404, "not_found", "no such endpoint")
    }

    fn method_not_allowed(allow: &'static str) -> Self {
        Self { header: Some(("allow", allow)), ..Self::problem(405, "method_not_allowed", "method not allowed") }
    }
}

/// The table of what is open to all, before that of operators.
fn answer(request: &RequestHeader, peer: Option<IpAddr>, state: &AdminState) -> Answer {
    if state.operator.is_some() && origin::is_foreign(request) {
        return Answer::problem(403, "foreign_origin", "foreign Origin or Host");
    }
    let endpoint: fn(&AdminState) -> Answer = match request.uri.path() {
        "/healthz" => |_| Answer::new(200, "text/plain", "ok".to_owned()),
        "/readyz" => |state| {
            let report = state.readiness.report();
            Answer::new(if report.is_ready() { 200 } else { 503 }, "application/json", report.to_json())
        },
        "/metrics" => |state| Answer::new(200, "text/plain; version=0.0.4", state.metrics.render()),
        _ => return state.operator.as_ref().map_or_else(Answer::not_found, |operator| operator.answer(request, peer)),
    };
    if request.method != "GET" {
        return Answer::method_not_allowed("GET");
    }
    endpoint(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::upstreams::{Balance, Upstream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Admin {
        address: std::net::SocketAddr,
        state: Arc<AdminState>,
        shutdown: watch::Sender<bool>,
        serving: tokio::task::JoinHandle<()>,
    }

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    async fn start() -> Admin {
        start_with(Some(operator(None))).await
    }

    fn operator(token: Option<&str>) -> Operator {
        Operator {
            token: token.map(|token| crate::policy::token::Token::new(token).unwrap()),
            sessions: crate::tunnel::registry::Registry::new(),
            config: "version: 1\n".to_owned(),
            drain: watch::Sender::new(false),
        }
    }

    async fn start_with(operator: Option<Operator>) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(AdminState { metrics: Metrics::new(), readiness: Arc::default(), operator });
        let (shutdown, watch) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, Arc::clone(&state), watch));
        Admin { address, state, shutdown, serving }
    }

    impl Admin {
        /// The whole answer to these bytes.
        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let reading = stream.read_to_string(&mut answer);
            timeout(Duration::from_secs(5), reading).await.expect("the connection is closed").unwrap();
            answer
        }

        async fn get(&self, path: &str) -> String {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)).await
        }

        /// With these lines.
        async fn ask(&self, method: &str, path: &str, lines: &str) -> String {
            self.send(&format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{lines}\r\n", self.address)).await
        }

        fn is_draining(&self) -> bool {
            *self.state.operator.as_ref().unwrap().drain.borrow()
        }

        /// The order comes behind its answer.
        async fn wait_for_drain(&self) {
            let mut order = self.state.operator.as_ref().unwrap().drain.subscribe();
            timeout(Duration::from_secs(5), order.wait_for(|ordered| *ordered)).await.expect("the order").unwrap();
        }

        /// With this Host and these lines.
        async fn get_from(&self, host: &str, lines: &str) -> String {
            self.send(&format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")).await
        }
    }

    fn is(answer: &str, status: u16) -> bool {
        answer.starts_with(&format!("HTTP/1.1 {status} "))
    }

    fn body(answer: &str) -> serde_json::Value {
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    #[tokio::test]
    async fn says_that_it_works() {
        let admin = start().await;
        let answer = admin.get("/healthz").await;
        assert!(is(&answer, 200) && answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn shows_the_metrics() {
        let admin = start().await;
        admin.state.metrics.rule("chat").accepted.inc();
        let answer = admin.get("/metrics").await;
        assert!(is(&answer, 200), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains(r#"{result="accepted",rule="chat"} 1"#), "{answer}");
    }

    #[tokio::test]
    async fn is_ready_between_start_and_drain() {
        let admin = start().await;
        let answer = admin.get("/readyz").await;
        assert!(is(&answer, 503) && body(&answer)["status"] == "unready", "{answer}");
        admin.state.readiness.set_started();
        let answer = admin.get("/readyz").await;
        let ready = serde_json::json!({ "status": "ready", "degraded": [], "reasons": [] });
        assert!(is(&answer, 200) && body(&answer) == ready, "{answer}");
        admin.state.readiness.set_draining();
        let answer = admin.get("/readyz").await;
        assert!(is(&answer, 503) && body(&answer)["reasons"][0] == "draining", "{answer}");
    }

    #[tokio::test]
    async fn is_degraded_without_one_upstream_and_unready_without_any() {
        let admin = start().await;
        admin.state.readiness.set_started();
        let upstream = |name, endpoint: &str| {
            let timeout = Duration::from_secs(5);
            let endpoints = vec![endpoint.to_owned()];
            Arc::new(Upstream::new(name, endpoints, Balance::LeastConnections, timeout, None, &admin.state.metrics))
        };
        // A name with a label of more than 63 bytes does not resolve.
        let broken = upstream("broken", &format!("{}:9", "x".repeat(64)));
        broken.connect(&crate::edge::upstreams::Preference::None).await.unwrap_err();
        let sound = upstream("sound", "127.0.0.1:9");
        admin.state.readiness.set_upstreams(vec![Arc::clone(&broken), sound]);
        let answer = admin.get("/readyz").await;
        assert!(is(&answer, 200), "{answer}");
        assert_eq!(body(&answer)["status"], "degraded");
        assert_eq!(body(&answer)["degraded"], serde_json::json!(["upstream:broken"]));
        admin.state.readiness.set_upstreams(vec![broken]);
        let answer = admin.get("/readyz").await;
        assert!(is(&answer, 503) && body(&answer)["status"] == "unready", "{answer}");
    }

    #[tokio::test]
    async fn is_degraded_and_still_ready_while_an_engine_is_down() {
        let admin = start().await;
        admin.state.readiness.set_started();
        let down = |is_fatal| Some(EngineDown { why: "the engine is not reachable".to_owned(), is_fatal });
        admin.state.readiness.set_engine("eu", down(true));
        let answer = admin.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        admin.state.readiness.set_engine("eu", down(false));
        let answer = admin.get("/readyz").await;
        assert!(is(&answer, 200), "{answer}");
        let reason = "the backplane's engine of region eu is down: the engine is not reachable";
        let wanted = serde_json::json!({ "status": "degraded", "degraded": ["region:eu"], "reasons": [reason] });
        assert_eq!(body(&answer), wanted);
        admin.state.readiness.set_engine("eu", None);
        admin.state.readiness.set_engine_lacks("eu", vec!["newest values"]);
        let answer = body(&admin.get("/readyz").await);
        assert_eq!(answer["status"], "ready");
        assert_eq!(answer["engines"], serde_json::json!({ "eu": { "lacks": ["newest values"] } }));
    }

    #[tokio::test]
    async fn answers_other_paths_with_404_and_other_methods_with_405() {
        let admin = start().await;
        let answer = admin.get("/nothing").await;
        assert!(is(&answer, 404) && answer.contains("content-type: application/problem+json"), "{answer}");
        let host = admin.address;
        for method in ["POST", "DELETE", "HEAD", "OPTIONS"] {
            let request = format!("{method} /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi");
            let answer = admin.send(&request).await;
            assert!(is(&answer, 405) && answer.contains("allow: GET"), "{method}: {answer}");
        }
    }

    #[tokio::test]
    async fn refuses_foreign_hosts_and_origins() {
        let admin = start().await;
        let own = admin.address.to_string();
        assert!(is(&admin.get_from(&own, &format!("Origin: http://{own}\r\n")).await, 200));
        assert!(is(&admin.get_from("rebound.example", "").await, 403));
        let answer = admin.get_from(&own, "Origin: http://rebound.example\r\n").await;
        assert!(is(&answer, 403) && body(&answer)["title"] == "foreign Origin or Host", "{answer}");
    }

    /// What is for operators: method, path and the status with all that is needed.
    const OPERATORS: [(&str, &str, u16); 5] = [
        ("GET", "/sessions", 200),
        ("GET", "/config", 200),
        ("DELETE", "/sessions/0000000000000000", 404),
        ("DELETE", "/sessions/0000000000000000?code=1004", 400),
        ("POST", "/drain", 202),
    ];

    #[tokio::test]
    async fn operators_need_the_token_where_there_is_one() {
        let admin = start_with(Some(operator(Some(TOKEN)))).await;
        let wrong = [
            String::new(),
            format!("Authorization: Bearer {}\r\n", TOKEN.replace('0', "1")),
            format!("Authorization: Basic {TOKEN}\r\n"),
            format!("Authorization: {TOKEN}\r\n"),
            "Authorization: Bearer\r\n".to_owned(),
            format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
        ];
        for (method, path, status) in OPERATORS {
            for lines in &wrong {
                let answer = admin.ask(method, path, lines).await;
                assert!(is(&answer, 401) && answer.contains("www-authenticate: Bearer\r\n"), "{lines}: {answer}");
                assert_eq!(body(&answer)["type"], "urn:sluicegate:unauthorized");
            }
            assert!(!admin.is_draining());
            let answer = admin.ask(method, path, &format!("Authorization: bearer {TOKEN}\r\n")).await;
            assert!(is(&answer, status), "{method} {path}: {answer}");
        }
        admin.wait_for_drain().await;
        // What machines read stays open.
        for path in ["/healthz", "/metrics"] {
            assert!(is(&admin.get(path).await, 200), "{path}");
        }
    }

    #[tokio::test]
    async fn without_a_token_no_page_may_do_what_an_operator_may() {
        let admin = start().await;
        let own = format!("Origin: http://{}\r\n", admin.address);
        for (method, path, status) in OPERATORS {
            for lines in [
                "Origin: http://page.example\r\n",
                "Origin: null\r\n",
                "Origin: http://127.0.0.1:1\r\n",
                "Sec-Fetch-Site: cross-site\r\n",
            ] {
                let answer = admin.ask(method, path, lines).await;
                assert!(is(&answer, 403), "{method} {path} {lines}: {answer}");
            }
            let request = format!("{method} {path} HTTP/1.1\r\nHost: rebound.example\r\n\r\n");
            assert!(is(&admin.send(&request).await, 403), "{method} {path}");
            assert!(!admin.is_draining());
            for lines in ["", own.as_str()] {
                let answer = admin.ask(method, path, lines).await;
                assert!(is(&answer, status), "{method} {path}: {answer}");
            }
        }
        admin.wait_for_drain().await;
    }

    #[tokio::test]
    async fn operators_endpoints_take_one_method_each() {
        let admin = start().await;
        for (method, path, allow) in [
            ("POST", "/sessions", "GET"),
            ("GET", "/sessions/0000000000000000", "DELETE"),
            ("GET", "/drain", "POST"),
            ("DELETE", "/config", "GET"),
        ] {
            let answer = admin.ask(method, path, "").await;
            assert!(is(&answer, 405) && answer.contains(&format!("allow: {allow}\r\n")), "{method} {path}: {answer}");
        }
        assert!(!admin.is_draining());
    }

    #[tokio::test]
    async fn shows_the_configuration_and_no_sessions() {
        let admin = start().await;
        let answer = admin.get("/config").await;
        assert!(answer.contains("content-type: application/yaml\r\n") && answer.ends_with("\r\n\r\nversion: 1\n"));
        let answer = admin.get("/sessions?rule=chat&limit=1000").await;
        assert_eq!(body(&answer), serde_json::json!({ "sessions": [], "total": 0 }), "{answer}");
        for query in ["limit=0", "limit=1001", "limit=x", "limit=1&limit=1", "page=2"] {
            assert!(is(&admin.get(&format!("/sessions?{query}")).await, 400), "{query}");
        }
    }

    #[tokio::test]
    async fn a_listener_of_probes_is_read_only_and_open_under_any_host() {
        let admin = start_with(None).await;
        admin.state.readiness.set_started();
        for path in ["/healthz", "/readyz", "/metrics"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: sluicegate.monitoring.svc:9902\r\n\r\n");
            assert!(is(&admin.send(&request).await, 200), "{path}");
        }
        for (method, path, _) in OPERATORS {
            for lines in [String::new(), format!("Authorization: Bearer {TOKEN}\r\n")] {
                let answer = admin.ask(method, path, &lines).await;
                assert!(is(&answer, 404), "{method} {path}: {answer}");
            }
        }
    }

    #[tokio::test]
    async fn answers_what_is_no_http_and_goes_on() {
        let admin = start().await;
        let answer = admin.send("\x16\x03\x01 hello\r\n\r\n").await;
        assert!(is(&answer, 400), "{answer}");
        assert!(is(&admin.get("/healthz").await, 200));
    }

    #[tokio::test]
    async fn gives_up_on_a_head_that_does_not_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET /healthz HT").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let state = AdminState { metrics: Metrics::new(), readiness: Arc::default(), operator: None };
        answer_one(stream, None, &state, Duration::from_millis(20)).await;
        let mut answer = String::new();
        timeout(Duration::from_secs(5), client.read_to_string(&mut answer)).await.expect("it is closed").unwrap();
        assert!(is(&answer, 408), "{answer}");
    }

    #[tokio::test]
    async fn serves_so_many_connections_at_once_and_no_more() {
        let admin = start().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(admin.address).await.unwrap();
            stream.write_all(b"GET /healthz HT").await.unwrap();
            silent.push(stream);
        }
        let mut last = TcpStream::connect(admin.address).await.unwrap();
        last.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", admin.address).as_bytes()).await.unwrap();
        // Its request is there and nothing answers while all places are taken. A place that comes free is its own.
        let mut answer = [0; 12];
        let early = timeout(Duration::from_millis(200), last.read_exact(&mut answer)).await;
        assert!(early.is_err(), "no place was free");
        drop(silent.pop());
        timeout(Duration::from_secs(5), last.read_exact(&mut answer)).await.expect("a place is free").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }

    #[tokio::test]
    async fn stops_at_shutdown() {
        let admin = start().await;
        admin.shutdown.send(true).unwrap();
        timeout(Duration::from_secs(5), admin.serving).await.expect("it stops").unwrap();
    }
}
