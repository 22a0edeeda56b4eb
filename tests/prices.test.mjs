// Channels of which only the newest value of each key counts, with real clients: one that reads as fast as it can, one
// that stops, one that comes back; on one gateway, and on two on one Redis. All have the same values at the end.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { after, before, test } from "node:test";
import WebSocket from "ws";
import { backend, eventually, freePort, gateway, serve, temporaryFolder, total } from "./support.mjs";

const configuration = (port, engine) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
backplane:
  engine: ${engine}
  publish: { bind: "127.0.0.1:0" }
  channels:
    - { prefix: "prices:", conflate: { interval: 50ms } }
    - { prefix: "ticker:", conflate: { interval: 50ms, key: "json:/s", join: json_array } }
rules: [{ name: feed, upstream: app, backplane: grip }]
`;

/** A gateway, and where it takes publications. */
async function start(port, engine) {
  const gate = await gateway(configuration(port, engine), {}, {}, ["--debug"]);
  const { address } = await gate.line({ event: "listening", listener: "publish" });
  return { ...gate, publish: `http://${address}/publish` };
}

/** What a client has: the newest it was sent of each key, and how often it was sent any. */
class Reader {
  values = new Map();
  sent = 0;
  messages = 0;
  went = [];

  constructor(url, read, protocols = [], options = { perMessageDeflate: true }) {
    this.socket = new WebSocket(url, protocols, options);
    this.others = [];
    this.socket.on("upgrade", ({ headers }) => (this.agreed = headers["sec-websocket-extensions"]));
    this.socket.on("message", (data) => {
      const values = read(data);
      if (!values) return this.others.push(String(data));
      this.messages += 1;
      for (const [key, n] of values) {
        if (n < (this.values.get(key) ?? 0)) this.went.push([key, n, this.values.get(key)]);
        this.values.set(key, n);
        this.sent += 1;
      }
    });
  }

  async ready() {
    await eventually(() => this.others, (others) => others.length > 0);
    return this;
  }

  has(expected) {
    const of = () => Object.fromEntries([...this.values].sort());
    const wanted = JSON.stringify(Object.fromEntries([...expected].sort()));
    return eventually(of, (values) => JSON.stringify(values) === wanted);
  }

  async leave() {
    this.socket.close();
    await once(this.socket, "close");
  }
}

/** `{"s":key,"n":number}` as pairs; nothing for what is no value. */
const pair = ({ s, n }) => [s, n];
const single = (data) => (data[0] === 0x7b ? [pair(JSON.parse(data))] : undefined);
const array = (data) => (data[0] === 0x5b ? JSON.parse(data).map(pair) : undefined);

const post = (gate, items) => fetch(gate.publish, { method: "POST", body: JSON.stringify({ items }) });

/** Values of a channel, in two ways of saying their keys, and what a reader of all of them has. Padding does not compress. */
class Feed {
  expected = new Map();
  n = 0;

  constructor(channel, padding = 0) {
    Object.assign(this, { channel, padding });
  }

  async send(gate, keys) {
    const items = keys.map((key) => {
      this.n += 1;
      this.expected.set(key, this.n);
      const content = JSON.stringify({ s: key, n: this.n, x: randomBytes(this.padding).toString("base64") });
      return { channel: this.channel, id: `m-${this.n}`, meta: { "conflate-key": key }, formats: { "ws-message": { content } } };
    });
    const answer = await post(gate, items);
    assert.equal(answer.status, 200, await answer.text());
  }
}

const symbols = (count) => Array.from({ length: count }, (_, at) => `S${at}`);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let peer, gate;
before(async () => {
  peer = await backend("backends/grip_prices.mjs");
  gate = await start(peer.port, "memory");
});
after(() => Promise.all([gate?.stop(), peer?.stop()]));

test("who subscribes gets all values, then what changes, and the last of each in the end", async () => {
  const feed = new Feed("prices:a");
  await feed.send(gate, symbols(20));
  const early = await new Reader(`${gate.ws}/prices:a?mode=latest`, single).ready();
  await early.has(feed.expected);
  assert.equal(early.sent, 20);
  for (let round = 0; round < 40; round += 1) {
    await feed.send(gate, ["S1", "S1", "S2"]);
    if (round === 20) await pause(120);
  }
  const late = await new Reader(`${gate.ws}/prices:a`, single).ready();
  for (const reader of [early, late]) await reader.has(feed.expected);
  assert.deepEqual([early.went, late.went], [[], []], "no value goes back");
  assert.equal(early.messages, early.sent, "each is a message");
  const metrics = await gate.metrics();
  const [replaced, ticks] = ["sluicegate_conflated_total", "sluicegate_conflation_ticks_total"].map((name) => total(metrics, name));
  // What was not replaced was sent, of 120 publications with 2 keys.
  assert.ok(ticks >= 3 && replaced >= 20, `${ticks} ${replaced}`);
  assert.equal(early.sent, 20 + 120 - replaced, "all others were sent");
  assert.equal(total(metrics, "sluicegate_conflation_snapshots_total", { why: "subscribed" }), 2);
  assert.equal(total(metrics, "sluicegate_gaps_total"), 0);
  await Promise.all([early.leave(), late.leave()]);
});

test("a reader that stops skips values, and has the same ones in the end as one that does not, and one that comes back", async () => {
  const feed = new Feed("prices:b", 6_500);
  const keys = symbols(100);
  await feed.send(gate, keys);
  const url = `${gate.ws}/prices:b`;
  const [fast, slow, leaves] = await Promise.all([0, 1, 2].map(() => new Reader(url, single).ready()));
  for (const reader of [fast, slow, leaves]) await reader.has(feed.expected);
  slow.socket.pause();
  await leaves.leave();
  const paused = Date.now();
  // For 2 s at least, and until more was published than any connection holds: 29 MB compressed.
  let rounds = 0;
  for (; rounds < 45 || Date.now() - paused < 2_000; rounds += 1) {
    await feed.send(gate, keys);
    await pause(60);
  }
  const back = await new Reader(url, single).ready();
  await feed.send(gate, ["S0", "S99"]);
  await fast.has(feed.expected);
  slow.socket.resume();
  for (const reader of [slow, back]) await reader.has(feed.expected);
  for (const reader of [fast, slow, back]) assert.deepEqual(reader.went, []);
  assert.ok(slow.sent < fast.sent, `${slow.sent} of ${fast.sent}`);
  const behind = total(await gate.metrics(), "sluicegate_conflation_snapshots_total", { why: "behind" });
  assert.ok(behind >= 1, `${behind}`);
  assert.ok(back.sent < 10 * keys.length, `what it has missed is no part of it: ${back.sent}`);
  await Promise.all([fast, slow, back].map((reader) => reader.leave()));
});

test("values come as one array a tick where the rule says so", async () => {
  const feed = new Feed("ticker:a");
  const reader = await new Reader(`${gate.ws}/ticker:a`, array).ready();
  await gate.metric("sluicegate_subscriptions", {}, 1);
  await feed.send(gate, symbols(50));
  await reader.has(feed.expected);
  // One request is stored within a tick or two.
  assert.ok(reader.sent === 50 && reader.messages < 50, `${reader.sent} in ${reader.messages}`);
  // Compressed or not, by the largest window or another.
  const others = await Promise.all([false, true, { serverMaxWindowBits: 10 }].map((perMessageDeflate) =>
    new Reader(`${gate.ws}/ticker:a`, array, [], { perMessageDeflate }).ready()));
  const agreed = others.map(({ agreed }) => agreed?.replace(/; \w+_no_context_takeover/g, ""));
  assert.deepEqual(agreed, [undefined, "permessage-deflate", "permessage-deflate; server_max_window_bits=10"]);
  await feed.send(gate, symbols(50));
  for (const other of others) await other.has(feed.expected);
  await Promise.all([reader, ...others].map((each) => each.leave()));
});

test("a client of the subprotocol gets positions with values, and a snapshot wherever it was", async () => {
  const feed = new Feed("prices:c");
  await feed.send(gate, ["x", "y", "x"]);
  const split = (data) => {
    const end = data.indexOf(10);
    return [end > 0 ? JSON.parse(data.subarray(0, end)) : {}, String(data.subarray(end + 1))];
  };
  const enter = async (first, channel = "prices:c") => {
    const socket = new WebSocket(`${gate.ws}/${channel}`, ["sluicegate.v1"]);
    const got = [];
    socket.on("message", (data) => got.push(split(data)));
    await once(socket, "open");
    socket.send(`${JSON.stringify(first)}\n`);
    await eventually(() => got, (all) => all.filter(([line]) => line.p).length >= (channel === "prices:c" ? 2 : 1));
    socket.terminate();
    return got;
  };
  const got = await enter({ t: "new" });
  const sub = got.find(([line]) => line.t === "sub")[0];
  assert.deepEqual([sub.c, sub.s, sub.n], ["prices:c", "live", 2]);
  const values = got.filter(([line]) => line.p);
  assert.deepEqual(values.map(([{ c, i }, text]) => [c, i, JSON.parse(text).s]), [["prices:c", "m-2", "y"], ["prices:c", "m-3", "x"]]);
  assert.equal(values[1][0].p, sub.h[0], "the newest value's position is that of the channel");
  // A place that is gone, in a log that never was: no gap.
  for (const place of [values[0][0].p, "local.0123456789abcdef.77.5-0", "elsewhere.a.1.1-0"]) {
    const again = await enter({ t: "resume", ch: { "prices:c": [place] } });
    const { s, n } = again.find(([line]) => line.t === "sub")[0];
    assert.deepEqual([s, n, again.some(([line]) => line.t === "gap")], ["recovered", 2, false], place);
  }
  // Nor when it comes too late to be asked for.
  const late = new WebSocket(`${gate.ws}/prices:c`, ["sluicegate.v1"]);
  const heard = [];
  late.on("message", (data) => heard.push(split(data)));
  await eventually(() => heard, (all) => all.some(([line]) => line.t === "sub"));
  late.send(`${JSON.stringify({ t: "resume", ch: { "prices:c": [values[0][0].p] } })}\n`);
  late.send("\nhello");
  await eventually(() => heard, (all) => all.some(([, text]) => text === "you said: hello"));
  assert.equal(heard.some(([line]) => line.t === "gap"), false);
  late.terminate();
  const ticker = new Feed("ticker:c");
  await ticker.send(gate, ["x", "y"]);
  const joined = (await enter({ t: "new" }, "ticker:c")).filter(([line]) => line.p);
  assert.deepEqual(joined.map(([{ c, i }, text]) => [c, i, JSON.parse(text).map(pair)]), [["ticker:c", undefined, [["x", 1], ["y", 2]]]]);
});

test("what cannot be a value is refused, and so is what would be one value too many", async () => {
  const item = (channel, message, meta) => ({ channel, ...(meta && { meta }), formats: { "ws-message": message } });
  const key = { "conflate-key": "k" };
  const start = "Item on a channel of newest values";
  for (const [items, status, text] of [
    [[item("prices:d", { content: "x" })], 400, `${start} has no key: its 'meta' has no 'conflate-key'\n`],
    [[item("prices:d", { content: "x" }, { "conflate-key": "" })], 400, `${start} has a key that is empty or longer than 256 bytes\n`],
    [[item("prices:d", { action: "close" }, key)], 400, `${start} has no 'ws-message' with text or binary content\n`],
    [[item("ticker:d", { content: "x" })], 400, `${start} has content that is no JSON text\n`],
    [[item("ticker:d", { content: "{}" })], 400, `${start} has no key: its content has no string or whole number at '/s'\n`],
    // All or none of a request.
    [[item("prices:d", { content: "x" }, key), item("prices:d", { content: "x" })], 400, `${start} has no key: its 'meta' has no 'conflate-key'\n`],
    [[item("room", { content: "x" })], 200, "Published\n"],
  ]) {
    const answer = await post(gate, items);
    assert.deepEqual([answer.status, await answer.text()], [status, text]);
  }
  const many = (from, to) =>
    Array.from({ length: to - from }, (_, at) => item("prices:e", { content: "x" }, { "conflate-key": `k${from + at}` }));
  for (const at of [0, 5_000]) assert.equal((await post(gate, many(at, at + 5_000))).status, 200);
  const full = await post(gate, many(10_000, 10_001));
  assert.deepEqual([full.status, await full.text()],
    [413, "Channel is full: the newest values of a channel may have 10000 keys and 16777216 bytes\n"]);
  assert.equal((await post(gate, many(9_999, 10_000))).status, 200, "one that it has may change");
});

test("what a backend asks in vain is passed over or refused, and the log says why", async () => {
  const plain = await new Reader(`${gate.ws}/room?mode=latest`, single).ready();
  await gate.line({ event: "grip_ignored", detail: "mode latest is for channels with a rule that has `conflate`" });
  const filtered = await new Reader(`${gate.ws}/prices:f?filter=skip-self`, single).ready();
  await gate.line({ event: "grip_ignored", detail: "a channel of newest values has no filters: they are the same for all" });
  await Promise.all([plain.leave(), filtered.leave()]);
  assert.equal((await fetch(`${gate.http}/prices:f`)).status, 502);
  const held = await fetch(`${gate.http}/room:f`);
  assert.equal(held.status, 200);
  await held.body.cancel();
});

test("two gateways on one Redis: the same values at the end on both, whoever published, also when Redis was away", async () => {
  const folder = await temporaryFolder();
  const port = await freePort();
  const redis = () => serve("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder,
    "--save", "", "--appendonly", "yes", "--appendfsync", "always"], [port]);
  let stop = await redis();
  const gates = await Promise.all([0, 1].map(() => start(peer.port, `{ redis: { url: "redis://127.0.0.1:${port}" } }`)));
  try {
    for (const each of gates) await each.metric("sluicegate_region_up", {}, 1);
    const feed = new Feed("prices:r", 100);
    const readers = await Promise.all(gates.map((each) => new Reader(`${each.ws}/prices:r`, single).ready()));
    for (const each of gates) await each.metric("sluicegate_subscriptions", {}, 1);
    const keys = symbols(30);
    for (let round = 0; round < 30; round += 1) await feed.send(gates[round % 2], keys.slice(round % 7));
    for (const reader of readers) await reader.has(feed.expected);
    await stop();
    await gates[0].metric("sluicegate_region_up", {}, 0);
    stop = await redis();
    for (const each of gates) await each.metric("sluicegate_region_up", {}, 1);
    await feed.send(gates[1], ["S3", "S4"]);
    const moved = await new Reader(`${gates[0].ws}/prices:r`, single).ready();
    for (const reader of [...readers, moved]) {
      await reader.has(feed.expected);
      assert.deepEqual(reader.went, []);
    }
    assert.equal(moved.sent, 30, "what it is given first is all, and nothing twice");
    await Promise.all([...readers, moved].map((reader) => reader.leave()));
  } finally {
    await Promise.all(gates.map((each) => each.stop()));
    await stop();
    await rm(folder, { recursive: true, force: true });
  }
});
