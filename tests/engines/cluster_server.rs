//! A Redis Cluster of real processes: three masters, and a replica of each where a test needs them.

use std::time::Instant;

use redis::{Client, Value};

use super::DEADLINE;
use super::server::{Server, free_port, pause};

pub struct Cluster {
    pub masters: Vec<Server>,
    /// In the order of their masters.
    pub replicas: Vec<Server>,
}

impl Cluster {
    pub fn start(with_replicas: bool) -> Self {
        let mut nodes: Vec<_> = (0..if with_replicas { 6 } else { 3 }).map(|_| node()).collect();
        for (nth, ports) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")].iter().enumerate() {
            nodes[nth].0.command::<String>(&["CLUSTER", "ADDSLOTSRANGE", ports.0, ports.1]);
        }
        for (other, bus) in &nodes[1..] {
            let words = ["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), bus];
            nodes[0].0.command::<String>(&words);
        }
        let count = format!("cluster_known_nodes:{}", nodes.len());
        for (node, _) in &nodes {
            wait_for(node, &count);
        }
        let mut nodes: Vec<_> = nodes.drain(..).map(|(node, _)| node).collect();
        let replicas = nodes.split_off(3);
        for (replica, master) in replicas.iter().zip(&nodes) {
            let id: String = master.command(&["CLUSTER", "MYID"]);
            // It may not have heard yet that the other is a master.
            let until = Instant::now() + DEADLINE;
            while replica.try_command::<String>(&["CLUSTER", "REPLICATE", &id]).is_err() {
                assert!(Instant::now() < until, "no replica of {id}");
                pause();
            }
            replica.wait_for_info("master_link_status:up");
        }
        for node in nodes.iter().chain(&replicas) {
            wait_for(node, "cluster_state:ok");
        }
        Self { masters: nodes, replicas }
    }

    pub fn urls(&self) -> Vec<String> {
        self.masters.iter().map(Server::url).collect()
    }

    /// Which master has the channel's log, and its slot. The log must have an entry.
    pub fn owner(&self, channel: &str) -> (usize, String) {
        let pattern = format!("sg:*:s:{channel}");
        let of = |server: &Server| server.command::<Vec<String>>(&["KEYS", &pattern]).pop();
        let found = self.masters.iter().enumerate().find_map(|(nth, server)| Some((nth, of(server)?)));
        let (nth, key) = found.expect("a master has it");
        let slot: u16 = self.masters[nth].command(&["CLUSTER", "KEYSLOT", &key]);
        (nth, slot.to_string())
    }

    /// Begins to move a slot, and moves its keys; see [`Self::end_move`].
    pub fn begin_move(&self, slot: &str, from: usize, to: usize) {
        let (source, target) = (&self.masters[from], &self.masters[to]);
        let (source_id, target_id): (String, String) =
            (source.command(&["CLUSTER", "MYID"]), target.command(&["CLUSTER", "MYID"]));
        target.command::<String>(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source_id]);
        source.command::<String>(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target_id]);
        loop {
            let keys: Vec<String> = source.command(&["CLUSTER", "GETKEYSINSLOT", slot, "10"]);
            if keys.is_empty() {
                return;
            }
            let port = target.port.to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            source.command::<String>(&words);
        }
    }

    /// Ends what was begun: all masters know whose the slot is.
    pub fn end_move(&self, slot: &str, from: usize, to: usize) {
        let id: String = self.masters[to].command(&["CLUSTER", "MYID"]);
        let others = (0..3).filter(|nth| ![from, to].contains(nth));
        for nth in [to, from].into_iter().chain(others) {
            self.masters[nth].command::<String>(&["CLUSTER", "SETSLOT", slot, "NODE", &id]);
        }
    }
}

/// A node, and the port of its bus.
fn node() -> (Server, String) {
    let bus = free_port().to_string();
    let words = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
    (Server::start(&words), bus)
}

fn wait_for(node: &Server, line: &str) {
    let until = Instant::now() + DEADLINE;
    let client = Client::open(node.url()).expect("a URL");
    loop {
        let info = client.get_connection_with_timeout(DEADLINE).and_then(|mut connection| {
            redis::cmd("CLUSTER")
                .arg("INFO")
                .query::<Value>(&mut connection)
                .and_then(|value| Ok(redis::from_redis_value::<String>(value)?))
        });
        if info.is_ok_and(|info| info.lines().any(|found| found.trim() == line)) {
            return;
        }
        assert!(Instant::now() < until, "no {line:?} in CLUSTER INFO of {}", node.port);
        pause();
    }
}
