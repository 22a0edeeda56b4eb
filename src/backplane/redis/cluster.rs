//! Finds the masters of a Cluster, and keeps a session with each that has a partition.
//!
//! The crate's own cluster client is not used: it sends a command to whichever node has the slot at that moment, and a
//! publication has to be written in the lineage of the very process that appends it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::watch;

use super::super::engine::EngineError;
use super::keys::{PARTITIONS, slot};
use super::routes::Partitions;
use super::session::{Target, ask, target_of};
use super::supervisor::keep;
use super::{Shared, Task, wire};
use crate::backplane::backoff::backoff;

/// How often a Cluster that seems well is asked for its nodes. One that says that a slot is elsewhere is asked at once.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The shortest time between two such questions, so that a storm of redirections is not one of questions.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// How many nodes are remembered, to ask them when those of the settings are gone. Redis's own limit is about that.
const MAX_NODES: usize = 1024;

/// Who has what, as one node says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Map {
    owners: HashMap<Target, Partitions>,
    /// All nodes, replicas too.
    nodes: Vec<Target>,
}

/// What is kept of a master.
struct Master {
    wanted: watch::Sender<Partitions>,
    _task: Task,
}

/// Runs until the engine is dropped.
pub async fn run(shared: Arc<Shared>, urls: Vec<String>) {
    let seeds: Vec<Target> = urls.iter().filter_map(|url| target_of(url).ok()).collect();
    let mut nodes = seeds.clone();
    let mut masters: HashMap<Target, Master> = HashMap::new();
    let (mut turn, mut failures) = (0, 0);
    loop {
        match look(&shared, &nodes, turn).await {
            Ok(map) => {
                failures = 0;
                nodes = map.nodes.iter().take(MAX_NODES).chain(&seeds).cloned().collect();
                settle(&shared, map.owners, &mut masters);
            }
            Err(error) => {
                failures += 1;
                // Sessions with those who are known go on: each says itself when it is lost.
                if masters.is_empty() {
                    shared.closed(Partitions::ALL, &error);
                }
            }
        }
        turn += 1;
        let pause = if failures > 0 { backoff(failures, shared.settings.max_backoff) } else { LOOK_PAUSE };
        tokio::time::sleep(pause).await;
        // While something is missing, a replica may be promoted at any time.
        let wait = if shared.status().is_ok() { LOOK_EVERY } else { shared.settings.heartbeat };
        // That the time is up is as good a reason.
        let _ = tokio::time::timeout(wait, shared.refresh.notified()).await;
    }
}

/// Has each master asked for what it has.
fn settle(shared: &Arc<Shared>, owners: HashMap<Target, Partitions>, masters: &mut HashMap<Target, Master>) {
    // Whoever loses a partition knows that before another can take it over, and does not speak for it any more.
    masters.retain(|target, master| {
        let left = owners.get(target).copied().unwrap_or_default();
        master.wanted.send_if_modified(|wanted| {
            *wanted = wanted.without(Partitions::ALL.without(left));
            false
        });
        owners.contains_key(target)
    });
    let mut missing = Partitions::ALL;
    for (target, partitions) in owners {
        missing = missing.without(partitions);
        match masters.entry(target) {
            // Told even if it is what it was: a partition that went and came back is taken over anew.
            Entry::Occupied(master) => drop(master.get().wanted.send_replace(partitions)),
            Entry::Vacant(place) => {
                let (wanted, receiver) = watch::channel(partitions);
                let task = tokio::spawn(keep(shared.clone(), place.key().clone(), receiver));
                place.insert(Master { wanted, _task: Task(task) });
            }
        }
    }
    if !missing.is_empty() {
        shared.closed(missing, &EngineError::Unreachable);
    }
}

/// Asks the nodes one after the other, each time beginning with another.
async fn look(shared: &Shared, nodes: &[Target], turn: usize) -> Result<Map, EngineError> {
    let mut failure = EngineError::Unreachable;
    let start = turn.checked_rem(nodes.len()).unwrap_or(0);
    for node in nodes.iter().cycle().skip(start).take(nodes.len()) {
        let asked = tokio::time::timeout(shared.settings.timeout, ask_node(shared, node)).await;
        match asked.unwrap_or(Err(EngineError::TimedOut)) {
            Ok(map) => return Ok(map),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn ask_node(shared: &Shared, node: &Target) -> Result<Map, EngineError> {
    let mut connection = ask(&shared.settings, node).await?;
    let mut pipeline = redis::pipe();
    pipeline.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    let answer = pipeline.query_async::<(String, Value)>(&mut connection).await;
    let (info, slots) = answer.map_err(|error| wire::error(&error))?;
    // One that is cut off from the others names the masters of before.
    if !info.lines().any(|line| line.trim() == "cluster_state:ok") {
        return Err(EngineError::Refused { code: "CLUSTERDOWN".to_owned() });
    }
    map(slots, node).ok_or(wire::malformed("CLUSTER SLOTS"))
}

/// Reads `CLUSTER SLOTS`: ranges of slots, each with its first and last, its master and its replicas.
fn map(answer: Value, asked: &Target) -> Option<Map> {
    let Value::Array(ranges) = answer else { return None };
    let mut map = Map::default();
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), servers @ ..] = parts.as_slice() else { return None };
        let servers: Vec<_> = servers.iter().map(|server| server_of(server, asked)).collect::<Option<_>>()?;
        let master = servers.first()?;
        let has = |partition: &usize| (*first..=*last).contains(&i64::from(slot(*partition)));
        let partitions = (0..PARTITIONS).filter(has);
        let owned = partitions.fold(map.owners.get(master).copied().unwrap_or_default(), Partitions::with);
        if !owned.is_empty() {
            map.owners.insert(master.clone(), owned);
        }
        for server in servers {
            if !map.nodes.contains(&server) && map.nodes.len() < MAX_NODES {
                map.nodes.push(server);
            }
        }
    }
    Some(map)
}

fn server_of(server: &Value, asked: &Target) -> Option<Target> {
    let Value::Array(parts) = server else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::Nil => "",
        _ => return None,
    };
    let port = u16::try_from(*port).ok()?;
    match asked {
        // A node that does not know its own address is where it was asked.
        Target::Node(asked, _) if host.is_empty() || host == "?" => Some(Target::Node(asked.clone(), port)),
        _ => Some(Target::Node(host.to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str, port: i64) -> Value {
        let host = if host.is_empty() { Value::Nil } else { Value::BulkString(host.into()) };
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec()), Value::Array(vec![])])
    }

    fn range(first: i64, last: i64, servers: &[Value]) -> Value {
        Value::Array([&[Value::Int(first), Value::Int(last)], servers].concat())
    }

    #[test]
    fn each_partition_is_its_masters() {
        let asked = Target::Node("gateway.example".to_owned(), 7000);
        let answer = Value::Array(vec![
            range(0, 5460, &[server("10.0.0.1", 1), server("10.0.0.2", 2)]),
            range(5461, 16_000, &[server("", 3)]),
            range(16_001, 16_383, &[server("10.0.0.1", 1)]),
        ]);
        let map = map(answer, &asked).unwrap();
        let one = Target::Node("10.0.0.1".to_owned(), 1);
        let other = Target::Node("gateway.example".to_owned(), 3);
        assert_eq!(map.nodes, [one.clone(), Target::Node("10.0.0.2".to_owned(), 2), other.clone()]);
        // Slots 15882 and 5539.
        assert!(map.owners[&other].contains(0) && map.owners[&other].contains(127));
        let all =
            map.owners[&one].iter().chain(map.owners[&other].iter()).fold(Partitions::default(), Partitions::with);
        assert_eq!((all, map.owners.len()), (Partitions::ALL, 2));
        assert!(map.owners[&one].iter().all(|partition| !(5461..=16_000).contains(&slot(partition))));
    }

    #[test]
    fn answers_of_another_shape_are_refused() {
        let asked = Target::Node("a".to_owned(), 1);
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 1, &[])]),
            Value::Array(vec![range(0, 1, &[Value::Int(1)])]),
            Value::Array(vec![range(0, 1, &[server("a", 65_536)])]),
        ] {
            assert_eq!(map(answer, &asked), None);
        }
        assert_eq!(map(Value::Array(vec![]), &asked), Some(Map::default()));
    }
}
