// Judges the history of a run: what was published, what came to whom, which faults there were, and whether the promises
// of docs/backplane.md held. It reads the history and nothing else, so that any run can be judged again:
//
//   node checker.mjs HISTORY.jsonl       prints what was counted; exit code 1 if a promise was broken
//
// A history is one JSON object a line, in the order in which one process saw it happen; `t` is milliseconds.
//
//   run      dedupe_ms, seed, fault, engine                        the first line
//   publish  op, channel, mid, via                                 a request that publishes goes out
//   answer   op, outcome: ok | fail | info, status                 200; refused, or not stored for sure; nobody knows
//   session  session, channels, group: fast | slow | other         a user begins, who comes back until `leave`
//   leave    session                                               the user goes
//   connect  session, conn, via                                    a connection of it
//   resume   session, conn, channel, cursor: mid | null            from where on it wants a channel
//   deliver  session, conn, channel, mid, n, region, position      what came; of its place in the log what is known
//   gap      session, conn, channel, region                        it was told that items may be missing, of one region
//   sub      session, conn, channel, region, state                 a subscription is in force, in a region's log
//   owed                                                           all sessions are owed what is published in any region
//   close    session, conn, code                                   the connection's end
//   fault    name, phase: begin | end, loses, sessions             see `Faults`
//   stall, unstall   session                                       a slow client stops reading, and goes on
//   measure  what, value, bound                                    what must not be larger than its bound
//   ask, reply, cut  conn, id                                      a connection of a rule without a backplane
//   settled                                                        all faults are over, and what was to come has come
//
// Where regions are named, order is by the numbers of each region's log, and what is of no region's log is in no order. Else
// order is by real time alone: of two items, one is before the other if it was acknowledged before the other was first
// asked for. Whatever the engine does with items that overlap is right, as long as all sessions see it alike.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const INVARIANTS = {
  I1: "what is delivered was published, to a channel that the session has",
  I2: "no item comes twice to a session",
  I3: "items come in the order of their channel",
  I4: "no hole: between two items of a session nothing is missing that no gap covers",
  I5: "what was acknowledged comes to each session that was subscribed, or a gap covers it",
  I6: "an item that was published again with its id comes once",
  I7: "no gap without a fault that loses what it covers",
  I8: "an item that was refused comes at most once",
  I9: "queues and memory stay within their bounds",
  I10: "a slow client does not delay a fast one",
  I11: "rules without a backplane do not notice",
  form: "the history is whole",
};

/** Reads the text of a history. */
export const parse = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));

/** Judges a history: `{ violations: [{ invariant, detail }], counts }`. */
export function check(records) {
  const violations = [];
  const broken = (invariant, detail) => violations.push({ invariant, detail });
  const run = records[0]?.e === "run" ? records[0] : (broken("form", "the first line is no run"), { dedupe_ms: Infinity });
  const settled = records.findIndex(({ e }) => e === "settled");
  if (settled < 0) broken("form", "the run did not settle");
  const owed = records.findIndex(({ e }) => e === "owed");
  const items = publications(records, broken);
  const faults = new Faults(records);
  const sessions = journeys(records, items, broken);
  const counts = {
    published: items.size,
    acknowledged: [...items.values()].filter(({ acked }) => acked !== undefined).length,
    delivered: 0, gaps: 0, resumes: records.filter(({ e, cursor }) => e === "resume" && cursor !== null).length,
    lost: 0, duplicated: 0, again: 0, fast_p50_ms: null, fast_p99_ms: null,
  };
  const byChannel = new Map();
  for (const item of items.values()) {
    if (!byChannel.has(item.channel)) byChannel.set(item.channel, []);
    byChannel.get(item.channel).push(item);
  }
  for (const session of sessions.values()) {
    for (const [channel, events] of session.channels) {
      const context = { session, channel, events, items, faults, run, counts, broken };
      unrepeated(context);
      ordered(context);
      whole({ ...context, published: byChannel.get(channel) ?? [], settled, owed });
    }
  }
  // Where items were lost, one may stand in two lives of a log at two places.
  if (owed >= 0) placed(sessions, broken);
  else if (!faults.all.some(({ loses }) => loses !== "nothing")) agreed(sessions, broken);
  bounded(records, broken);
  undelayed(records, items, sessions, counts, broken);
  untouched(records, broken);
  return { violations, counts };
}

/** Each item, by channel and id: when it was first asked for and acknowledged, how often it was tried. */
function publications(records, broken) {
  const items = new Map();
  const ops = new Map();
  records.forEach((record, at) => {
    if (record.e === "publish") {
      const key = `${record.channel} ${record.mid}`;
      const item = items.get(key) ?? { channel: record.channel, mid: record.mid, asked: at, askedT: record.t, tries: 0 };
      item.tries += 1;
      item.lastT = record.t;
      items.set(key, item);
      ops.set(record.op, item);
    } else if (record.e === "answer") {
      const item = ops.get(record.op);
      if (!item) return broken("form", `an answer to no publication: ${record.op}`);
      if (record.outcome === "ok") item.acked ??= at;
    }
  });
  return items;
}

/** What happened to each session, channel by channel. */
function journeys(records, items, broken) {
  const sessions = new Map();
  records.forEach((record, at) => {
    if (record.e === "session") {
      const channels = new Map(record.channels.map((channel) => [channel, []]));
      sessions.set(record.session, { name: record.session, group: record.group ?? "other", channels, left: Infinity });
    } else if (record.e === "leave") {
      sessions.get(record.session).left = at;
    } else if (record.e === "deliver" || record.e === "gap") {
      const events = sessions.get(record.session)?.channels.get(record.channel);
      const item = record.e === "deliver" ? items.get(`${record.channel} ${record.mid}`) : undefined;
      if (!events) broken("I1", `${record.session} has not asked for ${record.channel}`);
      else if (record.e === "gap") events.push({ gap: true, at, region: record.region });
      else if (!item || item.asked > at) broken("I1", `${record.session} got ${record.mid} of ${record.channel}, which nobody published`);
      else events.push({ item, at, t: record.t, n: record.n, region: record.region, position: record.position });
    }
  });
  return sessions;
}

/**
 * The faults, and what each explains. `loses`: `nothing`; `all`: whatever was acknowledged before a gap is told;
 * `suffix`: what was acknowledged since the fault began. `sessions` are those that it concerns, or all; `region` the one
 * whose log it is, or all.
 */
class Faults {
  constructor(records) {
    this.all = [];
    records.forEach((record, at) => {
      if (record.e !== "fault") return;
      if (record.phase === "begin") this.all.push({ loses: "nothing", ...record, begin: at, end: Infinity });
      else this.all.findLast(({ name }) => name === record.name).end = at;
    });
  }

  of(session) {
    return this.all.filter(({ loses, sessions }) => loses !== "nothing" && (!sessions || sessions.includes(session)));
  }

  explainsGap(session, { at, region }) {
    return this.of(session).some((fault) => fault.begin < at && (fault.region === undefined || fault.region === region));
  }

  /** Whether a gap at this place may swallow the item. */
  explainsLoss(session, item, gap) {
    return this.explainsGap(session, gap)
      && this.of(session).some(({ begin, loses }) => begin < gap.at && (loses === "all" || item.acked > begin));
  }
}

/** I2, I6, I8: each item once. After a gap that a loss explains, what was lost may be stored again. */
function unrepeated({ session, channel, events, faults, run, counts, broken }) {
  const seen = new Map();
  let gap = { at: -1 };
  for (const event of events) {
    if (event.gap) {
      gap = event;
      counts.gaps += 1;
      const where = event.region === undefined ? "" : ` of ${event.region}`;
      if (!faults.explainsGap(session.name, event)) broken("I7", `${session.name} was told of a gap${where} in ${channel}`);
      continue;
    }
    counts.delivered += 1;
    const { item } = event;
    const before = seen.get(item);
    seen.set(item, event.at);
    if (before === undefined) continue;
    if (gap.at > before && faults.explainsGap(session.name, gap)) {
      counts.again += 1;
    } else if (item.lastT - item.askedT <= run.dedupe_ms) {
      counts.duplicated += 1;
      const invariant = item.acked === undefined ? "I8" : item.tries > 1 ? "I6" : "I2";
      broken(invariant, `${session.name} got ${item.mid} of ${channel} twice`);
    }
  }
}

/** I3 within a session: nothing comes behind what was asked for only after it was acknowledged. */
function ordered({ session, channel, events, broken }) {
  if (events.some(({ region }) => region !== undefined)) return orderedByRegion({ session, channel, events, broken });
  const seen = new Set();
  let latest, number;
  for (const event of events) {
    if (event.gap) number = undefined;
    if (event.gap || seen.has(event.item)) continue;
    const { item } = event;
    seen.add(item);
    if (latest && item.acked < latest.asked) broken("I3", `${session.name} got ${item.mid} of ${channel} behind ${latest.mid}`);
    if (!latest || item.asked > latest.asked) latest = item;
    if (event.n !== undefined) {
      if (number !== undefined && event.n <= number) broken("I3", `${session.name} got number ${event.n} of ${channel} behind ${number}`);
      number = event.n;
    }
  }
}

/** The same where each region has a log of its own: numbers grow, but behind a gap. */
function orderedByRegion({ session, channel, events, broken }) {
  const numbers = new Map();
  for (const { gap, region, n, item } of events) {
    if (gap) {
      numbers.delete(region);
    } else {
      if (n <= numbers.get(region)) broken("I3", `${session.name} got ${item.mid} of ${channel}, number ${n} of ${region}, behind ${numbers.get(region)}`);
      numbers.set(region, n);
    }
  }
}

/** I4, I5, I7: what was acknowledged since the session's first item came, or a gap that a fault explains covers it. */
function whole({ session, channel, events, published, settled, owed, faults, counts, broken }) {
  const first = events.find(({ gap }) => !gap);
  if (!first) return broken("form", `${session.name} never got anything of ${channel}`);
  const got = new Set(events.map(({ item }) => item));
  const until = Math.min(session.left, settled < 0 ? Infinity : settled);
  for (const item of published) {
    if (item.acked === undefined || got.has(item)) continue;
    // Before its subscription was in force for certain, or as it left.
    if (item.asked < Math.max(first.at, owed) || item.acked > until) continue;
    // In one log what is around the item says where it would have been; of several, only when.
    const inOneLog = first.region === undefined;
    const behind = inOneLog ? events.findIndex((event) => !event.gap && event.item.asked > item.acked) : -1;
    const before = inOneLog
      ? events.findLastIndex((event) => !event.gap && event.item.acked < item.asked)
      : events.findIndex(({ at }) => at > item.asked) - 1;
    const gaps = events.slice(before + 1, behind < 0 ? undefined : behind).filter(({ gap }) => gap);
    // One that leaves while it waits is owed nothing more.
    if (gaps.length === 0 && session.left < Infinity && behind < 0) continue;
    if (gaps.some((gap) => faults.explainsLoss(session.name, item, gap))) {
      counts.lost += 1;
    } else if (gaps.length > 0) {
      broken("I7", `a gap hides ${item.mid} of ${channel} from ${session.name}, which no fault lost`);
    } else {
      broken(behind < 0 ? "I5" : "I4", `${session.name} never got ${item.mid} of ${channel}`);
    }
  }
}

/** I3 over all sessions: there is one order that all of them saw. */
function agreed(sessions, broken) {
  const next = new Map();
  for (const { channels } of sessions.values()) {
    for (const events of channels.values()) {
      let last;
      const seen = new Set();
      for (const { gap, item } of events) {
        if (gap || seen.has(item)) continue;
        seen.add(item);
        if (!next.has(item)) next.set(item, new Set());
        if (last) next.get(last).add(item);
        last = item;
      }
    }
  }
  const waiting = new Map([...next.keys()].map((item) => [item, 0]));
  for (const behind of next.values()) for (const item of behind) waiting.set(item, waiting.get(item) + 1);
  const ready = [...waiting].filter(([, count]) => count === 0).map(([item]) => item);
  let placed = 0;
  while (ready.length > 0) {
    placed += 1;
    for (const item of next.get(ready.pop())) {
      waiting.set(item, waiting.get(item) - 1);
      if (waiting.get(item) === 0) ready.push(item);
    }
  }
  if (placed < next.size) {
    const [item] = [...waiting].find(([, count]) => count > 0);
    broken("I3", `sessions saw the items about ${item.mid} of ${item.channel} in different orders`);
  }
}

/** The same by positions: at each there is one item, whoever got it. */
function placed(sessions, broken) {
  const at = new Map();
  for (const { channels } of sessions.values()) {
    for (const [channel, events] of channels) {
      for (const { gap, item, position } of events) {
        if (gap) continue;
        const place = `${channel} ${position}`;
        if (!at.has(place)) at.set(place, item);
        else if (at.get(place) !== item) broken("I3", `${place} is ${at.get(place).mid} and ${item.mid}`);
      }
    }
  }
}

function bounded(records, broken) {
  for (const { e, what, value, bound } of records) {
    // A value that is missing is within no bound.
    if (e === "measure" && !(typeof value === "number" && value <= bound)) broken("I9", `${what} is ${value}, over ${bound}`);
  }
}

/** I10: what was acknowledged while a slow client did not read came to all fast ones before it read again. */
function undelayed(records, items, sessions, counts, broken) {
  const fast = [...sessions.values()].filter(({ group }) => group === "fast");
  const delays = fast.flatMap(({ channels }) => [...channels.values()].flat().filter(({ gap }) => !gap))
    .map(({ t, item }) => t - item.askedT).sort((a, b) => a - b);
  const at = (share) => delays[Math.min(delays.length - 1, Math.floor(delays.length * share))] ?? null;
  [counts.fast_p50_ms, counts.fast_p99_ms] = [at(0.5), at(0.99)];
  records.forEach(({ e, session }, from) => {
    if (e !== "stall") return;
    const length = records.slice(from).findIndex((record) => record.e === "unstall" && record.session === session);
    if (length < 0) return broken("form", `${session} never reads again`);
    const within = (place) => place > from && place < from + length;
    for (const { name, channels } of fast) {
      for (const [channel, events] of channels) {
        const got = new Set(events.filter(({ at }) => at < from + length).map(({ item }) => item));
        const missing = [...items.values()].filter((item) => item.channel === channel && within(item.acked) && !got.has(item));
        if (missing.length > 0) broken("I10", `${name} waited for ${missing.length} items of ${channel} while ${session} did not read`);
      }
    }
  });
}

function untouched(records, broken) {
  const asked = new Map();
  for (const { e, conn, id } of records) {
    if (e === "ask") asked.set(`${conn} ${id}`, false);
    else if (e === "reply") asked.set(`${conn} ${id}`, true);
    else if (e === "cut") broken("I11", `${conn} was closed`);
  }
  const unanswered = [...asked].filter(([, answered]) => !answered).map(([ask]) => ask);
  if (unanswered.length > 0) broken("I11", `no answer to ${unanswered.length}: ${unanswered[0]}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { violations, counts } = check(parse(readFileSync(process.argv[2], "utf8")));
  console.log(JSON.stringify(counts));
  for (const { invariant, detail } of violations) console.log(`${invariant}: ${INVARIANTS[invariant]}: ${detail}`);
  process.exitCode = violations.length > 0 ? 1 : 0;
}
