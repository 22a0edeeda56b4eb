// Judges the history of a run of the chat in several regions: whether what its users were promised held. It reads the
// history and nothing else, so that any run can be judged again:
//
//   node checker.mjs HISTORY.jsonl       prints what was counted; exit code 1 if a promise was broken
//
// A history is one JSON object a line, in the order in which one process saw it happen; `t` is milliseconds.
//
//   run      seed                                        the first line
//   user     user, room, region                          somebody comes, and stays to the end
//   say      user, id, home                              what the user says, and whether it has its own region's gateway
//   ack      user, id, seq                               a backend has answered: it is stored and published
//   show     user, id, seq, live, position, home         it was given to the application; not live: from the history
//   again    user, id, position                          it came again, and the client's own check held it back
//   gap      user, region, why                           the gateway told that something may be missing
//   history  user, more                                  a page of the history has come; the last one, or not
//   wire     user, published, given                      at the end: messages that came to the client's library, and that it gave
//   phase    quiet                                       from here on nothing fails, or something does
//   fault    name, phase: begin | end, regions
//   stored   room, seq, id, published                    at the end: what the database has
//   settled                                              all faults are over, and what was to come has come

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const PROMISES = {
  P1: "what is shown was said, in that room",
  P2: "nothing is shown twice",
  P3: "what was acknowledged is shown to everyone who was there before it was said",
  P4: "what was acknowledged is in the database, published, and numbers have no holes",
  P5: "a message has one number, whoever says it and however often",
  P6: "what one region publishes comes in its order",
  P7: "whatever is said is acknowledged in the end",
  form: "the history is whole",
};

/** Reads the text of a history. */
export const parse = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));

/** Judges a history: `{ violations: [{ promise, detail }], counts }`. */
export function check(records) {
  const violations = [];
  const broken = (promise, detail) => violations.push({ promise, detail });
  if (records[0]?.e !== "run") broken("form", "the first line is no run");
  if (!records.some(({ e }) => e === "settled")) broken("form", "the run did not settle");
  const counts = {
    said: 0, acknowledged: 0, live: 0, fetched: 0, gaps: 0, lost: 0, unfetched: 0, shown_twice: 0, library_dropped: 0, client_dropped: 0,
  };
  const users = new Map();
  const messages = new Map();
  const delays = { within: [], across: [], acknowledged: [] };
  const at = { index: 0, quiet: false };
  const lineOf = {
    user: ({ user, room, region }) => users.set(user, newcomer(room, region)),
    say: (record) => said(record, { users, messages, counts, broken, at }),
    ack: (record) => acknowledged(record, { messages, counts, broken, at, delays }),
    show: (record) => shown(record, { users, messages, counts, broken, at, delays }),
    again: ({ user, position }) => {
      counts.client_dropped += 1;
      ordered(user, users.get(user), position, broken);
    },
    gap: ({ user }) => {
      counts.gaps += 1;
      users.get(user).gaps.push(at.index);
    },
    // What is published behind a history may be what came before it.
    history: ({ user, more }) => {
      const state = users.get(user);
      state.places.clear();
      if (!more) state.since ??= at.index;
    },
    wire: ({ published, given }) => (counts.library_dropped += published - given),
    phase: ({ quiet }) => (at.quiet = quiet),
  };
  for (const [index, record] of records.entries()) {
    at.index = index;
    lineOf[record.e]?.(record);
  }
  for (const [name, user] of users) whole(name, user, messages, counts, broken);
  stored(records.filter(({ e }) => e === "stored"), messages, broken);
  for (const { id, user, acked } of messages.values()) if (acked === undefined) broken("P7", `${id} of ${user} was never acknowledged`);
  return { violations, counts: { ...counts, ...Object.fromEntries(Object.entries(delays).flatMap(percentiles)) } };
}

/** `since`: from where on in the history it is owed what is said. */
const newcomer = (room, region) => ({ room, region, since: undefined, shown: new Map(), gaps: [], places: new Map() });

function said({ user, id, home, t }, { users, messages, counts, broken, at }) {
  const { room, region } = users.get(user);
  if (messages.has(id)) return broken("form", `${id} was said twice`);
  counts.said += 1;
  messages.set(id, { id, user, room, region, home, t, index: at.index, quiet: at.quiet });
}

function acknowledged({ id, seq, t }, { messages, counts, broken, at, delays }) {
  const message = messages.get(id);
  if (!message) return broken("form", `an answer to ${id}, which nobody said`);
  if (message.acked !== undefined) return broken("form", `${id} was acknowledged twice`);
  counts.acknowledged += 1;
  message.acked = at.index;
  numbered(message, seq, broken);
  if (message.quiet && at.quiet && message.home) delays.acknowledged.push(t - message.t);
}

/** P5. */
function numbered(message, seq, broken) {
  message.seq ??= seq;
  if (message.seq !== seq) broken("P5", `${message.id} is number ${message.seq} and ${seq}`);
}

/** P1, P2, P5, P6, and how long it took. */
function shown({ user, id, seq, live, position, home, t }, { users, messages, counts, broken, at, delays }) {
  const reader = users.get(user);
  const message = messages.get(id);
  if (!message || message.room !== reader.room) return broken("P1", `${user} was shown ${id}, which nobody said in ${reader.room}`);
  if (reader.shown.has(id)) {
    counts.shown_twice += 1;
    broken("P2", `${user} was shown ${id} twice`);
  }
  reader.shown.set(id, live);
  numbered(message, seq, broken);
  if (live) counts.live += 1;
  else if (owes(reader, message)) counts.fetched += 1;
  if (live) ordered(user, reader, position, broken);
  if (live && message.quiet && at.quiet && message.home && home) {
    delays[message.region === reader.region ? "within" : "across"].push(t - message.t);
  }
}

const owes = (reader, message) => reader.since !== undefined && message.index > reader.since;

/** P6: positions of one life of a region's log, REGION.EPOCH.NUMBER.ENTRY, rise. */
function ordered(user, reader, position, broken) {
  if (!position) return;
  const [region, epoch, n] = position.split(".");
  const before = reader.places.get(`${region}.${epoch}`) ?? 0;
  if (Number(n) <= before) broken("P6", `${user} got ${position} behind number ${before} of it`);
  reader.places.set(`${region}.${epoch}`, Number(n));
}

/** P3: also what was told as a gap has to have come, from the history. */
function whole(name, reader, messages, counts, broken) {
  if (reader.since === undefined) return broken("form", `${name} never came in`);
  for (const message of messages.values()) {
    if (message.room !== reader.room || message.acked === undefined || !owes(reader, message) || reader.shown.has(message.id)) continue;
    if (reader.gaps.some((gap) => gap > message.index)) {
      counts.unfetched += 1;
      broken("P3", `${name} was told of a gap, and never got ${message.id} of ${message.user} (number ${message.seq})`);
    } else {
      counts.lost += 1;
      broken("P3", `${name} never got ${message.id} of ${message.user} (number ${message.seq}), and was told of no gap`);
    }
  }
}

/** P4. */
function stored(rows, messages, broken) {
  const next = new Map();
  const ids = new Map();
  for (const { room, seq, id, published } of rows) {
    const wanted = next.get(room) ?? 1;
    if (seq !== wanted) broken("P4", `${room} has number ${seq} behind ${wanted - 1}`);
    next.set(room, seq + 1);
    ids.set(id, { room, seq });
    if (!published) broken("P4", `${id} of ${room} was never published`);
  }
  for (const { id, room, acked, seq } of messages.values()) {
    const row = ids.get(id);
    if (acked === undefined) continue;
    if (row?.room !== room || row.seq !== seq) broken("P4", `${id} was acknowledged as number ${seq} of ${room}, and is ${JSON.stringify(row)}`);
  }
}

function percentiles([name, all]) {
  all.sort((one, other) => one - other);
  const value = (share) => all[Math.min(all.length - 1, Math.floor(all.length * share))] ?? null;
  return [[`${name}_count`, all.length], [`${name}_p50_ms`, value(0.5)], [`${name}_p99_ms`, value(0.99)]];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { violations, counts } = check(parse(readFileSync(process.argv[2], "utf8")));
  console.log(JSON.stringify(counts));
  for (const { promise, detail } of violations) console.log(`${promise}: ${PROMISES[promise]}: ${detail}`);
  process.exitCode = violations.length > 0 ? 1 : 0;
}
