//! The tables of results and causes: each variant is in them, and docs/causes.md says what they say.
//!
//! The page is written from `src/cause.rs` by this test, never by hand: `SLUICEGATE_UPDATE=1 cargo test --test causes`.

use std::fmt::Write as _;
use std::path::Path;

use sluicegate::cause::{Cause, Refusal};
use sluicegate::ws::close::CloseCode;

/// What the page says before its tables.
const INTRODUCTION: &str = "\
<!-- Written from src/cause.rs by tests/causes.rs. To change it: SLUICEGATE_UPDATE=1 cargo test --test causes -->
# Results and causes

A request that gets no tunnel has one **result**, and a session that ends has one **cause**. Both have a name, and the
name is the same everywhere. A **policy** is the setting, or the part of Sluicegate, that decided.

| name | in the metrics | in the log | to the client |
| --- | --- | --- | --- |
| result | `result` of `sluicegate_handshakes_total`; `accepted` is a tunnel | `cause` of a `refusal` line | the problem's `type`, `urn:sluicegate:NAME` |
| cause | `cause` of `sluicegate_closes_total` | `cause` of a `session` line | never; the reason of the Close frame instead |
| policy | `policy` of `sluicegate_policy_decisions_total` | `policy` of a `refusal` line | never |

Names never change, so an alert on one goes on working; new ones may come. Titles and reasons are for people and may be
reworded. A client is told no more than a row says: nothing of the other side, no address, no error text.

";

const REFUSALS: &str = "\
## Results: no tunnel

The answer has the status and a problem document (RFC 9457) of `type`, `title` and `status`. Where there is no status
there is no answer of Sluicegate's own, and no policy is counted.

| name | HTTP status | policy | title |
| --- | --- | --- | --- |
";

const CAUSES: &str = "\
## Causes: the end of a session

The code is the one that metric (`code`) and log (`close_code`) give. Two codes are never in a Close frame (RFC 6455
§7.4.1): **1005** says that the peer's Close frame had no code, **1006** that the session ended without one. Codes of
applications are exact in the log; in the metric they are `3xxx` and `4xxx`.

A Close frame can only stand between two frames. A client that was inside a frame when Sluicegate ended its session gets
none: its connection is cut and it sees 1006, where metric and log say the code of the table. The log's `close_sent` is
the code that the client was really sent, if it was sent one.

| name | ended by | code | Close to client | Close to upstream | reason | policy |
| --- | --- | --- | --- | --- | --- | --- |
";

/// What a cell without a value has.
const NOTHING: &str = "–";

fn page() -> String {
    let mut page = String::from(INTRODUCTION);
    page += REFUSALS;
    for refusal in Refusal::ALL {
        let row = refusal.row();
        let status = row.status.map_or(NOTHING.to_owned(), |status| status.to_string());
        line(&mut page, &[&code(row.name), &status, &code(row.policy), row.title]);
    }
    page += "\n";
    page += CAUSES;
    for cause in Cause::ALL {
        let row = cause.row();
        let sent = |code: Option<CloseCode>| code.map_or(NOTHING.to_owned(), |code| code.0.to_string());
        let (ended_with, to_client, to_upstream) = match cause {
            Cause::ClientClosed(_) => {
                ("the client's, or 1005".into(), "the upstream's answer".into(), "forwarded".into())
            }
            Cause::UpstreamClosed(_) => {
                ("the upstream's, or 1005".into(), "forwarded".into(), "the client's answer".into())
            }
            _ => (cause.code().0.to_string(), sent(row.to_client), sent(row.to_upstream)),
        };
        let reason = if row.reason.is_empty() { NOTHING } else { row.reason };
        let policy = row.policy.map_or(NOTHING.to_owned(), code);
        line(&mut page, &[&code(row.name), row.by.name(), &ended_with, &to_client, &to_upstream, reason, &policy]);
    }
    page
}

fn code(name: &str) -> String {
    format!("`{name}`")
}

fn line(page: &mut String, cells: &[&str]) {
    assert!(cells.iter().all(|cell| !cell.is_empty() && !cell.contains(['|', '\n'])), "breaks the table: {cells:?}");
    writeln!(page, "| {} |", cells.join(" | ")).expect("a string takes everything");
}

#[test]
fn the_page_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/causes.md");
    let page = page();
    if std::env::var_os("SLUICEGATE_UPDATE").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.parent().expect("it is in docs/")).expect("docs/ can be made");
        std::fs::write(&path, &page).expect("docs/causes.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let first_difference = found.lines().zip(page.lines()).position(|(found, expected)| found != expected);
    let at = first_difference.unwrap_or(found.lines().count().min(page.lines().count())) + 1;
    assert!(
        found == page,
        "docs/causes.md differs from src/cause.rs from line {at} on:\n  found:    {}\n  expected: {}\n\
         rewrite it with: SLUICEGATE_UPDATE=1 cargo test --test causes",
        found.lines().nth(at - 1).unwrap_or("(nothing)"),
        page.lines().nth(at - 1).unwrap_or("(nothing)"),
    );
}

/// Makes `$name` and the list of every variant's name. A variant that is not listed here does not compile.
macro_rules! every {
    ($name:ident, $list:ident, $kind:ident: $($variant:ident)*) => {
        const $list: &[&str] = &[$(stringify!($variant)),*];

        fn $name(value: &$kind) -> &'static str {
            match value {
                $($kind::$variant { .. } => stringify!($variant),)*
            }
        }
    };
}

every!(refusal_variant, REFUSAL_VARIANTS, Refusal:
    MalformedRequest BadHost BadPath BadKey BadOffer BodyOnUpgrade EarlyData MixedUpgrade UpgradeMethod
    UpgradeOverHttp10 ConnectMethod ConnectProtocol HeadTimeout HeadTooLarge UnsupportedVersion UpgradeRequired UpgradeDenied
    ClientNotAllowed OriginNotAllowed NoRule BodyTooLarge HostNotServed HandshakeRate ConnectionsPerIp ConnectionsTotal ProcessConnections
    ProcessMemory Draining
    UpstreamUnreachable UpstreamMalformed UpstreamInvalidUpgrade UpstreamTimeout UpstreamAnswered ClientGone
    ProxyHeader TlsHandshake CleartextOnTls StreamLimit
);

every!(cause_variant, CAUSE_VARIANTS, Cause:
    ClientClosed UpstreamClosed ClientGone UpstreamGone ClientProtocol ClientInvalidUtf8 ClientSubprotocol MessageTooBig InflationRatio
    DeflateBlocks
    TooManyFragments
    MessageRate ByteRate ControlRate MessageStalled MessageTimeout UpstreamProtocol UpstreamInvalidUtf8 UpstreamMessageTooBig
    SlowClient Overrun ClientSilent UpstreamSilent IdleTimeout Drain Operator DrainCut
);

#[test]
fn the_tables_hold_each_variant_once() {
    assert_eq!(Refusal::ALL.iter().map(refusal_variant).collect::<Vec<_>>(), REFUSAL_VARIANTS);
    assert_eq!(Cause::ALL.iter().map(cause_variant).collect::<Vec<_>>(), CAUSE_VARIANTS);
}

/// `BadHost` and `bad_host`: who reads a log finds the variant, and the other way round.
#[test]
fn names_are_the_variants_in_snake_case() {
    let snake = |variant: &str| {
        let mut name = String::new();
        for (at, char) in variant.char_indices() {
            if char.is_ascii_uppercase() && at > 0 {
                name.push('_');
            }
            name.push(char.to_ascii_lowercase());
        }
        name
    };
    for refusal in Refusal::ALL {
        assert_eq!(refusal.row().name, snake(refusal_variant(&refusal)));
    }
    for cause in Cause::ALL {
        assert_eq!(cause.row().name, snake(cause_variant(&cause)));
    }
}
