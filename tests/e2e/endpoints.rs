//! Endpoints that fail, each in its own way and for real: what their clients get, what the others feel of it (nothing),
//! what log and metrics say, and that they come back.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use sluicegate::cause::Refusal;

use crate::support::backend::Connection;
use crate::support::gateway::binary;
use crate::support::node::NodeBackend;
use crate::support::{Backend, Client, Config, DEADLINE, Gateway, Refusing, switching, upgrade};

/// How a handshake or request ends.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Sound,
    Hanging,
    Garbage,
    BreakingOff,
}

/// A backend that goes wrong when a test says so; sessions that it has go on.
struct Fickle {
    backend: Backend,
    mode: Arc<AtomicU8>,
}

impl Fickle {
    fn start() -> Self {
        let mode = Arc::new(AtomicU8::new(Mode::Sound as u8));
        let backend = Backend::start({
            let mode = mode.clone();
            move |connection| {
                while let Some(request) = connection.request() {
                    let mode = mode.load(Ordering::Relaxed);
                    if mode == Mode::Hanging as u8 {
                        return connection.linger();
                    } else if mode == Mode::Garbage as u8 {
                        connection.io.try_send("SSH-2.0-OpenSSH_9.6\r\n\r\n");
                        return connection.linger();
                    } else if mode == Mode::BreakingOff as u8 {
                        return;
                    } else if request.head.has("upgrade") {
                        connection.io.send(switching(""));
                        return connection.echo();
                    }
                    // Over a connection that is used again, the next request could be tried twice.
                    connection.io.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                }
            }
        });
        Self { backend, mode }
    }

    fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n")
}

fn healthy(gateway: &Gateway, endpoint: SocketAddr) -> f64 {
    gateway.metric("sluicegate_upstream_healthy", &[("upstream", "app"), ("endpoint", &endpoint.to_string())])
}

fn wait_for_health(gateway: &Gateway, endpoint: SocketAddr, value: f64) {
    let labels = [("upstream", "app"), ("endpoint", &*endpoint.to_string())];
    gateway.wait_for_metric("sluicegate_upstream_healthy", &labels, value);
}

fn connections(gateway: &Gateway, endpoint: SocketAddr) -> f64 {
    gateway.metric("sluicegate_upstream_connections", &[("upstream", "app"), ("endpoint", &endpoint.to_string())])
}

fn wait_for_connections(gateway: &Gateway, endpoint: SocketAddr, value: f64) {
    let labels = [("upstream", "app"), ("endpoint", &*endpoint.to_string())];
    gateway.wait_for_metric("sluicegate_upstream_connections", &labels, value);
}

/// Opens a session, which goes to the endpoint with the fewest: the one that is expected.
fn session_at(gateway: &Gateway, endpoint: SocketAddr) -> Client {
    let before = connections(gateway, endpoint);
    let mut session = gateway.session();
    session.expect_echo("hello");
    assert_eq!(connections(gateway, endpoint), before + 1.0, "it is at {endpoint}");
    session
}

#[test]
fn least_connections_spreads_sessions() {
    let backends = [Backend::echoing(), Backend::echoing(), Backend::echoing()];
    let [a, b, c] = backends.each_ref().map(|backend| backend.address);
    let gateway = Gateway::start(&Config::to(a).and(b).and(c).rule("handshake: { per_ip: off }"));
    let mut sessions: Vec<_> = (0..9).map(|_| gateway.session()).collect();
    for endpoint in [a, b, c] {
        assert_eq!(connections(&gateway, endpoint), 3.0);
    }
    // Those that are left by two of them fill up first, however long the others live.
    sessions.drain(..3).for_each(Client::close);
    gateway.wait_for_metric("sluicegate_upstream_connections", &[], 6.0);
    sessions.extend((0..6).map(|_| gateway.session()));
    for endpoint in [a, b, c] {
        assert_eq!(connections(&gateway, endpoint), 4.0);
    }
}

#[test]
fn a_killed_endpoint_takes_its_own_sessions_with_it_and_comes_back_when_it_is_restarted() {
    let (killed, other) = (NodeBackend::start(), NodeBackend::start());
    let (a, b) = (killed.address, other.address);
    let gateway = Gateway::start(&Config::to(a).and(b));
    let mut lost = session_at(&gateway, a);
    let mut kept = session_at(&gateway, b);
    // SIGKILL.
    drop(killed);
    assert_eq!(lost.frame().close_code(), Some(1012));
    drop(lost);
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!((line["cause"].as_str(), line["endpoint"].as_str()), (Some("upstream_gone"), Some(&*a.to_string())));
    assert_eq!(healthy(&gateway, a), 1.0, "nobody has tried to connect");

    // Its turn would be next: the handshake is served all the same, by the other.
    let mut moved = session_at(&gateway, b);
    assert_eq!(healthy(&gateway, a), 0.0);
    let warned = format!("endpoint {a} of upstream app cannot be connected to");
    gateway.wait_for_warning(0, &warned);
    assert_eq!(gateway.admin_get("/readyz").json()["status"], "ready", "the upstream has another endpoint");
    for _ in 0..3 {
        assert_eq!(gateway.ask(&get("/plain")).status(), 200);
    }

    let mark = gateway.mark();
    let restarted = NodeBackend::start_at(a.port());
    // No client is needed for it.
    gateway.wait_for_warning(mark, &format!("endpoint {a} of upstream app can be connected to again"));
    wait_for_health(&gateway, a, 1.0);
    let mut back = session_at(&gateway, a);
    for session in [&mut kept, &mut moved, &mut back] {
        session.expect_echo("still here");
    }
    assert_eq!(gateway.metric("sluicegate_closes_total", &[]), 1.0, "no other session ended");
    let warnings =
        gateway.lines().into_iter().filter(|line| line["message"].as_str().is_some_and(|m| m.contains(&warned)));
    assert_eq!(warnings.count(), 1, "it is said once");
    drop((restarted, other));
}

#[test]
fn without_any_endpoint_handshakes_get_502_and_the_process_is_unready_until_one_is_back() {
    let backend = NodeBackend::start();
    let address = backend.address;
    let gateway = Gateway::start(&Config::to(address));
    gateway.session().close();
    drop(backend);
    gateway.expect_refused(upgrade("/", ""), Refusal::UpstreamUnreachable);
    assert_eq!(healthy(&gateway, address), 0.0);
    let ready = gateway.admin_get("/readyz");
    assert_eq!((ready.status(), &ready.json()["status"]), (503, &"unready".into()));
    let _restarted = NodeBackend::start_at(address.port());
    wait_for_health(&gateway, address, 1.0);
    assert_eq!(gateway.admin_get("/readyz").status(), 200);
    gateway.session().close();
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_within_the_handshake() {
    let (refusing, sound) = (Refusing::bind(), Backend::echoing());
    let gateway = Gateway::start(&Config::to(refusing.address()).and(sound.address));
    let mut sessions: Vec<_> = (0..4).map(|_| gateway.session()).collect();
    sessions.iter_mut().for_each(|session| session.expect_echo("hello"));
    assert_eq!((healthy(&gateway, refusing.address()), healthy(&gateway, sound.address)), (0.0, 1.0));
    assert_eq!((connections(&gateway, refusing.address()), connections(&gateway, sound.address)), (0.0, 4.0));
    gateway.wait_for_warning(0, &format!("endpoint {} of upstream app cannot be connected to", refusing.address()));
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &[("result", "accepted")]), 4.0);
}

/// Three handshakes that bring no answer, and what follows: the endpoint is passed over for 10 s and then gets its
/// turn again, while the sessions that it has, and the other endpoint with its own, go on.
fn is_passed_over(mode: Mode, refusal: Refusal) {
    let (fickle, sound) = (Fickle::start(), Backend::echoing());
    let (bad, good) = (fickle.backend.address, sound.address);
    let gateway = Gateway::start(&Config::to(bad).and(good).rule("handshake: { upstream_timeout: 500ms }"));
    let mut own = session_at(&gateway, bad);
    let mut others = [session_at(&gateway, good), {
        // One more at the sound endpoint, so that the other has the fewest.
        let third = session_at(&gateway, bad);
        let fourth = session_at(&gateway, good);
        third.close();
        wait_for_connections(&gateway, bad, 1.0);
        fourth
    }];

    fickle.set(mode);
    for nth in 1..=3 {
        assert_eq!(healthy(&gateway, bad), 1.0, "not before three in a row");
        let answer = gateway.expect_refused(upgrade("/", ""), refusal);
        assert_eq!(Some(answer.status()), refusal.row().status, "{nth}");
        wait_for_connections(&gateway, bad, 1.0);
    }
    let ejected = Instant::now();
    assert_eq!((healthy(&gateway, bad), healthy(&gateway, good)), (0.0, 1.0));
    gateway.wait_for_warning(0, &format!("endpoint {bad} of upstream app is passed over for 10s"));
    assert_eq!(gateway.admin_get("/readyz").json()["status"], "ready");
    let asked = fickle.backend.requests().len();
    let mut moved = session_at(&gateway, good);
    let mut moved_too = session_at(&gateway, good);
    assert_eq!(gateway.ask(&get("/")).status(), 200);
    assert_eq!(fickle.backend.requests().len(), asked, "it gets nothing meanwhile");

    gateway.wait_for_warning(0, &format!("endpoint {bad} of upstream app gets its turn again"));
    assert!(ejected.elapsed() > Duration::from_secs(9), "{:?}", ejected.elapsed());
    assert_eq!(healthy(&gateway, bad), 1.0);
    fickle.set(Mode::Sound);
    let mut back = session_at(&gateway, bad);
    for session in [&mut own, &mut moved, &mut moved_too, &mut back].into_iter().chain(&mut others) {
        session.expect_echo("still here");
    }
    assert_eq!(gateway.metric("sluicegate_closes_total", &[("cause", "upstream_gone")]), 0.0);
}

#[test]
fn an_endpoint_that_hangs_in_the_handshake_is_passed_over_after_three() {
    is_passed_over(Mode::Hanging, Refusal::UpstreamTimeout);
}

#[test]
fn an_endpoint_that_answers_garbage_is_passed_over_after_three() {
    is_passed_over(Mode::Garbage, Refusal::UpstreamMalformed);
}

#[test]
fn an_endpoint_that_breaks_off_before_its_answer_is_passed_over_after_three() {
    is_passed_over(Mode::BreakingOff, Refusal::UpstreamUnreachable);
}

#[test]
fn plain_requests_without_an_answer_count_and_any_answer_counts_against_them() {
    for (mode, refusal) in
        [(Mode::BreakingOff, Refusal::UpstreamUnreachable), (Mode::Garbage, Refusal::UpstreamMalformed)]
    {
        let (fickle, sound) = (Fickle::start(), Backend::echoing());
        let (bad, good) = (fickle.backend.address, sound.address);
        let gateway = Gateway::start(&Config::to(bad).and(good));
        // The session keeps the sound one from getting the requests.
        let first = session_at(&gateway, bad);
        let mut kept = session_at(&gateway, good);
        first.close();
        wait_for_connections(&gateway, bad, 0.0);
        let refused = || {
            fickle.set(mode);
            gateway.expect_refused(get("/"), refusal);
            wait_for_connections(&gateway, bad, 0.0);
        };
        refused();
        refused();
        // Whatever it says, it is an answer.
        fickle.set(Mode::Sound);
        assert_eq!(gateway.ask(&get("/")).status(), 200);
        wait_for_connections(&gateway, bad, 0.0);
        refused();
        refused();
        assert_eq!(healthy(&gateway, bad), 1.0, "not three in a row");
        refused();
        assert_eq!(healthy(&gateway, bad), 0.0);
        gateway.wait_for_warning(0, &format!("endpoint {bad} of upstream app is passed over for 10s"));
        assert_eq!(gateway.ask(&get("/")).status(), 200);
        kept.expect_echo("still here");
    }
}

#[test]
fn plain_requests_that_are_not_answered_in_time_count() {
    let (fickle, sound) = (Fickle::start(), Backend::echoing());
    let (bad, good) = (fickle.backend.address, sound.address);
    let gateway = Gateway::start(&Config::to(bad).and(good).rule("http: { response_timeout: 500ms }"));
    let first = session_at(&gateway, bad);
    let _kept = session_at(&gateway, good);
    first.close();
    wait_for_connections(&gateway, bad, 0.0);
    fickle.set(Mode::Hanging);
    for _ in 0..3 {
        assert_eq!(healthy(&gateway, bad), 1.0);
        gateway.expect_refused(get("/"), Refusal::UpstreamTimeout);
        wait_for_connections(&gateway, bad, 0.0);
    }
    assert_eq!(healthy(&gateway, bad), 0.0);
    assert_eq!(gateway.ask(&get("/")).status(), 200);
}

#[test]
fn clients_that_go_away_say_nothing_of_an_endpoint() {
    let (fickle, sound) = (Fickle::start(), Backend::echoing());
    let (slow, good) = (fickle.backend.address, sound.address);
    let gateway = Gateway::start(&Config::to(slow).and(good));
    let first = session_at(&gateway, slow);
    let _kept = session_at(&gateway, good);
    first.close();
    wait_for_connections(&gateway, slow, 0.0);
    fickle.set(Mode::Hanging);
    for (nth, request) in (2..).zip([get("/"), upgrade("/", "")].iter().cycle().take(8)) {
        let mut client = gateway.connect();
        client.send(request);
        fickle.backend.wait_for_request(nth);
        drop(client);
        wait_for_connections(&gateway, slow, 0.0);
    }
    assert_eq!(healthy(&gateway, slow), 1.0);
    gateway.wait_for_metric("sluicegate_handshakes_total", &[("result", "client_gone")], 8.0);
}

/// A command whose process has a hosts file of its own; `None` where the kernel gives nobody such a view.
fn with_hosts(hosts: &Path, command: &Command) -> Option<Command> {
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    let view = || {
        let mut view = Command::new("unshare");
        view.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]).arg(hosts);
        view
    };
    let tried = view().arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success()).then(|| {
        let mut view = view();
        view.arg(command.get_program());
        view
    })
}

#[test]
fn a_name_that_changes_its_address_moves_what_is_new_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = folder.path().join("hosts");
    let point_to = |address: &str| {
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{address} app.backend.test\n")).expect("it is written");
    };
    point_to("127.0.0.2");
    // A machine that cannot show this fails here: src/edge/upstreams/endpoint.rs tests the look-ups alone.
    let command = with_hosts(&hosts, &binary()).expect("unshare can give a process a hosts file of its own");
    let old = TcpListener::bind("127.0.0.2:0").expect("every address of 127.0.0.0/8 is local");
    let port = old.local_addr().expect("it listens").port();
    let new = TcpListener::bind(("127.0.0.3", port)).expect("nobody else uses this address");
    let (old, new) = (Backend::over(old, Connection::serve), Backend::over(new, Connection::serve));

    let config = Config::to(format!("app.backend.test:{port}")).rule("handshake: { per_ip: off }");
    let gateway = Gateway::start_by(command, &config);
    let mut kept = gateway.session();
    kept.expect_echo("hello");
    assert_eq!((old.connections(), new.connections()), (1, 0));
    point_to("127.0.0.3");
    // Names are looked up again after 10 s.
    let deadline = Instant::now() + DEADLINE;
    while new.connections() == 0 {
        assert!(Instant::now() < deadline, "the name is looked up again");
        gateway.session().close();
    }
    let before = old.connections();
    for _ in 0..5 {
        gateway.session().close();
    }
    assert_eq!(old.connections(), before, "nothing new goes to the old address");
    kept.expect_echo("still here");
    assert_eq!(gateway.metric("sluicegate_upstream_healthy", &[]), 1.0);
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &[("result", "upstream_unreachable")]), 0.0);
}
