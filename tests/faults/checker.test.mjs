// The checker can fail: for each promise a history that breaks it is found, and one beside it that keeps it is not.

import assert from "node:assert/strict";
import { test } from "node:test";
import { INVARIANTS, check, parse } from "./checker.mjs";

const RUN = { e: "run", dedupe_ms: 300_000, seed: 1, fault: "none", engine: "memory" };
const SESSION = { e: "session", session: "s", channels: ["a"], group: "fast" };
const SETTLED = { e: "settled" };
let op = 0;

const invoke = (mid, channel = "a") => ({ e: "publish", op: (op += 1), channel, mid, via: "g1" });
const answer = (outcome) => ({ e: "answer", op, outcome, status: outcome === "ok" ? 200 : 503 });
/** An item that is asked for and acknowledged at once. */
const stored = (mid, channel) => [invoke(mid, channel), answer("ok")];
const refused = (mid) => [invoke(mid), answer("fail")];
const deliver = (mid, more = {}) => ({ e: "deliver", session: "s", conn: 1, channel: "a", mid, ...more });
const gap = (session = "s") => ({ e: "gap", session, conn: 1, channel: "a" });
const fault = (phase, more = {}) => ({ e: "fault", name: "f", phase, ...more });

/** Which promises a history breaks, between its first and its last line. */
function broken(...records) {
  const history = [RUN, SESSION, ...records.flat(Infinity), SETTLED].map((record, at) => ({ t: at, ...record }));
  // As it is read from a file.
  const { violations } = check(parse(history.map((record) => JSON.stringify(record)).join("\n")));
  assert.ok(violations.every(({ invariant }) => invariant in INVARIANTS));
  return [...new Set(violations.map(({ invariant }) => invariant))].sort();
}

const ordinary = [stored("1"), deliver("1"), stored("2"), deliver("2")];

test("a history that keeps all promises passes, and is counted", () => {
  assert.deepEqual(broken(ordinary), []);
  const { counts } = check([RUN, SESSION, ...ordinary.flat(Infinity), ...refused("3"), SETTLED].map((record, t) => ({ t, ...record })));
  assert.deepEqual(
    [counts.published, counts.acknowledged, counts.delivered, counts.gaps, counts.lost, counts.duplicated], [3, 2, 2, 0, 0, 0]);
  assert.deepEqual([counts.fast_p50_ms, counts.fast_p99_ms], [2, 2]);
});

test("I1: what nobody published, or not yet, or to another channel", () => {
  assert.deepEqual(broken(ordinary, deliver("9")), ["I1"]);
  assert.deepEqual(broken(ordinary, deliver("3"), stored("3")), ["I1", "I5"]);
  assert.deepEqual(broken(ordinary, stored("3", "b"), deliver("3", { channel: "b" })), ["I1"]);
});

test("I2: the same item again, also on another connection of the session", () => {
  assert.deepEqual(broken(ordinary, deliver("2", { conn: 2 })), ["I2"]);
  assert.deepEqual(broken(ordinary, fault("begin", { loses: "all" }), gap(), deliver("2")), [], "it was lost, and told");
  assert.deepEqual(broken(ordinary, fault("begin", { loses: "all" }), deliver("2")), ["I2"], "it was not told");
});

test("I3: what was published later comes first", () => {
  assert.deepEqual(broken(stored("1"), deliver("1"), stored("2"), stored("3"), deliver("3"), deliver("2")), ["I3"]);
  const [two, three] = [invoke("2"), invoke("3")];
  const both = [two, three, { ...answer("ok"), op: two.op }, { ...answer("ok"), op: three.op }];
  assert.deepEqual(broken(stored("1"), deliver("1"), both, deliver("3"), deliver("2")), [], "they overlap");
  const numbered = (number) => [stored(`m${number}`), deliver(`m${number}`, { n: number })];
  assert.deepEqual(broken(numbered(2), numbered(1)), ["I3"]);
});

test("I3: two sessions see two orders", () => {
  const [two, three] = [invoke("2"), invoke("3")];
  const both = [two, three, { ...answer("ok"), op: two.op }, { ...answer("ok"), op: three.op }];
  const other = { ...SESSION, session: "o" };
  const to = (session, mids) => mids.map((mid) => deliver(mid, { session }));
  assert.deepEqual(broken(other, stored("1"), both, to("s", ["1", "2", "3"]), to("o", ["1", "2", "3"])), []);
  assert.deepEqual(broken(other, stored("1"), both, to("s", ["1", "2", "3"]), to("o", ["1", "3", "2"])), ["I3"]);
});

test("I4: an acknowledged item is missing between two", () => {
  assert.deepEqual(broken(stored("1"), deliver("1"), stored("2"), stored("3"), deliver("3")), ["I4"]);
  assert.deepEqual(broken(stored("1"), deliver("1"), refused("2"), stored("3"), deliver("3")), [], "it was refused");
  const lost = fault("begin", { loses: "all" });
  const missing = [stored("1"), deliver("1"), stored("2"), lost];
  assert.deepEqual(broken(missing, gap(), stored("3"), deliver("3")), [], "a gap covers it");
  assert.deepEqual(broken(missing, stored("3"), deliver("3"), gap()), ["I4"], "the gap comes too late");
  assert.deepEqual(broken(lost, gap(), stored("1"), deliver("1"), stored("2"), stored("3"), deliver("3")), ["I4"], "too early");
});

test("I5: an acknowledged item never comes, though nothing comes behind it", () => {
  assert.deepEqual(broken(ordinary, stored("3")), ["I5"]);
  assert.deepEqual(broken(ordinary, { e: "leave", session: "s" }, stored("3")), [], "it had left");
  assert.deepEqual(broken(stored("0"), ordinary), [], "it had not come yet");
});

test("I6: an item that was published again comes twice", () => {
  assert.deepEqual(broken(stored("1"), deliver("1"), refused("2"), stored("2"), deliver("2")), []);
  assert.deepEqual(broken(stored("1"), deliver("1"), refused("2"), stored("2"), deliver("2"), deliver("2")), ["I6"]);
  const late = { ...invoke("1"), t: 400_000 };
  assert.deepEqual(broken(stored("1"), deliver("1"), late, answer("ok"), deliver("1")), [], "behind the window");
});

test("I7: a gap without a reason, or one that hides what nothing lost", () => {
  assert.deepEqual(broken(ordinary, gap()), ["I7"]);
  assert.deepEqual(broken(ordinary, fault("begin", { loses: "nothing" }), gap()), ["I7"]);
  assert.deepEqual(broken(ordinary, fault("begin", { loses: "all", sessions: ["o"] }), gap()), ["I7"], "of another session");
  const suffix = fault("begin", { loses: "suffix" });
  assert.deepEqual(broken(stored("1"), deliver("1"), stored("2"), suffix, gap(), stored("3"), deliver("3")), ["I7"]);
  assert.deepEqual(broken(stored("1"), deliver("1"), suffix, stored("2"), gap(), stored("3"), deliver("3")), []);
});

test("a lost suffix is told to all, also to those who saw nothing of it", () => {
  const suffix = fault("begin", { loses: "suffix" });
  const lost = [stored("1"), deliver("1"), suffix, stored("2"), stored("3")];
  const after = [fault("end"), stored("4"), deliver("4")];
  assert.deepEqual(broken(lost, after), ["I4"], "it saw nothing of it, and was not told");
  assert.deepEqual(broken(lost, gap(), after), []);
  assert.deepEqual(broken(lost, deliver("2"), after), ["I4"], "it saw 2 and was not told that 3 is lost");
  assert.deepEqual(broken(lost, deliver("2"), gap(), after), []);
});

test("I8: a refused item comes twice", () => {
  assert.deepEqual(broken(ordinary, refused("3"), deliver("3")), []);
  assert.deepEqual(broken(ordinary, refused("3"), deliver("3"), deliver("3")), ["I8"]);
});

test("I9: a measure is over its bound, or is none", () => {
  const measure = (value) => ({ e: "measure", what: "queue", value, bound: 10 });
  assert.deepEqual(broken(ordinary, measure(10)), []);
  assert.deepEqual(broken(ordinary, measure(11)), ["I9"]);
  assert.deepEqual(broken(ordinary, measure(NaN)), ["I9"]);
});

test("I10: a fast session gets its items only when the slow one reads again", () => {
  const [stall, unstall] = ["stall", "unstall"].map((e) => ({ e, session: "slow" }));
  assert.deepEqual(broken(ordinary, stall, stored("3"), deliver("3"), unstall), []);
  assert.deepEqual(broken(ordinary, stall, stored("3"), unstall, deliver("3")), ["I10"]);
  assert.deepEqual(broken(ordinary, stall), ["form"]);
});

test("I11: a plain connection is closed, or is not answered", () => {
  const plain = (e, id) => ({ e, conn: "p", id });
  assert.deepEqual(broken(ordinary, plain("ask", 1), plain("reply", 1)), []);
  assert.deepEqual(broken(ordinary, plain("ask", 1), plain("reply", 1), plain("ask", 2)), ["I11"]);
  assert.deepEqual(broken(ordinary, plain("cut")), ["I11"]);
});

test("a history that ends early, has no beginning or a session that got nothing is no proof", () => {
  const records = [RUN, SESSION, ...ordinary.flat(Infinity), SETTLED].map((record, t) => ({ t, ...record }));
  const forms = (history) => check(history).violations.map(({ invariant }) => invariant);
  assert.deepEqual(forms(records.slice(0, -1)), ["form"]);
  assert.deepEqual(forms(records.slice(1)), ["form"]);
  assert.deepEqual(broken(ordinary, { ...SESSION, session: "o" }), ["form"]);
});
