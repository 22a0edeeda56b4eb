//! What bounds the parsers and the state machines of GRIP.

/// Bounds, with GRIP's own defaults where it has some: 20 subscriptions, 5 filters, and the bytes of requests and
/// responses. The others have no place in GRIP, and are far above what a working backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Subscriptions of one connection. 20. One more is ignored.
    pub subscriptions: usize,
    /// Filters of one subscription. 5. One more ends the connection with 1011.
    pub filters: usize,
    /// The name of a channel, in bytes. 1,024.
    pub channel_bytes: usize,
    /// An id of a message, a position, the id of a session, in bytes. 1,024.
    pub id_bytes: usize,
    /// Entries of the metadata of one connection or of one item. 64.
    pub meta_entries: usize,
    /// The name of one entry of metadata, in bytes. 128.
    pub meta_name_bytes: usize,
    /// The value of one entry of metadata, in bytes. 4,096.
    pub meta_value_bytes: usize,
    /// A link that a backend gives, in bytes. 8,192.
    pub link_bytes: usize,
    /// The JSON of one control message, in bytes. 65,536.
    pub control_bytes: usize,
    /// What a connection keeps for a keep-alive, a delayed message or a gap, each, in bytes. 16,384.
    pub kept_bytes: usize,
    /// What was read of a client and waits for a backend over HTTP, in bytes of content. 200,000; then the client is not
    /// read, and a single message above it is an error.
    pub buffered_bytes: usize,
    /// How many events wait for a backend over HTTP: empty ones have no content. 4,096; then the client is not read.
    pub buffered_events: usize,
    /// The body of a backend's response with events, in bytes. 1,000,000.
    pub response_bytes: usize,
    /// The body of a backend's response that refuses an opening, in bytes. 100,000.
    pub refusal_bytes: usize,
    /// The body of a request to publish, in bytes. 1,000,000.
    pub publish_bytes: usize,
    /// The head of a request to publish, in bytes. 10,000.
    pub publish_head_bytes: usize,
    /// Items of one request to publish. 10,000.
    pub publish_items: usize,
    /// Headers of one published response. 100.
    pub headers: usize,
    /// What a filter may turn a message into, in bytes. 1,000,000.
    pub rendered_bytes: usize,
    /// Channels of one resume, and channels of one hold. 256.
    pub channels: usize,
    /// Positions of one channel of a resume, one for each region. 16.
    pub positions: usize,
    /// The header line in front of a resumable client's message, in bytes. 65,536.
    pub line_bytes: usize,
    /// How often a request to a backend over HTTP is made again. 5.
    pub retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subscriptions: 20,
            filters: 5,
            channel_bytes: 1_024,
            id_bytes: 1_024,
            meta_entries: 64,
            meta_name_bytes: 128,
            meta_value_bytes: 4_096,
            link_bytes: 8_192,
            control_bytes: 65_536,
            kept_bytes: 16_384,
            buffered_bytes: 200_000,
            buffered_events: 4_096,
            response_bytes: 1_000_000,
            refusal_bytes: 100_000,
            publish_bytes: 1_000_000,
            publish_head_bytes: 10_000,
            publish_items: 10_000,
            headers: 100,
            rendered_bytes: 1_000_000,
            channels: 256,
            positions: 16,
            line_bytes: 65_536,
            retries: 5,
        }
    }
}
