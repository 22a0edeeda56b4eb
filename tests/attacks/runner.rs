//! Plays each case on all three ways, and says what came of it.
//!
//! A case counts only when it does harm without a proxy: that is asserted for each try. What nginx does is noted. Through
//! the gateway it must do no harm, and end in one of the ways that the case names.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::bytes::{HONEST, find};
use crate::case::{Case, Course, Outcome, Seen, Settings, Try, frames_behind_head, outcome};
use crate::cases;
use crate::routes::{Gateway, Nginx, Route};
use crate::wire::{Heard, Script, Wire, pause};

/// How long a harm may take that must come, and an outcome.
const DEADLINE: Duration = Duration::from_secs(10);

/// For how long nothing must happen until nothing counts as all that happens, in a test and for the page.
const QUIET: [Duration; 2] = [Duration::from_millis(120), Duration::from_millis(500)];

/// How often it is looked.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The most by which the gateway's memory may grow in a case, in bytes, over all its tries, and for each connection that
/// attackers have at once.
const MAX_GROWTH_BYTES: u64 = 16 << 20;
const MAX_GROWTH_PER_CONNECTION_BYTES: u64 = 32 << 10;

/// How many tries of a case one gateway gets in a test.
const TRIES_AT_ONCE: usize = 10;

/// What a way did about a case.
pub struct Verdict {
    /// In how many tries there was harm.
    pub harmed: usize,
    /// How many tries there were.
    pub tries: usize,
    /// How those without harm ended.
    pub outcomes: BTreeSet<Outcome>,
}

/// What all three ways did about a case.
pub struct Verdicts {
    /// Without a proxy.
    pub direct: Verdict,
    /// nginx.
    pub nginx: Verdict,
    /// The gateway.
    pub gateway: Verdict,
    /// By how much the gateway's memory grew, in bytes.
    pub grown_bytes: u64,
}

impl Verdict {
    fn and(mut self, other: Self) -> Self {
        self.outcomes.extend(other.outcomes);
        Self { harmed: self.harmed + other.harmed, tries: self.tries + other.tries, outcomes: self.outcomes }
    }
}

impl Verdicts {
    /// Of two parts of a case.
    fn and(self, other: Self) -> Self {
        Self {
            direct: self.direct.and(other.direct),
            nginx: self.nginx.and(other.nginx),
            gateway: self.gateway.and(other.gateway),
            grown_bytes: self.grown_bytes.max(other.grown_bytes),
        }
    }
}

/// Plays a case, and fails where it must not be as it is. In a test on all three ways at once and with the tries in
/// parts, since most of it is waiting; for the page one after the other, so that nothing disturbs what is noted.
pub fn play(case: &Case) -> Verdicts {
    if cases::at_full_length() {
        let (direct, nginx) = (direct(case, &case.tries), through_nginx(case, &case.tries));
        let (gateway, grown_bytes) = through_gateway(case, &case.tries);
        return Verdicts { direct, nginx, gateway, grown_bytes };
    }
    let parts = thread::scope(|scope| {
        let parts: Vec<_> =
            case.tries.chunks(TRIES_AT_ONCE).map(|tries| scope.spawn(|| play_part(case, tries))).collect();
        parts.into_iter().map(joined).collect::<Vec<_>>()
    });
    parts.into_iter().reduce(Verdicts::and).expect("a case has a try")
}

fn play_part(case: &Case, tries: &[Try]) -> Verdicts {
    thread::scope(|scope| {
        let direct = scope.spawn(|| direct(case, tries));
        let nginx = scope.spawn(|| through_nginx(case, tries));
        let (gateway, grown_bytes) = through_gateway(case, tries);
        Verdicts { direct: joined(direct), nginx: joined(nginx), gateway, grown_bytes }
    })
}

/// What a thread made. Its panic goes on here.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|why| resume_unwind(why))
}

fn direct(case: &Case, tries: &[Try]) -> Verdict {
    let backend = Backend::start();
    let route = Route::Direct(backend.address);
    on(case, tries, &backend, &route, |one, harmed, _| {
        assert!(harmed, "{}: {}: does no harm without a proxy, so it shows nothing", case.name, one.what);
    })
}

fn through_nginx(case: &Case, tries: &[Try]) -> Verdict {
    let backend = Backend::start();
    let route = Route::Nginx(Nginx::start(backend.address, &case.settings));
    on(case, tries, &backend, &route, |_, _, _| {})
}

/// The verdict, and by how many bytes the gateway grew.
fn through_gateway(case: &Case, tries: &[Try]) -> (Verdict, u64) {
    let backend = Backend::start();
    let route = Route::Gateway(Gateway::start(backend.address, &case.settings));
    let mut wrong = Vec::new();
    let verdict = on(case, tries, &backend, &route, |one, harmed, seen| {
        let open = case.open.iter().any(|(what, _)| *what == one.what);
        if harmed != open {
            wrong.push(format!("{}: {}", if open { "no harm any more" } else { "harm" }, told(one, seen)));
        } else if !harmed && !as_said(case, seen) {
            wrong.push(format!("ended in another way: {}", told(one, seen)));
        }
        if !one.bystander.is_empty() && find(&seen.bystander.bytes, HONEST).is_none() {
            wrong.push(format!("{}: somebody else was not served: {:?}", one.what, start(&seen.bystander.bytes)));
        }
    });
    assert!(wrong.is_empty(), "{}: {} of {} tries\n{}", case.name, wrong.len(), verdict.tries, wrong.join("\n"));
    let Route::Gateway(process) = &route else { unreachable!("it was made above") };
    let grown_bytes = process.grown_bytes();
    let at_once = tries.iter().map(|one| one.clients.len()).max().unwrap_or(0) as u64;
    let most_bytes = MAX_GROWTH_BYTES + at_once * MAX_GROWTH_PER_CONNECTION_BYTES;
    assert!(grown_bytes <= most_bytes, "{}: the gateway grew by {grown_bytes} bytes", case.name);
    assert_eq!(process.complaints(), Vec::<String>::new(), "{}: that is no log line", case.name);
    backend.serve(&[]);
    let deadline = Instant::now() + DEADLINE;
    while process.descriptors_more() > 0 {
        let left = process.descriptors_more();
        assert!(Instant::now() < deadline, "{}: all are gone, and {left} descriptors are open", case.name);
        pause(LOOK_AGAIN);
    }
    (verdict, grown_bytes)
}

/// A try that went wrong, for people.
fn told(one: &Try, seen: &Seen) -> String {
    let outcomes: Vec<_> = seen.clients.iter().map(outcome).collect();
    let [clients, backend] = [&seen.clients, &seen.backend]
        .map(|ends| ends.iter().take(10).map(|heard| start(&heard.bytes)).collect::<Vec<_>>());
    format!("{}: {outcomes:?}, {}\n  clients: {clients:#?}\n  backend: {backend:#?}", one.what, seen.measured)
}

fn start(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(600)].escape_ascii().to_string()
}

/// What somebody hears who plays a script beside a backend's, on each way.
pub fn serve(
    settings: &Settings,
    backend_scripts: &[(&'static str, Script)],
    script: &Script,
) -> [(&'static str, Heard); 3] {
    let backend = Backend::start();
    backend.serve(backend_scripts);
    let address = backend.address;
    let (nginx, gateway) = (Nginx::start(address, settings), Gateway::start(address, settings));
    let ways =
        [("direct", Route::Direct(address)), ("nginx", Route::Nginx(nginx)), ("gateway", Route::Gateway(gateway))];
    ways.map(|(way, route)| {
        let (wire, playing) = begin(&route, script);
        playing.join().expect("a script ends");
        (way, wire.heard())
    })
}

/// Whether all attackers' connections went as the case says.
fn as_said(case: &Case, seen: &Seen) -> bool {
    seen.clients.iter().all(|heard| outcome(heard).is_some_and(|outcome| case.stopped_by.contains(&outcome)))
}

fn on(
    case: &Case,
    tries: &[Try],
    backend: &Backend,
    route: &Route,
    mut judge: impl FnMut(&Try, bool, &Seen),
) -> Verdict {
    let mut verdict = Verdict { harmed: 0, tries: tries.len(), outcomes: BTreeSet::new() };
    for one in tries {
        let (harmed, seen) = attempt(case, one, backend, route);
        judge(one, harmed, &seen);
        match harmed {
            true => verdict.harmed += 1,
            false => verdict.outcomes.extend(seen.clients.iter().filter_map(outcome)),
        }
    }
    verdict
}

/// Tries once, and says whether there was harm.
fn attempt(case: &Case, one: &Try, backend: &Backend, route: &Route) -> (bool, Seen) {
    backend.serve(&one.backend);
    let clients: Vec<_> = one.clients.iter().map(|script| begin(route, script)).collect();
    clients.iter().for_each(|(_, playing)| wait_for(playing));
    let clients: Vec<_> = clients.into_iter().map(|(wire, _)| wire).collect();
    let bystander = (!one.bystander.is_empty()).then(|| begin(route, &one.bystander));
    bystander.iter().for_each(|(_, playing)| wait_for(playing));
    let bystander = bystander.map(|(wire, _)| wire);
    bystander.iter().for_each(|wire| wire.close());
    let see = || Seen {
        what: one.what.clone(),
        backend: backend.connections().iter().map(|wire| wire.heard()).collect(),
        clients: clients.iter().map(|wire| wire.heard()).collect(),
        bystander: bystander.as_ref().map(|wire| wire.heard()).unwrap_or_default(),
        measured: route.measure(case.measure, backend, &clients),
    };
    settle(case, backend, route, &clients, see)
}

/// Looks until there was harm, or until nothing happens any more.
fn settle(
    case: &Case,
    backend: &Backend,
    route: &Route,
    clients: &[Arc<Wire>],
    see: impl Fn() -> Seen,
) -> (bool, Seen) {
    let started = Instant::now();
    let (mut last, mut changed) = (Vec::new(), Instant::now());
    let mut reading = false;
    loop {
        let connections = backend.connections();
        let all = || connections.iter().chain(clients);
        let now: Vec<_> = all().map(|wire| wire.progress()).collect();
        if last != now {
            if case.course == Course::Sudden {
                let seen = see();
                if (case.shows)(&seen) {
                    return (true, seen);
                }
            }
            (last, changed) = (now.clone(), Instant::now());
            if case.course != Course::Stubborn && !matches!(route, Route::Direct(_)) {
                // Whoever is told that a session ends, ends it.
                all().filter(|wire| is_over(wire)).for_each(|wire| wire.close());
            }
        }
        let all_ended = now.iter().all(|(_, ended)| *ended);
        let quiet_for = if all_ended { 4 * LOOK_AGAIN } else { QUIET[usize::from(cases::at_full_length())] };
        if changed.elapsed() > quiet_for {
            let seen = see();
            let harmed = (case.shows)(&seen);
            let late = started.elapsed() > DEADLINE;
            // Who has stopped reading sees how it ended. The gateway has until the deadline to do something about it.
            if !reading && (late || !harmed || !matches!(route, Route::Gateway(_))) {
                clients.iter().for_each(|wire| wire.read_again());
                (reading, changed) = (true, Instant::now());
                continue;
            }
            let waits = match route {
                Route::Direct(_) => !harmed,
                Route::Nginx(_) => false,
                Route::Gateway(_) => harmed || !as_said(case, &seen),
            };
            if !waits || late {
                return (harmed, seen);
            }
        }
        pause(LOOK_AGAIN);
    }
}

fn wait_for(playing: &thread::JoinHandle<()>) {
    while !playing.is_finished() {
        pause(LOOK_AGAIN);
    }
}

/// Whether an end has nothing more to do: its script is over, and it was sent the end or a Close frame.
fn is_over(wire: &Wire) -> bool {
    let heard = wire.heard();
    wire.played() && (heard.ended || frames_behind_head(&heard).iter().any(|frame| frame.close_code().is_some()))
}

fn begin(route: &Route, script: &Script) -> (Arc<Wire>, thread::JoinHandle<()>) {
    let wire = Arc::new(Wire::connect(route.address(), script));
    let playing = thread::spawn({
        let (wire, script) = (wire.clone(), script.clone());
        move || wire.play(&script)
    });
    (wire, playing)
}
