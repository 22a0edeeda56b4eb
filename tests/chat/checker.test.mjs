// The checker finds each broken promise in a history that has it, and nothing in one that has none.

import assert from "node:assert/strict";
import { test } from "node:test";
import { check } from "./checker.mjs";

/** Two users in two regions, of whom the first says three messages; the second gets the third by the history, behind a gap. */
const sound = () => {
  const position = (n) => `eu.a.${n}.1-0`;
  const records = [
    { e: "run", seed: 1 },
    { e: "user", user: "ann", room: "r", region: "eu" }, { e: "user", user: "bob", room: "r", region: "us" },
    { e: "history", user: "ann", more: false }, { e: "history", user: "bob", more: false },
    { e: "phase", quiet: true },
    { e: "say", user: "ann", id: "1", home: true },
    { e: "show", user: "ann", id: "1", seq: 1, live: true, position: position(1), home: true },
    { e: "ack", user: "ann", id: "1", seq: 1 },
    { e: "show", user: "bob", id: "1", seq: 1, live: true, position: position(1), home: true },
    { e: "phase", quiet: false },
    { e: "say", user: "ann", id: "2", home: true }, { e: "say", user: "ann", id: "3", home: true },
    { e: "show", user: "ann", id: "2", seq: 2, live: true, position: position(2), home: true },
    { e: "show", user: "ann", id: "3", seq: 3, live: true, position: position(3), home: true },
    { e: "ack", user: "ann", id: "2", seq: 2 }, { e: "ack", user: "ann", id: "3", seq: 3 },
    { e: "show", user: "bob", id: "2", seq: 2, live: true, position: position(2), home: true },
    { e: "gap", user: "bob", region: "eu", why: "lineage" },
    { e: "history", user: "bob", more: false },
    { e: "show", user: "bob", id: "3", seq: 3, live: false, home: true },
    { e: "again", user: "bob", id: "2", position: position(2) },
    { e: "wire", user: "ann", published: 3, given: 3 }, { e: "wire", user: "bob", published: 5, given: 3 },
    ...[1, 2, 3].map((seq) => ({ e: "stored", room: "r", seq, id: String(seq), published: true })),
    { e: "settled" },
  ];
  return records.map((record, at) => ({ t: at * 10, ...record }));
};

const find = (records, fields) => records.findIndex((record) => Object.entries(fields).every(([name, value]) => record[name] === value));

test("a sound history breaks nothing, and is counted", () => {
  const { violations, counts } = check(sound());
  assert.deepEqual(violations, []);
  assert.deepEqual(counts, {
    said: 3, acknowledged: 3, live: 5, fetched: 1, gaps: 1, lost: 0, unfetched: 0, shown_twice: 0, library_dropped: 2, client_dropped: 1,
    within_count: 1, within_p50_ms: 10, within_p99_ms: 10, across_count: 1, across_p50_ms: 30, across_p99_ms: 30,
    acknowledged_count: 1, acknowledged_p50_ms: 20, acknowledged_p99_ms: 20,
  });
});

const shows = (id, user = "bob") => ({ e: "show", user, id });
for (const [name, promise, change, counted = {}] of [
  ["something that nobody said", "P1", (all) => (all[find(all, shows("2"))].id = "other")],
  ["something of another room", "P1", (all) => all.splice(3, 0, { e: "user", user: "eve", room: "q", region: "ap" },
    { e: "history", user: "eve" }, { e: "say", user: "eve", id: "q" }, { ...all[find(all, shows("1"))], id: "q" })],
  ["something twice", "P2", (all) => all.splice(find(all, { e: "gap" }), 0, { ...all[find(all, shows("1"))], position: "us.b.1.1-0" }), { shown_twice: 1 }],
  ["a message that never came", "P3", (all) => all.splice(find(all, shows("2")), 1), { unfetched: 1 }],
  ["a message that never came, without a gap", "P3", (all) => {
    all.splice(find(all, shows("2")), 1);
    all.splice(find(all, { e: "gap" }), 1);
  }, { lost: 1 }],
  ["a gap before what is missing", "P3", (all) => {
    const [gap] = all.splice(find(all, { e: "gap" }), 1);
    all.splice(find(all, { e: "say", id: "2" }), 0, gap);
    all.splice(find(all, shows("2")), 1);
  }, { lost: 1 }],
  ["what was acknowledged and is not stored", "P4", (all) => all.splice(find(all, { e: "stored", id: "3" }), 1)],
  ["a hole in the numbers", "P4", (all) => all.splice(find(all, { e: "stored", id: "2" }), 1)],
  ["what is stored and not published", "P4", (all) => (all[find(all, { e: "stored", id: "2" })].published = false)],
  ["two numbers", "P5", (all) => (all[find(all, { e: "ack", id: "2" })].seq = 3)],
  ["another order", "P6", (all) => ([all[find(all, shows("2", "ann"))].position, all[find(all, shows("3", "ann"))].position] = ["eu.a.3.1-0", "eu.a.2.1-0"])],
  ["a place behind that of a message that was held back", "P6", (all) => all.splice(find(all, { e: "wire" }), 0, { ...all[find(all, { e: "again" })], position: "eu.a.1.1-0" })],
  ["no answer", "P7", (all) => all.splice(find(all, { e: "ack", id: "3" }), 1)],
  ["a run that did not settle", "form", (all) => all.splice(find(all, { e: "settled" }), 1)],
  ["a user who never came in", "form", (all) => all.splice(3, 0, { e: "user", user: "eve", room: "r", region: "ap" })],
]) {
  test(`${name} is found`, () => {
    const records = sound();
    change(records);
    const { violations, counts } = check(records);
    assert.ok(violations.some((violation) => violation.promise === promise), JSON.stringify(violations));
    for (const [key, value] of Object.entries(counted)) assert.equal(counts[key], value, key);
  });
}
