// The subprotocol sluicegate.v1 on the wire, by a client that speaks it by hand: what is negotiated, what a client is
// told, and what it gets when it comes back, at the same gateway or at another on the same Redis.

import assert from "node:assert/strict";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { after, before, test } from "node:test";
import WebSocket from "ws";
import { publish, start } from "./rooms.mjs";
import { backend, eventually, freePort, serve, temporaryFolder, total } from "./support.mjs";

/** A message as its header line and its payload. */
function split(data) {
  const end = data.indexOf(10);
  const line = data.subarray(0, end).toString();
  return { ...(line ? JSON.parse(line) : {}), payload: data.subarray(end + 1).toString() };
}

/** A client of the subprotocol: what it was told, and a way to wait for what `wants` finds. */
async function enter(url, first, { protocols = ["sluicegate.v1"], ...options } = {}) {
  const socket = new WebSocket(url, protocols, options);
  const got = [];
  socket.on("message", (data) => got.push(split(data)));
  await once(socket, "open");
  if (first) socket.send(`${JSON.stringify(first)}\n`);
  const wait = async (wants) => {
    await eventually(() => got.map((message) => message), (messages) => messages.some(wants));
    return got.find(wants);
  };
  return {
    socket,
    got,
    wait,
    messages: () => got.filter(({ c, p, t }) => c && p && !t),
    published: (count) => eventually(() => got.filter(({ c, p, t }) => c && p && !t), (all) => all.length >= count),
    async leave() {
      socket.close();
      await once(socket, "close");
    },
  };
}

const is = (kind) => ({ t }) => t === kind;
const resume = (ch) => ({ t: "resume", ch });

let peer, gate;
before(async () => {
  peer = await backend("backends/grip_rooms.mjs");
  gate = await start(peer.port);
});
after(() => Promise.all([gate?.stop(), peer?.stop()]));

test("the subprotocol is agreed on only where the rule, the backend and its own subprotocol are", async () => {
  const echo = await backend("backends/ws_echo.mjs");
  const other = await start(echo.port);
  // What the server of `ws` does by itself: it accepts the first that it is offered.
  const open = (url, protocols) =>
    new Promise((resolve) => {
      const socket = new WebSocket(url, protocols);
      socket.on("open", () => resolve(socket.protocol) || socket.terminate());
      socket.on("error", ({ message }) => resolve(new Error(message)));
    });
  try {
    for (const [url, protocols, expected] of [
      [`${gate.ws}/offers`, ["sluicegate.v1"], "sluicegate.v1"],
      [`${gate.ws}/offers`, ["sluicegate.v1.chat", "chat"], "sluicegate.v1.chat"],
      [`${gate.ws}/offers`, ["sluicegate.v1.chat"], "sluicegate.v1.chat"],
      [`${gate.ws}/offers`, ["sluicegate.v1", "chat"], "chat"],
      [`${gate.ws}/offers`, ["chat"], "chat"],
      // Without a backplane, and where the backend does not opt in, the client falls back.
      [`${gate.ws}/plain`, ["sluicegate.v1.chat", "chat"], "chat"],
      [other.ws, ["sluicegate.v1.chat", "chat"], "chat"],
    ]) {
      assert.equal(await open(url, protocols), expected, `${url} ${protocols}`);
    }
    // It offered nothing else, so it is answered none, and refuses that itself.
    for (const [url, protocols] of [
      [`${gate.ws}/plain`, ["sluicegate.v1"]], [`${gate.ws}/plain`, ["sluicegate.v1.chat"]], [other.ws, ["sluicegate.v1.chat"]],
    ]) {
      const refused = await open(url, protocols);
      assert.match(String(refused), /Server sent no subprotocol/, `${url} ${protocols}`);
    }
  } finally {
    await Promise.all([other.stop(), echo.stop()]);
  }
});

test("every message has its line, whoever sends it and however it is cut", async () => {
  const ann = await enter(`${gate.ws}/lines`, { t: "new" }, { perMessageDeflate: true });
  assert.equal(ann.socket.extensions, "permessage-deflate");
  const hello = await ann.wait(is("hello"));
  assert.deepEqual(Object.keys(hello).sort(), ["cid", "max_frame", "payload", "ping", "region", "resume_wait", "t", "v"]);
  assert.deepEqual([hello.v, hello.region, hello.resume_wait, hello.ping, hello.max_frame], [1, "eu", 2000, 25000, 1048576]);
  const sub = await ann.wait(is("sub"));
  assert.deepEqual([sub.c, sub.s, sub.n, sub.h.length], ["lines", "live", 0, 1]);
  await publish(gate, "lines", ["m-1"]);
  await ann.published(1);
  const [message] = ann.messages();
  assert.deepEqual([message.c, message.i, message.payload], ["lines", "m-1", "text m-1"]);
  assert.match(message.p, /^eu\.[\w-]+\.1\.\d+-\d+$/);
  assert.ok(Math.abs(message.ts - Date.now()) < 60_000);
  // In fragments, of which the first has no byte.
  for (const [part, fin] of [["", false], ["\nhel", false], ["lo", true]]) ann.socket.send(part, { fin });
  await ann.wait(({ payload }) => payload === "you said: hello");
  ann.socket.send(`\n${"x".repeat(100_000)}`);
  await ann.wait(({ payload }) => payload.length === 100_000 + "you said: ".length);
  const line = ann.got[0].cid;
  ann.socket.close();
  const session = await gate.line({ event: "session", session_id: line });
  assert.deepEqual([session.subprotocol, session.rule, session.cause], ["sluicegate.v1", "rooms", "client_closed"]);
});

test("sizes are those on the wire, and what breaks the subprotocol is closed with 1002", async () => {
  const small = await start(peer.port, "memory", { rule: ", message: { max_size: 1KiB }" });
  try {
    for (const [text, code, cause] of [
      [`\n${"x".repeat(1024)}`, 1009, "message_too_big"], ["hello", 1002, "client_subprotocol"],
      ['{"t":"new"}\nx', 1002, "client_subprotocol"],
    ]) {
      const bob = await enter(`${small.ws}/sizes`);
      assert.equal((await bob.wait(is("hello"))).max_frame, 1024);
      bob.socket.send(`\n${"x".repeat(1023)}`);
      await bob.wait(({ payload }) => payload.startsWith("you said"));
      bob.socket.send(text);
      const [found] = await once(bob.socket, "close");
      assert.equal(found, code);
      const line = await small.line({ event: "session", session_id: bob.got[0].cid });
      assert.deepEqual([line.close_code, line.cause], [code, cause]);
    }
    const metrics = await small.metrics();
    assert.equal(total(metrics, "sluicegate_closes_total", { cause: "client_subprotocol", code: "1002" }), 2);
  } finally {
    await small.stop();
  }
});

test("a client that reads too slowly is closed with 1013, comes back, and hears of what is gone", async () => {
  const rule = ", compression: refuse, slow_client: { timeout: 60s, max_queue_messages: 1 }";
  const tight = await start(peer.port, "memory", { rule, history: ", history: { max_messages: 2 }" });
  try {
    const ann = await enter(`${tight.ws}/slow`, { t: "new" });
    await ann.wait(is("sub"));
    ann.socket.pause();
    const ALL = 1000;
    for (let from = 1; from <= ALL; from += 50) {
      const ids = Array.from({ length: 50 }, (_, at) => from + at);
      await publish(tight, "slow", ids, (id) => `${id} ${"x".repeat(16 << 10)}`);
    }
    const closed = once(ann.socket, "close");
    ann.socket.resume();
    assert.equal((await closed)[0], 1013);
    const got = ann.messages();
    assert.deepEqual(got.map(({ i }) => Number(i)), got.map((_, at) => at + 1), "in order, without a hole");
    assert.ok(got.length < ALL - 2, `${got.length} of ${ALL}`);
    const back = await enter(`${tight.ws}/slow`, resume({ slow: [got.at(-1).p] }));
    const gap = await back.wait(is("gap"));
    assert.deepEqual([gap.why, gap.from], ["trimmed", got.at(-1).p]);
    assert.match(gap.to, new RegExp(`\\.${ALL}\\.`));
    await publish(tight, "slow", [ALL + 1]);
    assert.deepEqual((await back.published(1)).map(({ i }) => i), [`${ALL + 1}`]);
    await back.leave();
  } finally {
    await tight.stop();
  }
});

test("a client whose node restarted on memory hears of the gap", async () => {
  const first = await start(peer.port);
  const ann = await enter(`${first.ws}/restart`, { t: "new" });
  await ann.wait(is("sub"));
  await publish(first, "restart", ["m-1"]);
  await ann.published(1);
  const closed = once(ann.socket, "close");
  await first.stop();
  assert.equal((await closed)[0], 1012);
  const second = await start(peer.port);
  try {
    const again = await enter(`${second.ws}/restart`, resume({ restart: [ann.messages()[0].p] }));
    const gap = await again.wait(is("gap"));
    assert.deepEqual([gap.c, gap.r, gap.why, gap.from], ["restart", "eu", "lineage", ann.messages()[0].p]);
    assert.equal((await again.wait(is("sub"))).s, "gap");
    await publish(second, "restart", ["m-2"]);
    await again.published(1);
    await again.leave();
  } finally {
    await second.stop();
  }
});

test("a client of a gateway that ends is told when to come back, behind a whole message and before its close", async () => {
  const ending = await start(peer.port);
  const client = await enter(`${ending.ws}/leaving`, { t: "new" });
  await client.wait(is("sub"));
  const plain = new WebSocket(`${ending.ws}/leaving`);
  const texts = [];
  plain.on("message", (data) => texts.push(String(data)));
  await once(plain, "open");
  await eventually(() => texts.length, Boolean);
  const closed = Promise.all([client.socket, plain].map((socket) => once(socket, "close")));
  const stopped = ending.stop();
  assert.deepEqual((await closed).map(([code]) => code), [1012, 1012]);
  await stopped;
  const told = client.got.at(-1);
  assert.equal(told.t, "moved");
  assert.ok(Number.isInteger(told.after_ms) && told.after_ms >= 0 && told.after_ms < 2000, JSON.stringify(told));
  assert.deepEqual(texts, ["welcome"]);
});

test("a place that one gateway gave is one that the other knows, and what waits for Redis is said to", async () => {
  const folder = await temporaryFolder();
  const port = await freePort();
  const redis = () => serve("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder,
    "--save", "", "--appendonly", "yes", "--appendfsync", "always"], [port]);
  let stop = await redis();
  const engine = `{ redis: { url: "redis://127.0.0.1:${port}" } }`;
  const [one, two] = await Promise.all([start(peer.port, engine), start(peer.port, engine)]);
  try {
    for (const each of [one, two]) await each.metric("sluicegate_region_up", {}, 1);
    const ann = await enter(`${one.ws}/both`, { t: "new" });
    const start = await ann.wait(is("sub"));
    await publish(two, "both", ["m-1", "m-2"]);
    await ann.published(2);
    await ann.leave();
    await publish(one, "both", ["m-3", "m-4"]);
    for (const [place, missed] of [[ann.messages()[1].p, ["m-3", "m-4"]], [start.h[0], ["m-1", "m-2", "m-3", "m-4"]]]) {
      for (const each of [two, one]) {
        const moved = await enter(`${each.ws}/both`, resume({ both: [place], elsewhere: [place] }));
        const sub = await moved.wait(is("sub"));
        assert.deepEqual([sub.c, sub.s, sub.n], ["both", "recovered", missed.length]);
        await moved.published(missed.length);
        assert.deepEqual(moved.messages().map(({ i }) => i), missed);
        // What it was not subscribed to by its backend is not looked at.
        assert.ok(moved.got.every(({ c }) => c !== "elsewhere"));
        await moved.leave();
      }
    }
    const live = await enter(`${two.ws}/both`, { t: "new" });
    await live.wait(is("sub"));
    await stop();
    await two.metric("sluicegate_region_up", {}, 0);
    const late = await enter(`${two.ws}/new`, resume({ new: [] }));
    assert.deepEqual((await late.wait(is("sub"))).s, "pending");
    stop = await redis();
    await late.wait(({ s }) => s === "live");
    await eventually(() => publish(one, "both", ["m-5"]).then(() => true, () => false), Boolean);
    await live.published(1);
    assert.deepEqual(live.messages().map(({ i }) => i), ["m-5"]);
    await Promise.all([live, late].map((each) => each.leave()));
  } finally {
    await Promise.all([one, two].map((each) => each.stop()));
    await stop();
    await rm(folder, { recursive: true, force: true });
  }
});
