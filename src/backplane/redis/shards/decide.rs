//! What a gateway does about the list of shards, from what the servers say. Pure: no I/O, no clock.
//!
//! A generation is *begun* on every server that it concerns (its own shards, and those of the generation in force before),
//! and *in force* once all of them have been seen to have it begun, after all of it was written. From the first moment on
//! a server that has it begun takes no publication; one that has it in force takes those of that generation.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{List, MAX_LEAVING, Record, Said};
use crate::backplane::engine::EngineError;

/// The generation that may begin where no server knows of any.
const FIRST: u64 = 1;

/// What came of asking a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Why it gave no answer.
    Silent(EngineError),
    /// It knows nothing: it is new, or was emptied.
    Blank,
    /// What it says.
    Says(Box<Said>),
}

/// What each server said, by its URL.
pub type View = BTreeMap<String, Seen>;

/// What this gateway was given, and knows.
#[derive(Debug)]
pub struct Own<'a> {
    pub generation: u64,
    pub list: &'a List,
    /// Servers that are lost for good: nobody waits for them.
    pub gone: &'a BTreeSet<String>,
    /// The record of this generation, if it was in force.
    pub known: Option<&'a Record>,
}

/// One server's key, changed if it says what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub url: String,
    /// What it says; empty where it is blank.
    pub from: String,
    pub to: String,
    pub record: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A higher generation was begun.
    Superseded(Box<Record>),
    /// Nothing can be done, for now or at all.
    Wait(EngineError),
    /// Look at these servers too, and decide again.
    Look(BTreeSet<String>),
    /// Write, look and decide again.
    Prepare(Vec<Write>),
    /// This is in force; write, so that all shards say so.
    InForce(Box<Record>, Vec<Write>),
}

/// Decides. Every server was asked for `second` after all had answered for `first`.
///
/// Why nothing is written twice over a higher generation: a write changes a server only if it says what it said in
/// `first`, and what is begun carries a number that is given once, so it says that because nothing was written between.
pub fn decide(own: &Own<'_>, first: &View, second: &View, mut nonce: impl FnMut() -> String) -> Step {
    let said = |view| says(view).filter(|said: &&Said| said.record.generation == own.generation);
    let newest = says(first).chain(says(second)).max_by_key(|said| (said.record.generation, said.record.before.len()));
    if let Some(newest) = newest.filter(|newest| newest.record.generation > own.generation) {
        return Step::Superseded(Box::new(newest.record.clone()));
    }
    if said(first).chain(said(second)).any(|said| said.record.list != *own.list) {
        return Step::Wait(EngineError::OtherShards { generation: own.generation });
    }
    let in_force = said(second).filter(|said| said.active);
    if let Some(in_force) = in_force.max_by_key(|said| (said.record.before.len(), &said.now)) {
        let writes = own.list.urls().filter_map(|url| spread(&in_force.record, url, first, second, &mut nonce));
        return Step::InForce(Box::new(in_force.record.clone()), writes.collect());
    }
    begin(own, first, second, nonce)
}

/// Makes one shard say what is in force.
fn spread(
    record: &Record,
    url: &str,
    first: &View,
    second: &View,
    nonce: &mut impl FnMut() -> String,
) -> Option<Write> {
    let write = |from: &str, to| Write { url: url.to_owned(), from: from.to_owned(), to, record: record.text.clone() };
    match first.get(url)? {
        Seen::Silent(_) => None,
        Seen::Blank => Some(write("", record.begun(&nonce()))),
        Seen::Says(said) if said.now == record.in_force() => None,
        // By its number it is known to be what it was when another shard said, later than it, that this is in force: no
        // higher generation was in force then, or else all would have had it begun.
        Seen::Says(said) if said.record.generation == record.generation && !said.active => {
            let in_force = record.in_force();
            let other = |(other, seen): (&String, &Seen)| {
                other != url && matches!(seen, Seen::Says(said) if said.now == in_force)
            };
            second.iter().any(other).then(|| write(&said.now, in_force.clone()))
        }
        // It was put back to what it was before.
        Seen::Says(said) => Some(write(&said.now, record.begun(&nonce()))),
    }
}

/// Begins a generation that is in force nowhere.
fn begin(own: &Own<'_>, first: &View, second: &View, mut nonce: impl FnMut() -> String) -> Step {
    let shards: BTreeSet<String> = own.list.urls().map(str::to_owned).collect();
    let record = record(own, first, &shards);
    let all: BTreeSet<&String> = shards.iter().chain(&record.leaving).collect();
    let unseen: BTreeSet<String> =
        all.iter().filter(|url| !first.contains_key(**url)).map(|url| (**url).clone()).collect();
    if !unseen.is_empty() {
        return Step::Look(unseen);
    }
    if record.leaving.len() > MAX_LEAVING {
        return Step::Wait(EngineError::Malformed { what: "too many shards leave" });
    }
    // Nothing is written before all can be, so that a list that cannot come into force leaves the one before as it is.
    for url in &all {
        if let Some(Seen::Silent(reason)) = first.get(*url) {
            return Step::Wait(EngineError::of_shard(url, reason.clone()));
        }
    }
    let knows = own.known.is_some() || says(first).next().is_some();
    if !knows && own.generation > FIRST {
        return Step::Wait(EngineError::UnknownShards { generation: own.generation });
    }
    let is_begun = |seen: Option<&Seen>| match seen {
        Some(Seen::Says(said)) => !said.active && said.record == record,
        _ => false,
    };
    let from = |url: &String| match first.get(url) {
        Some(Seen::Says(said)) => said.now.clone(),
        _ => String::new(),
    };
    let missing = all.iter().filter(|url| !is_begun(first.get(**url)));
    let writes: Vec<_> = missing
        .map(|url| Write {
            url: (**url).clone(),
            from: from(url),
            to: record.begun(&nonce()),
            record: record.text.clone(),
        })
        .collect();
    // Read once more after all have said so: a server that was emptied and went back meanwhile does not say it again.
    if !writes.is_empty() || all.iter().any(|url| !is_begun(second.get(*url))) {
        return Step::Prepare(writes);
    }
    let promote = |url: &String| match second.get(url) {
        Some(Seen::Says(said)) => {
            Some(Write { url: url.clone(), from: said.now.clone(), to: record.in_force(), record: record.text.clone() })
        }
        _ => None,
    };
    let writes = shards.iter().filter_map(promote).collect();
    Step::InForce(Box::new(record), writes)
}

/// This generation, with all that the servers say of what was before.
fn record(own: &Own<'_>, first: &View, shards: &BTreeSet<String>) -> Record {
    let mut before: BTreeMap<u64, List> = own.known.map(|known| known.before.clone()).unwrap_or_default();
    let mut leaving = BTreeSet::new();
    let in_force = says(first).filter(|said| said.active).map(|said| said.record.generation).max();
    for said in says(first) {
        let record = &said.record;
        before.extend(record.before.iter().map(|(generation, list)| (*generation, list.clone())));
        if record.generation < own.generation {
            before.insert(record.generation, record.list.clone());
        }
        // What was before the one in force was told of that.
        if record.generation < own.generation && in_force.is_none_or(|in_force| record.generation >= in_force) {
            leaving.extend(record.list.urls().map(str::to_owned));
        }
        if !said.active && in_force.is_none_or(|in_force| record.generation > in_force) {
            leaving.extend(record.leaving.iter().cloned());
        }
    }
    leaving.retain(|url| !shards.contains(url) && !own.gone.contains(url));
    Record::new(own.generation, own.list.clone(), leaving, before)
}

fn says(view: &View) -> impl Iterator<Item = &Said> {
    view.values().filter_map(|seen| match seen {
        Seen::Says(said) => Some(&**said),
        Seen::Silent(_) | Seen::Blank => None,
    })
}

#[cfg(test)]
mod tests;
