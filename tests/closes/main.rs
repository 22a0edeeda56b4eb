//! Every row of the table of causes, made over real TCP with the real binary: what the client is told, what the
//! upstream is told, the log line and the metrics, asserted together.
//!
//! [`table`] has a case for each cause, and others that end for the same cause in another way. [`living`] has peers
//! that are alive and must not be given up, and stopped ones that must.

mod living;
mod support;
mod table;

use sluicegate::cause::Cause;

/// Makes a test of each case, and a list of them all.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                table::$name();
            }
        )*
    };
}

cases![
    client_closed,
    upstream_closed,
    client_gone,
    upstream_gone,
    client_protocol,
    client_invalid_utf8,
    client_subprotocol,
    message_too_big,
    inflation_ratio,
    deflate_blocks,
    too_many_fragments,
    message_rate,
    byte_rate,
    control_rate,
    message_stalled,
    message_timeout,
    upstream_protocol,
    upstream_invalid_utf8,
    upstream_message_too_big,
    slow_client,
    overrun,
    client_silent,
    upstream_silent,
    idle_timeout,
    drain,
    operator,
    drain_cut,
];

/// The case of a cause. It names each variant, so that a new one does not compile before it has a case here.
const fn case_of(cause: &Cause) -> &'static str {
    match cause {
        Cause::ClientClosed(_) => "client_closed",
        Cause::UpstreamClosed(_) => "upstream_closed",
        Cause::ClientGone => "client_gone",
        Cause::UpstreamGone => "upstream_gone",
        Cause::ClientProtocol(_) => "client_protocol",
        Cause::ClientInvalidUtf8 => "client_invalid_utf8",
        Cause::ClientSubprotocol(_) => "client_subprotocol",
        Cause::MessageTooBig { .. } => "message_too_big",
        Cause::InflationRatio { .. } => "inflation_ratio",
        Cause::DeflateBlocks => "deflate_blocks",
        Cause::TooManyFragments { .. } => "too_many_fragments",
        Cause::MessageRate => "message_rate",
        Cause::ByteRate => "byte_rate",
        Cause::ControlRate => "control_rate",
        Cause::MessageStalled(_) => "message_stalled",
        Cause::MessageTimeout(_) => "message_timeout",
        Cause::UpstreamProtocol(_) => "upstream_protocol",
        Cause::UpstreamInvalidUtf8 => "upstream_invalid_utf8",
        Cause::UpstreamMessageTooBig { .. } => "upstream_message_too_big",
        Cause::SlowClient { .. } => "slow_client",
        Cause::Overrun => "overrun",
        Cause::ClientSilent(_) => "client_silent",
        Cause::UpstreamSilent(_) => "upstream_silent",
        Cause::IdleTimeout(_) => "idle_timeout",
        Cause::Drain => "drain",
        Cause::Operator(_) => "operator",
        Cause::DrainCut => "drain_cut",
    }
}

#[test]
fn every_cause_has_a_case_of_its_name() {
    let causes = Cause::ALL.map(|cause| (cause.row().name, case_of(&cause)));
    for (name, case) in causes {
        assert_eq!(name, case);
        assert!(CASES.contains(&case), "{case} is no test");
    }
    assert_eq!(CASES.len(), causes.len(), "each case is a cause's");
}
