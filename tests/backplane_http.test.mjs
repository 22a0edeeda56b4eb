// Fan-out for backends that hold no connection, with the middleware @fanoutio/serve-grip as npm serves it:
// WebSocket-over-HTTP.

import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, test } from "node:test";
import WebSocket from "ws";
import { backend, eventually, freePort, gateway } from "./support.mjs";

const KEY = "a-secret-of-the-gateway";

const configuration = (port) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
backplane:
  publish: { bind: "127.0.0.1:0" }
  grip: { sig_key_file: grip.key }
rules:
  - { name: rooms, upstream: app, backplane: grip_http, message: { max_size: 1MiB } }
`;

/** A gateway before a backend, and where it takes publications. */
async function start(port) {
  const gate = await gateway(configuration(port), { "grip.key": KEY });
  const { address } = await gate.line({ event: "listening", listener: "publish" });
  return { ...gate, publish: `http://${address}` };
}

/** A client of a room: what it was sent, and a way to wait for so much of it. */
async function enter(path) {
  const socket = new WebSocket(`${gate.ws}/${path}`, { headers: { "X-Own": "mine", "Grip-Sig": "forged" } });
  const got = [];
  socket.on("message", (data) => got.push(data.toString()));
  await once(socket, "open");
  return { socket, got, has: (count) => eventually(() => got, (texts) => texts.length >= count) };
}

const item = (channel, id, content) => ({ channel, id, formats: { "ws-message": { content } } });
const publish = async (...items) => {
  const answer = await fetch(`${gate.publish}/publish`, { method: "POST", body: JSON.stringify({ items }) });
  assert.equal(answer.status, 200);
};
const asked = async () => (await fetch(`http://127.0.0.1:${peer.port}/asked`)).json();
const askedFor = async (path) => (await asked()).filter(({ url }) => url.startsWith(path));

let peer, gate;
before(async () => {
  peer = await backend("backends/serve_grip.mjs", { GRIP_KEY: KEY });
  gate = await start(peer.port);
});
after(() => Promise.all([gate?.stop(), peer?.stop()]));

test("a backend without a connection answers, keeps metadata, and reaches everyone by one publication", async () => {
  const [ann, bob] = await Promise.all([enter("tea?a=b"), enter("tea")]);
  await ann.has(1);
  ann.socket.send("hello");
  await ann.has(2);
  ann.socket.send("count");
  await ann.has(3);
  assert.deepEqual(ann.got, ["welcome", "you said: hello", "2"]);
  await gate.metric("sluicegate_subscriptions", {}, 2);
  await publish(item("tea", "t-1", "to all"));
  await Promise.all([ann.has(4), bob.has(2)]);
  assert.deepEqual(bob.got, ["welcome", "to all"]);
  // What a library does not answer as RFC 6455 has it, the gateway does.
  ann.socket.ping("payload");
  assert.equal(String((await once(ann.socket, "pong"))[0]), "payload");
  const [first, second, third] = await askedFor("/tea?a=b");
  assert.deepEqual([first, second, third].map(({ events }) => events), [
    [["OPEN", null]], [["TEXT", "hello"]], [["TEXT", "count"]]]);
  assert.equal(first.method, "POST");
  const { headers } = third;
  assert.equal(headers["connection-id"], first.headers["connection-id"]);
  assert.equal(headers.accept, "application/websocket-events");
  assert.equal(headers["x-own"], "mine");
  assert.equal(headers["meta-sent"], "1");
  assert.equal(headers["sec-websocket-extensions"], "grip");
  assert.notEqual(headers["grip-sig"], "forged");
  assert.equal(headers.upgrade, undefined);
  assert.match(headers["x-forwarded-for"], /^127\./);
  ann.socket.send("close");
  assert.equal((await once(ann.socket, "close"))[0], 4001);
  bob.socket.close(4002, "bye");
  assert.deepEqual([(await once(bob.socket, "close"))[0], (await askedFor("/tea")).at(-1).events], [1000, [["CLOSE", "\u000f\ufffdbye"]]]);
});

test("a client that vanishes is told of, and one that detaches stays", async () => {
  const gone = await enter("gone");
  await gone.has(1);
  gone.socket.terminate();
  await eventually(() => askedFor("/gone"), (all) => all.at(-1).events[0][0] === "DISCONNECT");
  const detached = await enter("detached");
  detached.socket.send("detach");
  await eventually(() => askedFor("/detached"), (all) => all.at(-1).events[0][0] === "CLOSE");
  detached.socket.send("for nobody");
  await publish(item("detached", "d-1", "still here"));
  await detached.has(2);
  assert.deepEqual(detached.got, ["welcome", "still here"]);
  assert.equal((await askedFor("/detached")).length, 3);
  detached.socket.close(4000);
  assert.equal((await once(detached.socket, "close"))[0], 4000);
});

test("a client that comes back gets what it missed, older history from the backend by its link", async () => {
  const first = await enter("history");
  await gate.metric("sluicegate_subscriptions", {}, 1);
  await publish(item("history", "h-1", "one"), item("history", "h-2", "two"), item("history", "h-3", "three"));
  await first.has(4);
  const again = await enter("history?prev=h-1");
  await again.has(3);
  assert.deepEqual(again.got.filter((text) => text !== "welcome"), ["two", "three"]);
  const old = await enter("history?prev=h-0&to=h-2");
  await old.has(3);
  assert.deepEqual(old.got.filter((text) => text !== "welcome"), ["from the database", "three"]);
  const [link] = await askedFor("/since/history");
  assert.equal(link.headers["grip-last"], "history; last-id=h-0");
  assert.equal(link.headers["connection-id"], (await askedFor("/history?prev=h-0"))[0].headers["connection-id"]);
  for (const { socket } of [first, again, old]) socket.terminate();
});

test("a refusal reaches the client as it is, and a backend that fails ends the session", async () => {
  const refused = new WebSocket(`${gate.ws}/refused`);
  const [, answer] = await once(refused, "unexpected-response");
  assert.deepEqual([answer.statusCode, String((await once(answer, "data"))[0])], [403, "not for you\n"]);
  const failing = await enter("failing");
  failing.socket.send("fail");
  const [code] = await once(failing.socket, "close");
  assert.equal(code, 1012);
  const big = await enter("big");
  big.socket.send("x".repeat(200_000));
  await big.has(2);
  big.socket.send("x".repeat(200_001));
  assert.equal((await once(big.socket, "close"))[0], 1009);
  const line = await gate.line({ event: "session", close_code: 1009 });
  assert.equal(line.cause, "message_too_big");
});

test("a backend that cannot be reached is a 502", async () => {
  const dead = await start(await freePort());
  const socket = new WebSocket(`${dead.ws}/x`);
  const [, answer] = await once(socket, "unexpected-response");
  assert.equal(answer.statusCode, 502);
  await dead.stop();
});

/** A plain request through the gateway, whose body is read as it comes. */
async function stream(path, options = {}) {
  const abort = new AbortController();
  const answer = await fetch(`${gate.http}${path}`, { signal: abort.signal, ...options });
  const got = { text: "", ended: false };
  (async () => {
    for await (const piece of answer.body) got.text += Buffer.from(piece).toString();
    got.ended = true;
  })().catch(() => {});
  return { answer, got, abort, has: (text) => eventually(() => got.text, (all) => all === text) };
}
const streamed = (channel, id, content, more = {}) => ({ channel, id, formats: { "http-stream": { content } }, ...more });

test("a held stream goes on with what is published, and ends when a publisher says so", async () => {
  const [one, two] = await Promise.all([stream("/stream/news"), stream("/stream/news")]);
  assert.equal(one.answer.status, 200);
  assert.deepEqual([...one.answer.headers.keys()].filter((name) => name.startsWith("grip")), []);
  await one.has("open\n");
  await gate.metric("sluicegate_subscriptions", {}, 2);
  await publish(streamed("news", "n-1", "first\n"), streamed("news", "n-2", "second\n"));
  await Promise.all([one.has("open\nfirst\nsecond\n"), two.has("open\nfirst\nsecond\n")]);
  two.abort.abort();
  await publish({ channel: "news", id: "n-3", formats: { "http-stream": { action: "close" } } });
  await eventually(() => one.got.ended, Boolean);
});

test("a long poll is answered by what is published, or as the backend would have it in time", async () => {
  const waiting = fetch(`${gate.http}/poll/votes`, { method: "POST", body: "x=1" });
  await gate.metric("sluicegate_subscriptions", {}, 1);
  const response = { code: 202, headers: { "X-From": "publisher" }, body: "counted\n" };
  await publish({ channel: "votes", id: "v-1", formats: { "http-response": response } });
  const answer = await waiting;
  assert.deepEqual([answer.status, answer.headers.get("x-from"), await answer.text()], [202, "publisher", "counted\n"]);
  const late = await fetch(`${gate.http}/poll/votes?timeout=5`);
  assert.deepEqual([late.status, await late.text()], [200, "nothing yet\n"]);
});
