// The backend and the client of examples/chat in one region: histories that are long, messages that are said again, and
// what is stored and was not published.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Chat } from "../../examples/chat/client.mjs";
import { Regions } from "../regions/world.mjs";
import { eventually } from "../support.mjs";

/** The log keeps 20 messages: what is older is the database's alone. */
const configuration = `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:1" }]
admin: { bind: "127.0.0.1:2" }
upstreams: [{ name: chat, endpoints: ["127.0.0.1:4"] }]
backplane:
  region: eu
  engine: { redis: { url: "redis://127.0.0.1:5" } }
  publish: { bind: "127.0.0.1:3" }
  history: { max_messages: 20 }
rules: [{ name: rooms, upstream: chat, backplane: grip, origin: { allow: ["https://chat.example.com"] } }]
`;
const [PUBLIC, ADMIN, PUBLISH, APP, REDIS] = [1, 2, 3, 4, 5].map((port) => ({ eu: `127.0.0.1:${port}` }));

let world, gateways;
const chats = [];
before(async () => {
  const backend = fileURLToPath(new URL("../../examples/chat/backend.mjs", import.meta.url));
  const addresses = { PUBLIC, ADMIN, PUBLISH, APP, REDIS };
  world = await Regions.start({ configurations: { eu: configuration }, addresses, backend });
  gateways = world.gatewaysFor("eu").map(({ url }) => url);
});
after(async () => {
  for (const { chat } of chats) chat.close();
  await world?.stop();
});

/** A user, with what it was shown, as numbers in the order in which they came, and what else it was told. */
function enter(user, room) {
  const seen = { chat: new Chat(user, room, gateways), seqs: [], live: [], acknowledged: new Map(), histories: 0, again: 0, gaps: 0 };
  chats.push(seen);
  const on = (type, listener) => seen.chat.addEventListener(type, ({ detail }) => listener(detail));
  on("message", ({ seq, live }) => (seen.seqs.push(seq), live && seen.live.push(seq)));
  on("acknowledged", ({ id, seq }) => seen.acknowledged.set(id, seq));
  on("history", () => (seen.histories += 1));
  on("again", () => (seen.again += 1));
  on("gap", () => (seen.gaps += 1));
  return seen;
}

const isIn = (seen) => eventually(() => seen.chat.owed, (owed) => owed === undefined);
const upTo = (count) => Array.from({ length: count }, (_, at) => at + 1);

/** Puts messages into the database, as if another backend had. */
async function store(room, count, { published, length = 10 }) {
  await world.postgres.ask(`
    insert into rooms (room) values ('${room}') on conflict do nothing;
    with numbers as (select seq + n as seq from rooms, generate_series(1, ${count}) n where room = '${room}')
    insert into messages (room, seq, id, author, text, published, claimed)
      select '${room}', seq, gen_random_uuid(), 'somebody', repeat('x', ${length}), ${published}, 'epoch' from numbers;
    update rooms set seq = seq + ${count} where room = '${room}';`);
}

test("a newcomer is shown the newest, and then what is said, once", async () => {
  await store("new", 80, { published: true });
  const ann = enter("ann", "new");
  await isIn(ann);
  assert.deepEqual(ann.seqs, upTo(80).slice(30));
  const bob = enter("bob", "new");
  await isIn(bob);
  const id = ann.chat.say("hello");
  for (const each of [ann, bob]) await eventually(() => each.live, (live) => live.includes(81));
  await eventually(() => ann.acknowledged.get(id), (seq) => seq === 81);
  assert.deepEqual([ann.seqs, bob.seqs], [upTo(81).slice(30), upTo(81).slice(30)]);
});

test("an empty room begins with number 1", async () => {
  const ann = enter("ann", "empty");
  await isIn(ann);
  assert.deepEqual([ann.seqs, ann.chat.shown], [[], 0]);
  ann.chat.say("first");
  await eventually(() => ann.live, (live) => live.length === 1);
  assert.deepEqual([ann.seqs, ann.chat.shown], [[1], 1]);
});

test("who was away for longer than the log keeps gets all of it from the database, over several answers", async () => {
  const ann = enter("ann", "long");
  await isIn(ann);
  ann.chat.say("one");
  await eventually(() => ann.live, (live) => live.length === 1);
  const before = ann.histories;
  world.links.client.eu.eu.refuse();
  world.links.client.eu.eu.reset();
  // 2.4 MB: three answers.
  await store("long", 2_400, { published: true, length: 1_000 });
  const other = enter("bob", "long");
  // The log loses its place behind what is published again and trimmed.
  for (let nth = 0; nth < 25; nth += 1) await publish("long", 2_402 + nth);
  world.links.client.eu.eu.restore();
  await eventually(() => ann.seqs.length, (count) => count === 2_401);
  await isIn(ann);
  await isIn(other);
  assert.deepEqual(ann.seqs, upTo(2_401), "not in order, or not once");
  assert.ok(ann.histories - before >= 24 && ann.gaps >= 3, `${ann.histories - before} pages, ${ann.gaps} gaps`);
  assert.equal(other.seqs[0], 2_352);
});

/** Publishes what looks like a message, though nobody stored it. */
async function publish(room, seq) {
  const content = JSON.stringify({ seq: 0, id: String(seq), user: "", text: "" });
  const body = JSON.stringify({ items: [{ channel: room, id: String(seq), formats: { "ws-message": { content } } }] });
  const answer = await fetch(`http://127.0.0.1:${world.links.publish.eu.port}/publish`, { method: "POST", body });
  assert.equal(answer.status, 200, await answer.text());
}

test("a message that is said by two at once, and again, has one number and comes once", async () => {
  const [ann, bob] = [enter("ann", "again"), enter("bob", "again")];
  await Promise.all([ann, bob].map(isIn));
  const ids = upTo(20).map(() => randomUUID());
  for (const id of ids) for (const { chat } of [ann, bob]) chat.say("twice", id);
  for (const { acknowledged } of [ann, bob]) await eventually(() => acknowledged.size, (size) => size === ids.length);
  for (const id of ids) ann.chat.say("and again", id);
  await eventually(() => ann.chat.unacknowledged.size, (size) => size === 0);
  assert.deepEqual(ids.map((id) => ann.acknowledged.get(id)), ids.map((id) => bob.acknowledged.get(id)));
  assert.deepEqual([...ann.acknowledged.values()].sort((one, other) => one - other), upTo(20));
  for (const { seqs } of [ann, bob]) {
    await eventually(() => seqs.length, (count) => count >= 20);
    assert.deepEqual(seqs.toSorted((one, other) => one - other), upTo(20));
  }
  const texts = await world.postgres.ask("select distinct text from messages where room = 'again'");
  assert.deepEqual(texts, [["twice"]]);
});

test("what is stored and was not published is published by whoever finds it", async () => {
  const ann = enter("ann", "outbox");
  await isIn(ann);
  await store("outbox", 3, { published: false });
  await eventually(() => ann.live.toSorted(), ({ length }) => length === 3);
  assert.deepEqual(ann.live.toSorted(), [1, 2, 3]);
  const open = async () => Number((await world.postgres.ask("select count(*) from messages where not published"))[0][0]);
  await eventually(open, (count) => count === 0);
});

test("a message that is none, and too long a one, is passed over, and the next is not", async () => {
  const ann = enter("ann", "odd");
  await isIn(ann);
  for (const what of ["no JSON", "{}", JSON.stringify({ id: "1", text: "x" }), JSON.stringify({ id: randomUUID(), text: "x".repeat(1_001) })]) {
    ann.chat.socket.send(what);
  }
  const id = ann.chat.say("x".repeat(1_000));
  await eventually(() => ann.acknowledged.get(id), (seq) => seq === 1);
  assert.deepEqual(ann.seqs, [1]);
});
