// The client over a WebSocket that does what a test says, and a clock that a test turns.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { SluicegateSocket, isWorthRetrying } from "../dist/index.js";
import { jittered, retryAfter } from "../dist/backoff.js";
import { MAX_CHANNELS, Positions, Recent } from "../dist/cursor.js";
import { agreed, offer, read, sizeOf, write } from "../dist/lines.js";
import { FakeWebSocket } from "./fake.mjs";

const NAMES = ["open", "message", "error", "close", "disconnect", "gap", "subscription"];

function open(options = {}, protocols = []) {
  const socket = new SluicegateSocket("ws://host/path", protocols, { WebSocket: FakeWebSocket, ...options });
  const events = [];
  for (const name of NAMES) socket.addEventListener(name, (event) => events.push(event));
  return { socket, events, of: (name) => events.filter(({ type }) => type === name), wire: () => FakeWebSocket.last };
}

const message = (n, more = {}) => ({ c: "room", p: `eu.a.${n}.${n}00-0`, i: `m${n}`, ts: n, ...more });
const sub = (state, n, head) => ({ t: "sub", c: "room", s: state, n, h: head ? [head] : [] });

let random;
beforeEach(() => {
  FakeWebSocket.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  random = mock.method(Math, "random", () => 0.5);
});
afterEach(() => {
  mock.timers.reset();
  random.mock.restore();
});

test("waits grow twofold up to a bound, with full jitter", () => {
  const settings = { baseMs: 500, capMs: 30_000, resetAfterMs: 0 };
  assert.deepEqual([0, 1, 2, 5, 6, 7, 1000].map((attempt) => jittered(settings, attempt, () => 1)),
    [500, 1000, 2000, 16_000, 30_000, 30_000, 30_000]);
  assert.equal(jittered(settings, 3, () => 0), 0);
});

test("Retry-After is seconds or a date, and has a bound", () => {
  const now = Date.parse("Wed, 21 Oct 2026 07:28:00 GMT");
  assert.deepEqual(
    ["3", " 0 ", "Wed, 21 Oct 2026 07:28:10 GMT", "Wed, 21 Oct 2026 07:00:00 GMT", "999999999", "soon", "", undefined]
      .map((value) => retryAfter(value, now)),
    [3000, 0, 10_000, 0, 3_600_000, undefined, undefined, undefined]);
});

test("codes that refuse or finish are not tried again", () => {
  const worth = [];
  for (let code = 1000; code < 5000; code += 1) if (isWorthRetrying(code)) worth.push(code);
  assert.deepEqual(worth, [1001, 1005, 1006, 1011, 1012, 1013, 1014]);
});

test("lines are read and written in text and in bytes", () => {
  const bytes = (text) => new TextEncoder().encode(text).buffer;
  assert.deepEqual(read("\na\nb"), { line: undefined, payload: "a\nb" });
  assert.deepEqual(read('{"c":"ü"}\n'), { line: { c: "ü" }, payload: "" });
  const binary = read(bytes('{"c":"ü"}\n\nx'));
  assert.deepEqual([binary.line, Buffer.from(binary.payload).toString()], [{ c: "ü" }, "\nx"]);
  for (const bad of ["no line", "[]\n", "null\n", "{]\n", bytes("none"), bytes("1\n")]) assert.throws(() => read(bad), SyntaxError);
  assert.equal(write("x"), "\nx");
  assert.deepEqual([...write(new Uint8Array([9, 1, 2, 9]).subarray(1, 3))], [10, 1, 2]);
  assert.deepEqual([...write(new Uint8Array([1]).buffer)], [10, 1]);
  assert.deepEqual([sizeOf("ü"), sizeOf(new Blob(["abc"])), sizeOf(new Uint16Array(2))], [2, 3, 4]);
  assert.deepEqual(offer(["a", "b"]), ["sluicegate.v1.a", "sluicegate.v1.b", "a", "b"]);
  assert.deepEqual(offer([]), ["sluicegate.v1"]);
  assert.deepEqual(["sluicegate.v1", "sluicegate.v1.a", "a", ""].map((name) => Object.values(agreed(name))),
    [["", true], ["a", true], ["a", false], ["", false]]);
});

test("positions are kept by channel and region, compared within an epoch, and bounded", () => {
  const positions = new Positions({ room: ["eu.a.5.1-0", "us.b.7.1-0", "junk"], "": ["eu.a.1.1-0"] });
  assert.deepEqual(positions.export(), { room: ["eu.a.5.1-0", "us.b.7.1-0"] });
  const had = ["eu.a.5.1-0", "eu.a.4.9-0", "eu.a.6.1-0", "eu.z.1.1-0", "us.b.7.1-0", "ap.a.1.1-0", "junk"];
  assert.deepEqual(had.map((position) => positions.has("room", position)), [true, true, false, false, true, false, false]);
  assert.equal(positions.has("other", "eu.a.1.1-0"), false);
  positions.forget("room", "eu", "eu.a.4.1-0");
  positions.forget("room", "us", "us.b.7.1-0");
  assert.deepEqual(positions.export(), { room: ["eu.a.5.1-0"] });
  positions.forget("room", "eu", "eu.a.5.1-0");
  assert.deepEqual(positions.channels(), []);
  for (let at = 0; at <= MAX_CHANNELS; at += 1) {
    positions.set(`channel ${at}`, "eu.a.1.1-0");
    positions.set("channel 0", "eu.a.2.1-0");
  }
  assert.equal(positions.channels().length, MAX_CHANNELS);
  assert.deepEqual([positions.has("channel 0", "eu.a.1.1-0"), positions.has("channel 1", "eu.a.1.1-0")], [true, false]);
  const long = new Positions();
  for (let at = 0; at < 100; at += 1) long.set(`${at}${"x".repeat(300)}`, "eu.a.1.1-0");
  const { sent, left } = long.resume();
  assert.ok(JSON.stringify(sent).length < 65_000 && left.size > 0 && Object.keys(sent).length + left.size === 100);
  assert.ok(Object.keys(sent).some((name) => name.startsWith("99x")), "the newest first");
});

test("the last ids are known, and no more", () => {
  const recent = new Recent(2);
  assert.deepEqual(["a", "b", "a", "c", "b", "a"].map((id) => recent.add(id)), [true, true, false, true, true, true]);
  assert.deepEqual(["a", "a"].map((id) => new Recent(0).add(id)), [true, true]);
});

test("it offers ours, says that it is new, and gives what comes", async () => {
  const { socket, events, of, wire } = open({}, ["chat"]);
  assert.deepEqual(wire().protocols, ["sluicegate.v1.chat", "chat"]);
  assert.equal(socket.readyState, SluicegateSocket.CONNECTING);
  wire().opens("sluicegate.v1.chat");
  assert.deepEqual([socket.readyState, socket.protocol, socket.resumable], [1, "chat", true]);
  assert.deepEqual(wire().sent, ['{"t":"new"}\n']);
  wire().says({ t: "hello", cid: "c1", future: 1 });
  wire().says(null, "of the backend");
  wire().says(sub("live", 0, "eu.a.1.100-0"));
  wire().says(message(2), "two");
  wire().says({ t: "unknown" });
  wire().onmessage({ data: new TextEncoder().encode('{"c":"room","p":"eu.a.3.300-0"}\nthree').buffer });
  assert.deepEqual(events.map(({ type }) => type), ["open", "message", "subscription", "message", "message"]);
  const [plain, two, three] = of("message");
  assert.deepEqual([plain.data, plain.channel, plain.lastEventId, plain.origin], ["of the backend", undefined, "", "ws://host"]);
  assert.deepEqual([two.data, two.channel, two.position, two.id, two.storedAt], ["two", "room", "eu.a.2.200-0", "m2", 2]);
  assert.ok(three.data instanceof Blob);
  assert.equal(await three.data.text(), "three");
  assert.equal(socket.connectionId, "c1");
  socket.binaryType = "arraybuffer";
  wire().onmessage({ data: new Uint8Array([10, 7]).buffer });
  assert.deepEqual([...new Uint8Array(of("message").at(-1).data)], [7]);
  socket.send("hi");
  socket.send(new Uint8Array([1]));
  assert.deepEqual([wire().sent[1], [...wire().sent[2]]], ["\nhi", [10, 1]]);
  assert.deepEqual(socket.exportCursor(), { room: ["eu.a.3.300-0"] });
});

test("it comes back when a gateway that ends has told it to, and then by its own back-off again", () => {
  const { of, wire } = open();
  wire().opens();
  wire().says({ t: "moved", after_ms: 1234 });
  wire().ends(1012);
  assert.equal(of("disconnect")[0].retryInMs, 1234);
  mock.timers.tick(1234);
  wire().opens();
  wire().ends(1012);
  assert.equal(of("disconnect")[1].retryInMs, 500);
});

test("it comes back to where it was, and gives nothing twice", () => {
  const { of, wire } = open();
  wire().opens();
  wire().says(sub("live", 0, "eu.a.0.0-0"));
  for (const n of [1, 2]) wire().says(message(n), `${n}`);
  wire().ends(1012);
  const [loss] = of("disconnect");
  assert.deepEqual([loss.code, loss.retryInMs], [1012, 250]);
  mock.timers.tick(249);
  assert.equal(FakeWebSocket.made.length, 1);
  mock.timers.tick(1);
  assert.equal(FakeWebSocket.made.length, 2);
  wire().opens();
  assert.deepEqual(JSON.parse(wire().sent[0]), { t: "resume", ch: { room: ["eu.a.2.200-0"] } });
  wire().says(sub("recovered", 2, "eu.a.4.400-0"));
  // The head is not where the client is, while what lies before it is on its way.
  wire().ends(1006);
  mock.timers.tick(500);
  wire().opens();
  assert.deepEqual(JSON.parse(wire().sent[0]).ch, { room: ["eu.a.2.200-0"] });
  for (const n of [2, 3, 4]) wire().says(message(n), `${n}`);
  // The same message again, in another region.
  wire().says(message(9, { p: "us.b.9.900-0", i: "m4" }), "4");
  wire().says(message(5), "5");
  assert.deepEqual(of("message").map(({ data }) => data), ["1", "2", "3", "4", "5"]);
});

test("a gap is told and moves the position; one without an end forgets it", () => {
  const cursor = { room: ["eu.a.2.200-0", "us.a.1.1-0"] };
  const { socket, of, wire } = open({ cursor });
  wire().opens();
  assert.deepEqual(JSON.parse(wire().sent[0]).ch, cursor);
  wire().says({ t: "gap", c: "room", r: "eu", why: "trimmed", from: "eu.a.2.200-0", to: "eu.b.9.900-0" });
  wire().says({ t: "gap", c: "room", r: "us", why: "region_down", from: "us.a.1.1-0" });
  assert.deepEqual(of("gap").map(({ channel, region, why, from, to }) => [channel, region, why, from, to]), [
    ["room", "eu", "trimmed", "eu.a.2.200-0", "eu.b.9.900-0"], ["room", "us", "region_down", "us.a.1.1-0", undefined],
  ]);
  assert.deepEqual(socket.exportCursor(), { room: ["eu.b.9.900-0"] });
  wire().says({ t: "pos", c: "room", p: "eu.b.10.1000-0" });
  assert.deepEqual(socket.exportCursor(), { room: ["eu.b.10.1000-0"] });
});

test("what does not fit into a resume is a gap when it goes on live", () => {
  const cursor = Object.fromEntries(Array.from({ length: 100 }, (_, at) => [`${at}${"x".repeat(300)}`, ["eu.a.1.1-0"]]));
  const { of, wire } = open({ cursor });
  wire().opens();
  const told = JSON.parse(wire().sent[0]).ch;
  const names = Object.keys(cursor);
  const [left] = names.filter((name) => !(name in told));
  for (const channel of [left, left, names.at(-1)]) wire().says({ t: "sub", c: channel, s: "live", n: 0, h: ["eu.a.2.2-0"] });
  assert.deepEqual(of("gap").map(({ channel, why }) => [channel, why]), [[left, "limit"]]);
});

test("waits grow while it fails, and begin anew when it was up for a while", () => {
  const { of, wire } = open();
  for (let at = 0; at < 9; at += 1) {
    wire().ends(1006);
    mock.timers.tick(30_000);
  }
  assert.deepEqual(of("disconnect").map(({ retryInMs }) => retryInMs), [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
  wire().opens();
  mock.timers.tick(9_999);
  wire().ends(1013);
  assert.equal(of("disconnect").at(-1).retryInMs, 15_000, "it was not up for long");
  mock.timers.tick(15_000);
  wire().opens();
  mock.timers.tick(10_000);
  wire().ends(1013);
  assert.equal(of("disconnect").at(-1).retryInMs, 250);
});

test("a code that says no ends it, and an option decides otherwise", () => {
  for (const code of [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 4000, 4999]) {
    const { socket, of, wire } = open();
    wire().opens();
    wire().ends(code, "no");
    mock.timers.tick(100_000);
    assert.equal(socket.readyState, SluicegateSocket.CLOSED);
    assert.deepEqual(of("close").map((event) => [event.code, event.reason, event.wasClean]), [[code, "no", true]]);
    assert.deepEqual([FakeWebSocket.last, of("disconnect")[0].retryInMs], [wire(), undefined]);
  }
  const asked = [];
  const stubborn = open({ reconnect: (loss) => asked.push(loss) < 2 });
  stubborn.wire().ends(4000, "again");
  mock.timers.tick(250);
  stubborn.wire().ends(4000);
  assert.deepEqual(asked.map(({ code, attempt, status }) => [code, attempt, status]), [[4000, 0, undefined], [4000, 1, undefined]]);
  assert.equal(stubborn.socket.readyState, 3);
  const never = open({ reconnect: false });
  never.wire().ends(1006);
  assert.equal(never.socket.readyState, 3);
});

test("the application's close ends it from every state, once", async () => {
  const connecting = open();
  connecting.socket.close();
  const waiting = open();
  waiting.wire().ends(1006);
  waiting.socket.close(4001, "enough");
  const inside = open();
  inside.socket.addEventListener("disconnect", () => inside.socket.close());
  inside.wire().ends(1006);
  await Promise.resolve();
  for (const { socket, of } of [connecting, waiting, inside]) {
    assert.deepEqual([socket.readyState, of("close").length, of("close")[0].code], [3, 1, 1006]);
    socket.close();
  }
  const made = FakeWebSocket.made.length;
  const up = open();
  up.wire().opens();
  up.socket.close(4001, "enough");
  assert.deepEqual([up.socket.readyState, up.wire().closed], [2, [[4001, "enough"]]]);
  up.socket.send("dropped");
  up.wire().says(null, "late");
  up.wire().ends(4001, "enough");
  assert.deepEqual([up.of("message").length, up.of("close")[0].code, up.socket.readyState], [0, 4001, 3]);
  mock.timers.tick(100_000);
  assert.equal(FakeWebSocket.made.length, made + 1);
  assert.throws(() => up.socket.close(1001), { name: "InvalidAccessError" });
  assert.throws(() => up.socket.close(1000, "ü".repeat(62)), { name: "SyntaxError" });
});

test("sending without a connection is an error, or waits within bounds", () => {
  const strict = open();
  assert.throws(() => strict.socket.send("x"), { name: "InvalidStateError" });
  const { socket, wire } = open({ queue: { maxMessages: 2, maxBytes: 4 } });
  socket.send("ab");
  assert.throws(() => socket.send("abc"), { name: "QuotaExceededError" });
  socket.send("c");
  assert.throws(() => socket.send(""), { name: "QuotaExceededError" });
  assert.equal(socket.bufferedAmount, 3);
  wire().opens();
  assert.deepEqual(wire().sent, ['{"t":"new"}\n', "\nab", "\nc"]);
  assert.equal(socket.bufferedAmount, 0);
  wire().ends(1006);
  socket.send("d");
  mock.timers.tick(250);
  wire().opens("");
  assert.deepEqual(wire().sent, ["d"]);
});

test("behind a server without the subprotocol it is a plain WebSocket that says what it cannot know", () => {
  const { socket, of, wire } = open({ cursor: { room: ["eu.a.1.1-0"] } });
  assert.deepEqual(wire().protocols, ["sluicegate.v1"]);
  // What a browser does when none of the offered is answered.
  wire().ends(1006);
  mock.timers.tick(250);
  assert.deepEqual(wire().protocols, []);
  wire().opens("");
  assert.equal(socket.resumable, false);
  assert.deepEqual(of("gap").map(({ channel, why }) => [channel, why]), [["room", "not_resumable"]]);
  wire().onmessage({ data: "no line at all" });
  socket.send("x");
  assert.deepEqual([of("message")[0].data, wire().sent], ["no line at all", ["x"]]);
  wire().ends(1006);
  mock.timers.tick(1000);
  assert.deepEqual(wire().protocols, ["sluicegate.v1"], "ours first, each time");
  wire().opens();
  for (let at = 0; at < 3; at += 1) {
    wire().ends(1006);
    mock.timers.tick(30_000);
    assert.deepEqual(wire().protocols, ["sluicegate.v1"], "it is known to be there");
  }
  const always = open({ fallback: false });
  always.wire().ends(1006);
  mock.timers.tick(250);
  assert.deepEqual(always.wire().protocols, ["sluicegate.v1"]);
  const inner = open({}, "chat");
  inner.wire().opens("chat");
  assert.deepEqual([inner.socket.resumable, inner.socket.protocol], [false, "chat"]);
});

test("what `ws` says of a refusal decides how long to wait, and whether", () => {
  class Ws extends FakeWebSocket {
    listeners = {};
    on(name, listener) {
      this.listeners[name] = listener;
    }
    terminate() {
      this.ends(1006);
    }
    refuses(statusCode, headers = {}) {
      this.listeners["unexpected-response"]({}, { statusCode, headers, resume() {} });
    }
  }
  const { of, wire, socket } = open({ WebSocket: Ws, webSocketOptions: { headers: { a: "b" } } });
  assert.deepEqual(wire().options, { headers: { a: "b" } });
  wire().refuses(503, { "retry-after": "7" });
  assert.deepEqual([of("disconnect")[0].status, of("disconnect")[0].retryInMs], [503, 7250]);
  mock.timers.tick(7250);
  wire().refuses(429, { "retry-after": new Date(Date.now() + 3000).toUTCString() });
  const { retryInMs } = of("disconnect")[1];
  assert.ok(retryInMs > 2000 && retryInMs <= 3500, `${retryInMs}`);
  mock.timers.tick(retryInMs);
  wire().refuses(502);
  assert.equal(of("disconnect")[2].retryInMs, 1000);
  mock.timers.tick(1000);
  assert.deepEqual(wire().protocols, ["sluicegate.v1"], "nothing of the subprotocol was refused");
  wire().refuses(403);
  assert.deepEqual([of("disconnect")[3].status, of("disconnect")[3].retryInMs, socket.readyState], [403, undefined, 3]);
});

test("a connection that does not open in time is given up, and so is a gateway that breaks the subprotocol", () => {
  const { of, wire } = open({ connectTimeoutMs: 1000 });
  const first = wire();
  mock.timers.tick(1000);
  assert.deepEqual([first.closed.length, of("disconnect")[0].code], [1, 1006]);
  assert.equal(first.onclose, null);
  mock.timers.tick(250);
  wire().opens();
  for (const broken of ["no line", '{"c":"room"}\nx']) {
    const { socket, wire: of } = open();
    of().opens();
    of().onmessage({ data: broken });
    assert.deepEqual([socket.readyState, of().closed], [2, [[4002, "the gateway broke the subprotocol"]]]);
  }
});

test("silence is the end of a connection whose pings can be seen", () => {
  class Ws extends FakeWebSocket {
    on(name, listener) {
      if (name === "ping") this.ping = listener;
    }
  }
  const { of, wire, socket } = open({ WebSocket: Ws });
  wire().opens();
  wire().says({ t: "hello", ping: 25_000 });
  for (let at = 0; at < 5; at += 1) {
    mock.timers.tick(54_000);
    wire().ping();
  }
  mock.timers.tick(54_999);
  assert.equal(of("disconnect").length, 0);
  mock.timers.tick(1);
  assert.deepEqual([of("disconnect")[0].code, of("disconnect")[0].wasClean], [1006, false]);
  mock.timers.tick(250);
  wire().opens();
  wire().says({ t: "hello", ping: 25_000 });
  socket.close();
  mock.timers.tick(100_000);
  assert.equal(of("disconnect").length, 1, "its close is waited for as a WebSocket waits");
  const blind = open();
  blind.wire().opens();
  blind.wire().says({ t: "hello", ping: 25_000 });
  mock.timers.tick(1_000_000);
  assert.equal(blind.of("disconnect").length, 0);
});

test("handlers are as a WebSocket's, addresses may be asked for, and a bad one is an error", () => {
  const seen = [];
  let asked = 0;
  const socket = new SluicegateSocket(() => (asked++ === 1 ? "bad:" : `ws://host/?token=${asked}`), [], { WebSocket: FakeWebSocket });
  for (const name of NAMES) {
    assert.equal(socket[`on${name}`], null);
    socket[`on${name}`] = () => seen.push("replaced");
    socket[`on${name}`] = ({ type }) => seen.push(type);
    assert.equal(typeof socket[`on${name}`], "function");
  }
  socket.onerror = null;
  FakeWebSocket.last.ends(1006);
  mock.timers.tick(250);
  mock.timers.tick(500);
  assert.deepEqual([FakeWebSocket.made.length, socket.url], [2, "ws://host/?token=3"]);
  FakeWebSocket.last.opens();
  assert.deepEqual(seen, ["disconnect", "disconnect", "open"]);
  assert.throws(() => new SluicegateSocket("bad:", [], { WebSocket: FakeWebSocket }), SyntaxError);
  const { WebSocket } = globalThis;
  delete globalThis.WebSocket;
  assert.throws(() => new SluicegateSocket("ws://host"), TypeError);
  if (WebSocket) globalThis.WebSocket = WebSocket;
});
