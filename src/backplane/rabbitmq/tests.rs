//! What follows from a stream alone, without a broker.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::engine::{Channel, MessageId, ReadLimit, Retention};
use super::super::position::{EntryId, Place, Region};
use super::super::recover::{Recovery, ReplayLimit, Why};
use super::super::sink::{Delivery, SinkLimit, sink};
use super::envelope::{Content, Envelope};
use super::index::Index;
use super::settings::{Access, Settings};

const ALL: ReadLimit = ReadLimit { max_entries: usize::MAX, max_bytes: usize::MAX };
const REPLAY: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

fn settings() -> Settings {
    let access = Access { url: "amqp://h".to_owned(), username: None, password: None };
    let retention = Retention { max_age: Duration::from_secs(1), ..Retention::default() };
    Settings { retention, dedupe_window: Duration::from_secs(1), ..Settings::new(access) }
}

fn index() -> Index {
    Index::new(Region::new("eu").unwrap())
}

fn channel(name: &str) -> Channel {
    Channel::new(name).unwrap()
}

fn message(name: &str, id: &str, stamp_ms: u64) -> Envelope {
    let (channel, message) = (channel(name), MessageId::new(id).unwrap());
    Envelope {
        stamp_ms,
        nonce: 7,
        content: Content::Item { channel, message, payload: Bytes::from_static(b"payload") },
    }
}

/// The entries of a channel that an index has, as of a time.
fn entries(index: &mut Index, name: &str, now_ms: u64) -> Vec<(EntryId, String)> {
    let slice =
        index.with_log(&channel(name), now_ms, &settings(), |log, region, other| log.read(region, None, ALL, other));
    let entries = slice.entries.iter();
    entries.map(|entry| (entry.position.id, entry.message.as_str().to_owned())).collect()
}

#[test]
fn a_copy_begins_the_window_anew_and_ids_grow_whatever_the_clocks_say() {
    let (mut index, settings) = (index(), settings());
    let mut take = |offset, stamp| {
        let outcome = index.take(offset, message("a", "m", stamp), stamp, &settings).unwrap();
        (outcome.is_copy, outcome.position.id)
    };
    let id = |ms, seq| EntryId { ms, seq };
    assert_eq!(take(0, 1000), (false, id(1000, 0)));
    assert_eq!(take(1, 1999), (true, id(1000, 0)));
    assert_eq!(take(2, 2998), (true, id(1000, 0)), "less than a window after the copy");
    assert_eq!(take(3, 3998), (false, id(3998, 3)));
    assert_eq!(take(4, 10), (true, id(3998, 3)), "a clock that is behind");
    assert_eq!(take(5, 4998), (false, id(4998, 5)));
}

#[test]
fn room_is_made_from_the_oldest_of_the_stream_and_the_newest_stays() {
    let settings = Settings { max_index_bytes: 2000, ..settings() };
    let mut index = index();
    for nth in 0..100 {
        let name = if nth % 2 == 0 { "even" } else { "odd" };
        index.take(nth, message(name, &format!("m{nth}"), 1000 + nth), 1000 + nth, &settings);
    }
    let (even, odd) = (entries(&mut index, "even", 1099), entries(&mut index, "odd", 1099));
    assert!((2..=10).contains(&(even.len() + odd.len())), "{even:?} {odd:?}");
    assert_eq!(odd.last().map(|(_, id)| id.as_str()), Some("m99"));
    assert!(index.find(&channel("odd"), &MessageId::new("m99").unwrap(), 1099, &settings).is_some());
    assert!(index.find(&channel("even"), &MessageId::new("m0").unwrap(), 1099, &settings).is_none());
    // All of it expires, and nothing is left.
    let settings = Settings { dedupe_window: Duration::from_millis(1), ..settings };
    let probe = Envelope { stamp_ms: 9000, nonce: 1, content: Content::Probe };
    assert!(index.take(100, probe, 9000, &settings).is_none());
    assert!(entries(&mut index, "odd", 9000).is_empty());
}

#[test]
fn what_is_built_is_not_pushed_and_what_comes_then_is() {
    let (mut index, settings) = (index(), settings());
    let (sink, mut source) = sink(SinkLimit::default());
    index.subscribe(&channel("a"), &sink);
    index.take(0, message("a", "m1", 1000), 1000, &settings);
    assert_eq!(source.try_recv(), None);
    index.is_building = false;
    assert_eq!(index.disrupt(), [channel("a")]);
    assert_eq!(source.try_recv(), Some(Delivery::Disrupted(channel("a"))));
    index.take(1, message("a", "m2", 1001), 1001, &settings);
    assert!(matches!(source.try_recv(), Some(Delivery::Entry(_, entry)) if entry.message.as_str() == "m2"));
    assert!(index.unsubscribe(&channel("a")) && !index.unsubscribe(&channel("a")));
    index.take(2, message("a", "m3", 1002), 1002, &settings);
    assert_eq!((source.try_recv(), index.subscriptions()), (None, 0));
}

#[test]
fn a_place_in_a_stream_that_is_gone_is_of_another_lineage_and_one_that_was_trimmed_is_not() {
    let (mut index, settings) = (index(), settings());
    let (sink, _source) = sink(SinkLimit::default());
    for (is_other, why) in [(false, Why::Trimmed), (true, Why::Lineage)] {
        index.subscribe(&channel("a"), &sink);
        let mut seen = Vec::new();
        for nth in 0..3 {
            seen.push(index.take(nth, message("a", &format!("m{nth}"), 1000), 1000, &settings).unwrap().position);
        }
        index.restart(is_other);
        index.take(1, message("a", "new", 2000), 2000, &settings);
        for place in seen {
            let slice = index.with_log(&channel("a"), 2000, &settings, |log, region, other| {
                log.read(region, Some(&place), ALL, other)
            });
            assert_eq!(slice.recover(&Place::After(place), REPLAY), Recovery::Gap(why));
        }
    }
}

/// A stream of messages of few names, with the stamps of publishers whose clocks differ by less than 300 ms.
fn stream() -> impl Strategy<Value = Vec<Envelope>> {
    let message = (0..3_usize, 0..6_usize, 0..400_u64, 0..300_u64);
    proptest::collection::vec(message, 1..200).prop_map(|messages| {
        let mut now = 10_000;
        let of = |(name, id, later, behind): (usize, usize, u64, u64)| {
            now += later;
            message_of(name, id, now - behind)
        };
        messages.into_iter().map(of).collect()
    })
}

fn message_of(name: usize, id: usize, stamp_ms: u64) -> Envelope {
    message(["a", "b", "c"][name], &format!("m{id}"), stamp_ms)
}

proptest! {
    #[test]
    fn who_begins_in_the_middle_comes_to_the_same_entries(messages in stream(), skipped in 0.0..1.0_f64) {
        let settings = settings();
        let last_ms = messages.iter().map(|message| message.stamp_ms).max().unwrap();
        let (mut whole, mut part) = (index(), index());
        // As far back as is read of a stream: the retention, the window, and what clocks differ by.
        let earliest = last_ms.saturating_sub(2_000 + 600);
        let needed = messages.iter().position(|message| message.stamp_ms >= earliest).unwrap();
        let begin = (needed as f64 * skipped) as usize;
        for (offset, message) in (0..).zip(&messages) {
            whole.take(offset, message.clone(), last_ms, &settings);
            if offset as usize >= begin {
                part.take(offset, message.clone(), last_ms, &settings);
            }
        }
        for name in ["a", "b", "c"] {
            prop_assert_eq!(entries(&mut whole, name, last_ms), entries(&mut part, name, last_ms));
        }
    }
}
