//! The model of docs/capacity.md: its constants, its inputs and its formulas. No I/O.

use super::Result;

/// What was measured, each in the unit that its name ends with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constants {
    pub session_bytes: f64,
    pub first_subscription_bytes: f64,
    pub subscription_bytes: f64,
    pub subscription_region_bytes: f64,
    pub channel_bytes: f64,
    pub channel_region_bytes: f64,
    pub publication_us: f64,
    pub push_us: f64,
    pub poll_us: f64,
    pub frame_us: f64,
    pub sweep_us: f64,
    pub join_us: f64,
    pub join_member_us: f64,
    pub open_us: f64,
    pub alone_us: f64,
    pub gateway_bytes: f64,
    pub connection_kernel_bytes: f64,
    pub byte_us: f64,
    pub tls_bytes: f64,
    pub tls_write_us: f64,
    pub tls_byte_us: f64,
    pub tls_handshake_us: f64,
    pub publish_ms: f64,
    pub redis_publication_us: f64,
    pub redis_byte_us: f64,
    pub redis_push_us: f64,
    pub redis_push_byte_us: f64,
    pub redis_wire_bytes: f64,
    pub redis_channel_bytes: f64,
    pub redis_subscription_bytes: f64,
    pub redis_node_bytes: f64,
    pub redis_kept_bytes: f64,
    pub redis_kept_part: f64,
}

/// A constant as the page has it.
pub struct Constant {
    pub name: &'static str,
    /// What it is, and where and how it was measured.
    pub what: &'static str,
    pub of: fn(&mut Constants) -> &mut f64,
}

macro_rules! constants {
    ($($name:ident: $what:literal,)*) => {
        /// In the order of the page.
        pub const CONSTANTS: &[Constant] =
            &[$(Constant { name: stringify!($name), what: $what, of: |all| &mut all.$name }),*];
    };
}

constants! {
    session_bytes: "A session in the hub without a subscription: subscriber, member, inbox, and a waker in the place of its task. 1,000,000 of them, by resident memory.",
    first_subscription_bytes: "Its first subscription, in one region: its maps have room for eleven then. The same sessions.",
    subscription_bytes: "Each further one. From 1 to 5 for each of 1,000,000 sessions, 1,000 to a channel, by resident memory.",
    subscription_region_bytes: "The same for each further region that is read. 300,000 sessions with 5 subscriptions, 3 regions against 1.",
    channel_bytes: "A channel on a node with one subscriber, without that subscription; what the simulated engine keeps of it is in it. 300,000 channels, by resident memory.",
    channel_region_bytes: "The same for each further region.",
    publication_us: "CPU of a node for a publication that it takes from an engine, without its subscribers. From fan-outs of 1 and 20, below.",
    push_us: "CPU for each subscriber that it is pushed to. 1,000,000 sessions, 1,000 to a channel, so that nothing is in a cache; the node has one task for each region that does this.",
    poll_us: "CPU of each of these sessions to be woken, take it and have its frame in the output buffer. The same run.",
    frame_us: "CPU of a session for each further frame that it takes when it is woken. From 1 and 16 at once, 20 channels with 1,000 subscribers each.",
    sweep_us: "CPU of a node a second for each channel that it has, published on or not: it looks for those that nobody wants. 300,000 channels.",
    join_us: "CPU for a session that joins and subscribes alone, to a channel with one other.",
    join_member_us: "The same for each session that is on the channel already, on this node. From a channel with 100,000.",
    open_us: "CPU of the gateway for a handshake through to a `grip` session that is subscribed, in the clear, its backend's connection included. 5,000 opened by the parts of `make fanout`.",
    alone_us: "CPU of the gateway for a delivery with its sockets, when each is written alone. docs/fanout.md, *At a rate that all carry*, the highest of Sluicegate's rows.",
    gateway_bytes: "Resident memory of the gateway for a session with one subscription, in the clear. docs/fanout.md, *Idle subscribers*, the highest of Sluicegate's rows.",
    connection_kernel_bytes: "Memory of the kernel for one end of a connection. docs/fanout.md, *Idle subscribers*, the highest for `grip_http`, halved: both ends are on that machine.",
    byte_us: "CPU for each byte that is read and written. docs/bench.md, *Compression*, `sluicegate, no compression`: 16,384 B less 200 B, halved, as a round trip passes twice.",
    tls_bytes: "Memory of TLS for a connection. docs/bench.md, *The front*: HTTP/1.1 over TLS less in the clear.",
    tls_write_us: "CPU of TLS for each write. The same table: the difference of a round trip, halved.",
    tls_byte_us: "CPU of TLS for each byte: AES-128-GCM of ring, records of 16 KiB, which rustls uses.",
    tls_handshake_us: "CPU of a server for a full handshake of TLS 1.3, a certificate with ECDSA P-256, by rustls in memory.",
    publish_ms: "From publishing to delivery within a region, 99th percentile. docs/fanout.md, *One subscriber*, Redis.",
    redis_publication_us: "CPU of Redis for a publication that no node is pushed, besides its bytes. INFO cpu before and after, one under way at a time: with more it is less, as the table below has it.",
    redis_byte_us: "CPU of Redis for each byte of its content. From 125 B and 2,048 B.",
    redis_push_us: "CPU of Redis for each node that it is pushed to, besides its bytes. From 1 and 10 nodes, one under way at a time.",
    redis_push_byte_us: "The same for each byte of its content.",
    redis_wire_bytes: "What Redis sends to a node for a publication besides its content. INFO stats, from 1 and 10 nodes.",
    redis_channel_bytes: "Memory of Redis for a channel with its first publication, of 125 B. 20,000 channels, INFO memory.",
    redis_subscription_bytes: "Memory of Redis for each channel that a node is pushed. One node, 20,000 channels.",
    redis_node_bytes: "Memory of that node's engine for each of them, besides the hub's; by the allocator.",
    redis_kept_bytes: "Memory of Redis for each further publication that is kept, besides its content; its id within `dedupe_window` is in it. 50 on each of 400 channels.",
    redis_kept_part: "The same for each byte of its content. From 125 B and 2,048 B.",
}

/// How many of `nodes` have one of `subscribers` that are spread by chance: each lacks them all with (1 − 1/nodes)^subscribers.
pub fn nodes_with_subscriber(nodes: f64, subscribers: f64) -> f64 {
    nodes * (1.0 - (1.0 - 1.0 / nodes).powf(subscribers))
}

/// CPU µs of hubs without sockets, which have so many channels for so many seconds: of taking what is pushed.
pub fn taking_us(constants: &Constants, pushes: f64, deliveries: f64, channels: f64, seconds: f64) -> f64 {
    pushes * constants.publication_us + deliveries * constants.push_us + channels * seconds * constants.sweep_us
}

/// The same of sessions that are woken so often.
pub fn polling_us(constants: &Constants, polls: f64, deliveries: f64) -> f64 {
    polls * constants.poll_us + (deliveries - polls).max(0.0) * constants.frame_us
}

/// Memory of hubs without sockets.
pub fn hub_bytes(constants: &Constants, sessions: f64, subscriptions: f64, channels: f64, regions: f64) -> f64 {
    let further = regions - 1.0;
    sessions * (constants.session_bytes + constants.first_subscription_bytes)
        + (subscriptions - sessions) * constants.subscription_bytes
        + subscriptions * further * constants.subscription_region_bytes
        + channels * (constants.channel_bytes + further * constants.channel_region_bytes)
}

/// An input as the calculator and the page have it.
pub struct Input {
    pub name: &'static str,
    pub default: f64,
    pub what: &'static str,
    pub of: fn(&mut Inputs) -> &mut f64,
}

macro_rules! inputs {
    ($($name:ident = $default:literal: $what:literal,)*) => {
        /// What a service is, and what its machines are. Each field is a word of the calculator.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Inputs {
            /// Of the users, the part of each region.
            pub shares: Vec<f64>,
            $(pub $name: f64,)*
        }

        impl Default for Inputs {
            fn default() -> Self {
                Self { shares: vec![1.0], $($name: $default),* }
            }
        }

        /// All that are numbers, in the order of the page.
        pub const INPUTS: &[Input] = &[$(Input {
            name: stringify!($name),
            default: $default,
            what: $what,
            of: |all| &mut all.$name,
        }),*];
    };
}

inputs! {
    users = 10000.0: "Users at the same time.",
    connections = 1.0: "Connections of each.",
    subscriptions = 1.0: "Channels of a session.",
    channels = 1000.0: "Channels altogether.",
    user_rate = 0.01: "Publications a second of each user, at the peak.",
    rate = 0.0: "Publications a second besides.",
    fan_out = 20.0: "Subscribers that a publication has, in the mean of publications: where users write in their own channels that is the mean of the squares of the channels' sizes over the mean size. 0: all sessions.",
    content = 125.0: "Bytes of a message's content.",
    line = 0.0: "Bytes of the header line of `sluicegate.v1`: about 95 and the channel's name and the item's id; 0 for clients without it.",
    keys = 0.0: "Keys of the channel of newest values, where `interval` is not 0.",
    interval = 0.0: "How often newest values are sent, in ms. 0: each publication is sent.",
    skew = 0.0: "How unevenly keys change: the key of rank n as n^-skew.",
    sockets = 2.0: "Connections of the gateway for a session: 2 with `grip`, 1 with `grip_http`.",
    tls = 1.0: "1: clients come over TLS. 0: in the clear.",
    history = 300.0: "How long a publication is kept, in seconds.",
    messages = 1000.0: "How many are kept of a channel.",
    back = 60.0: "Within how many seconds the users of a region that is dark come to the others.",
    slow = 0.001: "Clients that read slowly, as a part of all.",
    slow_bytes = 4194304.0: "What waits for a slow client, in the kernel and the gateway: by default the kernel's send buffer grows up to 4 MiB.",
    distance = 0.0: "One way between the two regions that are farthest apart, in ms.",
    client = 20.0: "One way between a client and its gateway, in ms, 99th percentile.",
    cores = 8.0: "Cores of a gateway's machine.",
    memory = 16.0: "Its memory in GiB.",
    network = 10.0: "Its network in Gbit/s.",
    load = 0.5: "How much of each is planned for.",
    spare = 1.0: "Machines of each region that may be gone at once.",
}

impl Inputs {
    /// Takes words such as `users=1000000 shares=0.4,0.35,0.25`.
    ///
    /// # Errors
    /// A word that is none, or a value out of range.
    pub fn read<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=VALUE"))?;
            if name == "shares" {
                self.shares = value.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
                continue;
            }
            let input = INPUTS.iter().find(|input| input.name == name);
            let input = input.ok_or_else(|| format!("{name:?} is no input"))?;
            *(input.of)(&mut self) = value.parse().map_err(|_| format!("{word:?}: not a number"))?;
        }
        let numbers: Vec<f64> = INPUTS.iter().map(|input| *(input.of)(&mut self)).collect();
        if !numbers.iter().chain(&self.shares).all(|value| value.is_finite() && *value >= 0.0) {
            return Err("an input is negative or no number".into());
        }
        if [self.users, self.connections, self.back, self.cores, self.memory, self.network, self.load].contains(&0.0) {
            return Err("users, connections, back, cores, memory, network and load must be more than 0".into());
        }
        if self.load > 1.0 || (self.shares.iter().sum::<f64>() - 1.0).abs() > 0.001 {
            return Err("load is at most 1, and shares are 1 together".into());
        }
        if self.interval > 0.0 && self.keys < 1.0 {
            return Err("newest values are sent of keys: at least 1".into());
        }
        Ok(self)
    }
}
