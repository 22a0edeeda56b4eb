// Fan-out with the libraries of GRIP's users as npm and PyPI serve them: a backend that subscribes its clients by
// @fanoutio/grip, publishers on @fanoutio/grip and pubcontrol; one gateway on its own memory, two on one Redis, and two on
// one NATS.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { Publisher, WebSocketMessageFormat, Item, validateSig } from "@fanoutio/grip";
import WebSocket from "ws";
import { backend, client, clientIn, eventually, freePort, gateway, serve, temporaryFolder, total } from "./support.mjs";

const KEY = "a-secret-of-publishers-and-of-the-gateway";

const configuration = (port, engine, publish = "") => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
backplane:
  engine: ${engine}
  publish: { bind: "127.0.0.1:0"${publish} }
  grip: { sig_key_file: grip.key }
rules:
  - { name: app, match: { path_prefix: /plain }, upstream: app }
  - { name: rooms, upstream: app, backplane: grip }
`;

/** A gateway, and where it takes publications. */
async function start(port, engine, publish) {
  const gate = await gateway(configuration(port, engine, publish), { "grip.key": KEY, "publish.key": KEY });
  const { address } = await gate.line({ event: "listening", listener: "publish" });
  return { ...gate, publish: `http://${address}` };
}

/** A client of a room: what it was sent, and a way to wait for so much of it. */
async function enter(gate, path, options = {}) {
  const socket = new WebSocket(`${gate.ws}/${path}`, options);
  const got = [];
  socket.on("message", (data, isBinary) => got.push(isBinary ? data : data.toString()));
  await once(socket, "open");
  await eventually(() => got, (texts) => texts.length > 0);
  return {
    socket,
    got,
    has: (count) => eventually(() => got, (texts) => texts.length >= count),
    async leave() {
      socket.close();
      await once(socket, "close");
    },
  };
}

/** What was published of what a client got: between that and what the backend itself sends there is no order. */
const published = ({ got }) => got.filter((text) => text !== "welcome" && !String(text).startsWith("you said"));

const subscribers = (gate, wanted) => gate.metric("sluicegate_subscriptions", {}, wanted);

const post = (gate, items, headers = {}) =>
  fetch(`${gate.publish}/publish/`, { method: "POST", headers, body: JSON.stringify({ items }) });
const item = (channel, id, content, more = {}) => ({ channel, id, formats: { "ws-message": { content } }, ...more });

let peer, gate;
before(async () => {
  peer = await backend("backends/grip_rooms.mjs", { GRIP_KEY: KEY });
  gate = await start(peer.port, "memory");
});
after(() => Promise.all([gate?.stop(), peer?.stop()]));

test("what is published once reaches everyone in the room, and nobody else", async () => {
  const [ann, bob, eve] = await Promise.all([enter(gate, "tea"), enter(gate, "tea?user=bob"), enter(gate, "coffee")]);
  await subscribers(gate, 3);
  const publisher = new Publisher({ control_uri: gate.publish });
  await publisher.publish("tea", new Item(new WebSocketMessageFormat("from npm"), "tea-1"));
  const python = await client("clients/pubcontrol_publish.py", gate.publish, "tea", "tea-2", "from PyPI", "bob");
  assert.equal(python.exit, 0, JSON.stringify(python));
  await ann.has(3);
  await publisher.publish("tea", new Item(new WebSocketMessageFormat(Buffer.from([0, 255])), "tea-3"));
  await bob.has(3);
  assert.deepEqual(published(ann).slice(0, 2), ["from npm", "from PyPI"]);
  // Its own message does not come back to bob, by the filter skip-self.
  assert.deepEqual(published(bob), ["from npm", Buffer.from([0, 255])]);
  ann.socket.send("hello");
  await ann.has(5);
  assert.deepEqual(published(ann), ["from npm", "from PyPI", Buffer.from([0, 255])]);
  assert.ok(ann.got.includes("you said: hello"));
  assert.deepEqual(eve.got, ["welcome"]);
  await Promise.all([ann.leave(), bob.leave(), eve.leave()]);
  const metrics = await gate.metrics();
  assert.equal(total(metrics, "sluicegate_publishes_total", { result: "stored" }), 3);
  // Of each client one in 16, and the first.
  const latency = { rule: "rooms", path: "backplane" };
  assert.equal(total(metrics, "sluicegate_message_latency_seconds_count", latency), 2);
  assert.equal(total(metrics, "sluicegate_queued_bytes"), 0);
});

test("a client that comes back gets what it missed, once and in order, or hears of the gap", async () => {
  const first = await enter(gate, "resume");
  await subscribers(gate, 1);
  for (const at of [1, 2]) assert.equal((await post(gate, [item("resume", `r-${at}`, `text ${at}`)])).status, 200);
  await first.has(3);
  await first.leave();
  for (const at of [3, 4]) await post(gate, [item("resume", `r-${at}`, `text ${at}`)]);
  assert.equal(await (await post(gate, [item("resume", "r-4", "text 4 again")])).text(), "Published\n");
  const again = await enter(gate, "resume?prev=r-2");
  await again.has(3);
  await post(gate, [item("resume", "r-5", "text 5")]);
  await again.has(4);
  assert.deepEqual(published(again), ["text 3", "text 4", "text 5"]);
  const lost = await enter(gate, "resume?prev=unknown");
  await lost.has(2);
  assert.deepEqual(published(lost), ["gap"]);
  const metrics = await gate.metrics();
  assert.deepEqual(
    ["continuous", "gap"].map((result) => total(metrics, "sluicegate_resumes_total", { result })), [1, 1]);
  assert.equal(total(metrics, "sluicegate_publishes_total", { result: "repeated" }), 1);
  await Promise.all([again.leave(), lost.leave()]);
});

test("closes pass, compressed clients are served, and Grip headers of clients are not believed", async () => {
  const one = await enter(gate, "closing", { perMessageDeflate: true, headers: { "grip-sig": "forged", "grip-x": "y" } });
  assert.equal(one.socket.extensions, "permessage-deflate");
  one.socket.send("close");
  assert.deepEqual((await once(one.socket, "close")).map(String), ["4001", "asked for"]);
  const headers = await (await fetch(`${gate.http}/headers`, { headers: { "grip-sig": "forged" } })).json();
  assert.ok(await validateSig(headers["grip-sig"], KEY, "sluicegate"), headers["grip-sig"]);
  const two = await enter(gate, "closing");
  await subscribers(gate, 1);
  await post(gate, [{ channel: "closing", formats: { "ws-message": { action: "close", code: 4002, reason: "over" } } }]);
  assert.deepEqual((await once(two.socket, "close")).map(String), ["4002", "over"]);
  const line = await gate.line({ event: "session", close_code: 4002 });
  assert.deepEqual([line.cause, line.rule], ["upstream_closed", "rooms"]);
});

test("a backend that does not opt in is proxied as ever", async () => {
  const echo = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
  const plain = await start(echo.port, "memory");
  try {
    const socket = new WebSocket(`${plain.ws}/echo`);
    await once(socket, "open");
    socket.send('c:{"type":"subscribe","channel":"room"}');
    const [data] = await once(socket, "message");
    assert.equal(String(data), 'c:{"type":"subscribe","channel":"room"}');
    socket.close();
    await once(socket, "close");
  } finally {
    await Promise.all([plain.stop(), echo.stop()]);
  }
});

test("publishing says what is wrong, and needs a token where one is set", async () => {
  const ask = async (path, options) => {
    const answer = await fetch(`${gate.publish}${path}`, options);
    return [answer.status, await answer.text()];
  };
  const body = JSON.stringify({ items: [item("x", undefined, "y")] });
  for (const [path, options, status, text] of [
    ["/", {}, 200, "Hello\n"],
    ["/publish", {}, 405, "Method Not Allowed\n"],
    ["/other", {}, 404, "Not Found\n"],
    ["/publish", { method: "POST", body: "{" }, 400, "Body is not valid JSON.\n"],
    ["/publish", { method: "POST", body: "[]" }, 400, "Invalid format.\n"],
    ["/publish", { method: "POST", body: "{}" }, 400, "Invalid format: object does not contain 'items'\n"],
    ["/publish", { method: "POST", body, headers: { accept: "image/png" } }, 406,
      "Not Acceptable. Supported formats are text/plain and application/json.\n"],
    ["/publish", { method: "POST", body, headers: { accept: "application/json" } }, 200, '{"message":"Published"}\n'],
    ["/publish", { method: "POST", body, headers: { origin: "http://evil.example" } }, 403, "A page must not publish.\n"],
    ["/publish", { method: "POST", body: "x".repeat(1_000_001) }, 413, "Body is too long.\n"],
  ]) {
    assert.deepEqual(await ask(path, options), [status, text], `${path} ${JSON.stringify(options).slice(0, 200)}`);
  }
  const guarded = await start(peer.port, "memory", ", token_file: publish.key, jwt_key_file: publish.key");
  try {
    const tries = [{}, { authorization: `Bearer ${KEY}` }, { authorization: "Bearer wrong" }];
    const statuses = await Promise.all(tries.map(async (headers) => (await post(guarded, [item("x", "1", "y")], headers)).status));
    assert.deepEqual(statuses, [401, 200, 401]);
    const signed = await clientIn({ KEY }, "clients/pubcontrol_publish.py", guarded.publish, "x", "2", "y");
    assert.equal(signed.exit, 0, JSON.stringify(signed));
    const metrics = await guarded.metrics();
    assert.equal(total(metrics, "sluicegate_publishes_total", { result: "stored" }), 2);
    assert.equal(total(metrics, "sluicegate_publishes_total", { result: "refused" }), 2);
  } finally {
    await guarded.stop();
  }
});

const SERVERS = {
  Redis: {
    start: (port, folder) => serve("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder,
      "--save", "", "--appendonly", "yes", "--appendfsync", "always"], [port]),
    engine: (port) => `{ redis: { url: "redis://127.0.0.1:${port}" } }`,
  },
  NATS: {
    start: (port, folder) => serve("nats-server", ["-a", "127.0.0.1", "-p", String(port), "-js", "-sd", folder], [port]),
    engine: (port) => `{ nats: { url: "nats://127.0.0.1:${port}" } }`,
  },
};

for (const [name, server] of Object.entries(SERVERS)) {
  test(`two gateways on one ${name}: what comes to one goes out of both, also when it was away`, async () => {
    const folder = await temporaryFolder();
    const port = await freePort();
    let stop = await server.start(port, folder);
    const engine = server.engine(port);
    const gates = await Promise.all([start(peer.port, engine), start(peer.port, engine)]);
    try {
      for (const each of gates) {
        await each.metric("sluicegate_region_up", {}, 1);
      }
      const clients = await Promise.all(gates.map((each) => enter(each, "both")));
      for (const each of gates) await subscribers(each, 1);
      assert.equal((await post(gates[0], [item("both", "b-1", "one")])).status, 200);
      assert.equal((await post(gates[1], [item("both", "b-1", "one again"), item("both", "b-2", "two")])).status, 200);
      for (const each of clients) await each.has(3);
      await stop();
      await gates[0].metric("sluicegate_region_up", {}, 0);
      // It is as ready as the other gateways, which ask the same server.
      const ready = await fetch(`${gates[0].admin}/readyz`);
      const { status, degraded, reasons } = await ready.json();
      assert.deepEqual([ready.status, status, degraded], [200, "degraded", ["region:local"]]);
      assert.match(reasons[0], /^the backplane's engine of region local is down: the engine /);
      const failed = await post(gates[0], [item("both", "b-3", "three")]);
      assert.deepEqual([failed.status, failed.headers.get("retry-after")], [503, "1"]);
      // Plain proxying does not depend on it, nor do the sessions.
      clients[0].socket.send("still there");
      await clients[0].has(4);
      stop = await server.start(port, folder);
      const stored = () => post(gates[0], [item("both", "b-3", "three")]);
      await eventually(stored, ({ status }) => status === 200);
      await clients[0].has(5);
      await clients[1].has(4);
      for (const each of clients) assert.deepEqual(published(each), ["one", "two", "three"]);
      // A place that one gateway gave is one that the other knows.
      const moved = await enter(gates[1], "both?prev=b-1");
      await moved.has(3);
      assert.deepEqual(published(moved), ["two", "three"]);
      await Promise.all([...clients, moved].map((each) => each.leave()));
    } finally {
      await Promise.all(gates.map((each) => each.stop()));
      await stop();
      await rm(folder, { recursive: true, force: true });
    }
  });
}

test("what somebody else adds to a stream reaches its channel, and who comes back by msgId gets what was missed", async () => {
  const folder = await temporaryFolder();
  const port = await freePort();
  const stop = await serve("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""], [port]);
  const cli = promisify(execFile);
  const add = (id, text) =>
    cli("redis-cli", ["-p", String(port), "XADD", "room:42", "*", "roomId", "42", "message", text, "msgId", id]);
  const engine = `{ redis: { url: "redis://127.0.0.1:${port}" } }
  ingest: [{ streams: "room:*", id_field: msgId, data_field: message }]`;
  const gates = await Promise.all([start(peer.port, engine), start(peer.port, engine)]);
  try {
    for (const each of gates) await each.metric("sluicegate_region_up", {}, 1);
    const clients = await Promise.all(gates.map((each) => enter(each, "room:42")));
    for (const each of gates) await subscribers(each, 1);
    await add("m-16", "hello");
    await add("m-17", '{"n":17}');
    for (const each of clients) {
      await each.has(3);
      assert.deepEqual(published(each), ["hello", '{"n":17}']);
    }
    await clients[0].leave();
    await add("m-18", "while away");
    // On the other gateway, from the id that the application knows.
    const again = await enter(gates[1], "room:42?prev=m-16");
    await again.has(3);
    await add("m-19", "back");
    await again.has(4);
    assert.deepEqual(published(again), ['{"n":17}', "while away", "back"]);
    const lost = await enter(gates[1], "room:42?prev=m-1");
    await lost.has(2);
    assert.deepEqual(published(lost), ["gap"]);
    const refused = await post(gates[0], [item("elsewhere", "1", "x"), item("room:42", "m-20", "x")]);
    assert.deepEqual([refused.status, await refused.text()],
      [400, "Channel is filled by its own producer: add to its stream in Redis.\n"]);
    assert.equal(total(await gates[0].metrics(), "sluicegate_publishes_total", { result: "stored" }), 0);
    await Promise.all([clients[1], again, lost].map((each) => each.leave()));
  } finally {
    await Promise.all(gates.map((each) => each.stop()));
    await stop();
    await rm(folder, { recursive: true, force: true });
  }
});

test("two gateways on a Cluster: every room reaches both, whichever master has it", async () => {
  const folder = await temporaryFolder();
  const ports = await Promise.all(Array.from({ length: 6 }, freePort));
  const nodes = ports.slice(0, 3);
  const cli = (...words) => promisify(execFile)("redis-cli", words);
  const stops = await Promise.all(nodes.map((port, at) => serve("redis-server", ["--port", String(port), "--bind", "127.0.0.1",
    "--dir", folder, "--save", "", "--cluster-enabled", "yes", "--cluster-port", String(ports[3 + at]),
    "--cluster-config-file", `nodes-${at}.conf`], [port])));
  const gates = [];
  try {
    await cli("--cluster", "create", ...nodes.map((port) => `127.0.0.1:${port}`), "--cluster-yes");
    // One node is enough to find the others.
    const engine = (port) => `{ redis: { cluster: { urls: ["redis://127.0.0.1:${port}"] } } }`;
    for (const port of [nodes[0], nodes[2]]) gates.push(await start(peer.port, engine(port)));
    for (const each of gates) await each.metric("sluicegate_region_up", {}, 1);
    const rooms = Array.from({ length: 12 }, (_, at) => `room-${at}`);
    const clients = await Promise.all(rooms.flatMap((room) => gates.map((each) => enter(each, room))));
    for (const each of gates) await subscribers(each, rooms.length);
    const sent = await post(gates[0], rooms.map((room) => item(room, "1", `for ${room}`)));
    assert.equal(sent.status, 200);
    for (const [at, each] of clients.entries()) {
      await each.has(2);
      assert.deepEqual(published(each), [`for ${rooms[at >> 1]}`]);
    }
    const sizes = await Promise.all(nodes.map(async (port) => Number((await cli("-p", String(port), "DBSIZE")).stdout)));
    assert.ok(sizes.every((size) => size > 0), `every master has some: ${sizes}`);
    await Promise.all(clients.map((each) => each.leave()));
  } finally {
    await Promise.all(gates.map((each) => each.stop()));
    await Promise.all(stops.map((stop) => stop()));
    await rm(folder, { recursive: true, force: true });
  }
});
