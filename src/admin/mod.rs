//! The admin listener: health, readiness and metrics for operators and their machines.
//!
//! Pingora parses and writes the HTTP; the loop that accepts is ours, and so are the bounds that `ServeHttp` has not: a
//! deadline for the head and a number of connections. A connection carries one request, which keeps both simple.
//! `origin.rs` keeps browsers' pages out.

use std::io;
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

mod origin;
mod readiness;

pub use readiness::Readiness;

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
}

/// Serves until `shutdown` is true. Draining is no reason: `/readyz` has to say so meanwhile.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, mut shutdown: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, listener.accept().await?.0))
        };
        // Both arms may lose: a place not used goes back, a connection not accepted stays in the backlog.
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = shutdown.wait_for(|down| *down) => return,
        };
        match accepted {
            Ok((place, stream)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    answer_one(stream, &state, HEAD_TIMEOUT).await;
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
async fn answer_one(stream: TcpStream, state: &AdminState, head_timeout: Duration) {
    let mut session = ServerSession::new_http1(Box::new(Stream::from(stream)));
    let (answer, has_head) = match timeout(head_timeout, session.read_request()).await {
        Ok(Ok(true)) => (answer(session.req_header(), state), true),
        Ok(Ok(false)) => return,
        Ok(Err(_)) => (Answer::problem(400, "malformed_request", "malformed request"), false),
        Err(_) => (Answer::problem(408, "head_timeout", "request head not complete in time"), false),
    };
    session.set_keepalive(None);
    let _ = timeout(ANSWER_TIMEOUT, write(session, answer, has_head)).await;
}

async fn write(mut session: ServerSession, answer: Answer, has_head: bool) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(6))?;
    head.insert_header("content-type", answer.content_type)?;
    head.insert_header("content-length", answer.body.len())?;
    head.insert_header("cache-control", "no-store")?;
    head.insert_header("x-content-type-options", "nosniff")?;
    if answer.status == 405 {
        head.insert_header("allow", "GET")?;
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
}

impl Answer {
    /// RFC 9457.
    fn problem(status: u16, kind: &str, title: &str) -> Self {
        let body = serde_json::json!({ "type": format!("urn:sluicegate:{kind}"), "title": title, "status": status });
        Self { status, content_type: "application/problem+json", body: body.to_string() }
    }
}

/// The whole table of endpoints.
fn answer(request: &RequestHeader, state: &AdminState) -> Answer {
    if origin::is_foreign(request) {
        return Answer::problem(403, "foreign_origin", "foreign Origin or Host");
    }
    let endpoint: fn(&AdminState) -> Answer = match request.uri.path() {
        "/healthz" => |_| Answer { status: 200, content_type: "text/plain", body: "ok".to_owned() },
        "/readyz" => |state| {
            let report = state.readiness.report();
            Answer {
                status: if report.is_ready() { 200 } else { 503 },
                content_type: "application/json",
                body: report.to_json(),
            }
        },
        "/metrics" => {
            |state| Answer { status: 200, content_type: "text/plain; version=0.0.4", body: state.metrics.render() }
        }
        _ => return Answer::problem(404, "not_found", "no such endpoint"),
    };
    if request.method != "GET" {
        return Answer::problem(405, "method_not_allowed", "method not allowed");
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

    async fn start() -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(AdminState { metrics: Metrics::new(), readiness: Arc::default() });
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
            Arc::new(Upstream::new(name, endpoints, Balance::LeastConnections, timeout, &admin.state.metrics))
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
        let state = AdminState { metrics: Metrics::new(), readiness: Arc::default() };
        answer_one(stream, &state, Duration::from_millis(20)).await;
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
