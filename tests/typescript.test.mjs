// @sluicegate/client in Node, over `ws` and over Node's own WebSocket, through real gateways on one Redis, on a network
// that breaks.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { SluicegateSocket } from "../clients/typescript/dist/index.js";
import { relay } from "./relay.mjs";
import { bed, publish, start } from "./rooms.mjs";
import { eventually, temporaryFolder } from "./support.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const FAST = { baseMs: 20, capMs: 200 };

/** A client of a room, and what it was told. */
function enter(url, options = {}, protocols = []) {
  const socket = new SluicegateSocket(url, protocols, { WebSocket, backoff: FAST, ...options });
  const told = { messages: [], gaps: [], losses: [], subscriptions: [], closes: [], opens: 0 };
  socket.onopen = () => (told.opens += 1);
  socket.onmessage = (event) => told.messages.push(event);
  socket.ongap = (event) => told.gaps.push(event);
  socket.ondisconnect = (event) => told.losses.push(event);
  socket.onsubscription = (event) => told.subscriptions.push(event.state);
  socket.onclose = (event) => told.closes.push(event);
  const ids = () => told.messages.filter(({ channel }) => channel).map(({ id }) => id);
  return {
    socket, told, ids,
    subscribed: (count = 1) => eventually(() => told.subscriptions.filter((state) => state !== "pending"), ({ length }) => length >= count),
    has: (count) => eventually(ids, ({ length }) => length >= count),
    async leave() {
      if (socket.readyState === 3) return;
      const closed = once(socket, "close");
      socket.close();
      await closed;
    },
  };
}

const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => `${from + at}`);

let the;
before(async () => {
  the = await bed();
});
after(() => the?.stop());

test("on a network that breaks, and between two gateways, every message comes once and in order", async () => {
  const [one, two] = the.gates;
  const wire = await relay(one.port);
  const ann = enter(`${wire.ws}/broken`, { queue: {} });
  try {
    await ann.subscribed();
    const ALL = 300;
    for (let at = 1; at <= ALL; at += 1) {
      await publish(the.gates[at % 2], "broken", [at]);
      if (at % 20 === 0 && at < ALL) {
        wire.pointTo([one, two][(at / 20) % 2].port);
        wire.cut();
      }
    }
    await ann.has(ALL);
    assert.deepEqual(ann.ids(), numbers(1, ALL));
    assert.deepEqual(ann.told.gaps, []);
    assert.ok(ann.told.opens > 1, `${ann.told.opens} connections`);
    assert.ok(ann.told.subscriptions.includes("recovered"));
    ann.socket.send("hello");
    await eventually(() => ann.told.messages.map(({ data }) => data), (texts) => texts.includes("you said: hello"));
  } finally {
    await ann.leave();
    await wire.stop();
  }
});

test("a gateway that drains is left for another, and what is published meanwhile is not missed", async () => {
  const leaving = await the.another();
  const wire = await relay(leaving.port);
  const ann = enter(`${wire.ws}/drain`, {}, "chat");
  try {
    await ann.subscribed();
    assert.deepEqual([ann.socket.protocol, ann.socket.resumable], ["chat", true]);
    await publish(the.gates[0], "drain", [1]);
    await ann.has(1);
    wire.pointTo(the.gates[1].port);
    const stopped = leaving.stop();
    await eventually(() => ann.told.losses.length, Boolean);
    await publish(the.gates[0], "drain", [2, 3]);
    await ann.has(3);
    await stopped;
    assert.equal(ann.told.losses[0].code, 1012);
    assert.deepEqual([ann.ids(), ann.told.gaps], [["1", "2", "3"], []]);
  } finally {
    await ann.leave();
    await wire.stop();
  }
});

test("over ws, a network that is gone without a word is noticed by its silence", async () => {
  const quick = await the.another({ rule: ", keepalive: { interval: 1s, timeout: 2s }" });
  const wire = await relay(quick.port);
  const ann = enter(`${wire.ws}/silent`);
  try {
    await ann.subscribed();
    await publish(the.gates[0], "silent", [1]);
    await ann.has(1);
    const id = ann.socket.connectionId;
    wire.freeze();
    await publish(the.gates[0], "silent", [2]);
    await quick.line({ event: "session", session_id: id, cause: "client_silent" });
    await ann.has(2);
    assert.deepEqual([ann.ids(), ann.told.gaps, ann.told.losses.map(({ code }) => code)], [["1", "2"], [], [1006]]);
  } finally {
    await ann.leave();
    await Promise.all([wire.stop(), quick.stop()]);
  }
});

test("a cursor that was exported is where the next client begins, and one of another log is a gap", async () => {
  const url = `${the.gates[0].ws}/exported`;
  const ann = enter(url);
  await ann.subscribed();
  await publish(the.gates[1], "exported", [1, 2]);
  await ann.has(2);
  const cursor = JSON.parse(JSON.stringify(ann.socket.exportCursor()));
  await ann.leave();
  await publish(the.gates[1], "exported", [3]);
  const bob = enter(`${the.gates[1].ws}/exported`, { cursor });
  await bob.has(1);
  assert.deepEqual([bob.ids(), bob.told.subscriptions, bob.told.gaps], [["3"], ["recovered"], []]);
  await bob.leave();
  const eve = enter(url, { cursor: { exported: ["eu.other.7.1-0"] } });
  await eve.subscribed();
  assert.deepEqual(eve.told.gaps.map(({ channel, why }) => [channel, why]), [["exported", "lineage"]]);
  await eve.leave();
});

test("a refusal with Retry-After is waited for, and one that says no is the end", async () => {
  const limited = await start(the.peer.port, "memory", { rule: ", handshake: { per_ip: { rate: 20/m, burst: 1 } }" });
  try {
    const first = enter(`${limited.ws}/limited`);
    await first.subscribed();
    const second = enter(`${limited.ws}/limited`);
    await second.subscribed();
    const [loss] = second.told.losses;
    assert.deepEqual([loss.status, loss.retryInMs >= 1000], [429, true], JSON.stringify(loss));
    await Promise.all([first.leave(), second.leave()]);
  } finally {
    await limited.stop();
  }
  const stranger = enter(`${the.gates[0].ws}/origin`, { webSocketOptions: { origin: "https://evil.example" } });
  await eventually(() => stranger.told.closes.length, Boolean);
  assert.deepEqual([stranger.told.losses[0].status, stranger.told.closes[0].code], [403, 1006]);
});

test("without the subprotocol it is a plain WebSocket", async () => {
  for (const [protocols, protocol] of [[[], ""], [["chat"], "chat"]]) {
    const plain = enter(`${the.gates[0].ws}/plain`, { cursor: { room: ["eu.a.1.1-0"] } }, protocols);
    await eventually(() => plain.told.opens, Boolean);
    assert.deepEqual([plain.socket.resumable, plain.socket.protocol], [false, protocol]);
    assert.deepEqual(plain.told.gaps.map(({ why }) => why), ["not_resumable"]);
    plain.socket.send("plain");
    // The backend speaks GRIP to nobody there, so its prefix is seen.
    await eventually(() => plain.told.messages.map(({ data }) => data), (texts) => texts.includes("m:you said: plain"));
    await plain.leave();
  }
});

test("a close of the application's own code is the end, and binary messages pass", async () => {
  const ann = enter(`${the.gates[0].ws}/ending`);
  await ann.subscribed();
  ann.socket.binaryType = "arraybuffer";
  const item = { channel: "ending", id: "b", formats: { "ws-message": { "content-bin": "AP8K" } } };
  await fetch(the.gates[1].publish, { method: "POST", body: JSON.stringify({ items: [item] }) });
  await ann.has(1);
  assert.deepEqual([...new Uint8Array(ann.told.messages.at(-1).data)], [0, 255, 10]);
  ann.socket.send("close");
  await eventually(() => ann.told.closes.length, Boolean);
  assert.deepEqual([ann.told.closes[0].code, ann.told.closes[0].reason, ann.told.opens], [4001, "asked for", 1]);
});

test("over Node's own WebSocket it is the same", async () => {
  const wire = await relay(the.gates[0].port);
  try {
    const done = new Promise((resolve, reject) => {
      const script = here("clients/sluicegate_native.mjs");
      const flags = globalThis.WebSocket ? [] : ["--experimental-websocket", "--no-warnings"];
      const child = execFile(process.execPath, [...flags, script, `${wire.ws}/native`, "4"], { timeout: 30_000 },
        (error, stdout, stderr) => (error ? reject(new Error(`${error}${stderr}`)) : resolve(JSON.parse(stdout.trim().split("\n").at(-1)))));
      child.stdout.on("data", async (text) => {
        if (!String(text).includes("subscribed")) return;
        await publish(the.gates[0], "native", [1, 2]);
        wire.pointTo(the.gates[1].port);
        wire.cut();
        await publish(the.gates[0], "native", [3, 4]);
      });
    });
    assert.deepEqual(await done, { ids: ["1", "2", "3", "4"], gaps: 0, resumable: true });
  } finally {
    await wire.stop();
  }
});

test("the examples of its README run", async () => {
  const folder = await temporaryFolder();
  try {
    await mkdir(join(folder, "node_modules/@sluicegate"), { recursive: true });
    await symlink(here("../clients/typescript"), join(folder, "node_modules/@sluicegate/client"));
    await symlink(here("node_modules/ws"), join(folder, "node_modules/ws"));
    const readme = await readFile(here("../clients/typescript/README.md"), "utf8");
    const examples = [...readme.matchAll(/^```js (\w+)\n(.*?)^```$/gms)].map(([, name, code]) => [name, code]);
    assert.deepEqual(examples.map(([name]) => name), ["node", "queue", "cursor"]);
    for (const [name, code] of examples) {
      const file = join(folder, `${name}.mjs`);
      const url = `${the.gates[0].ws}/readme-${name}`;
      assert.ok(code.includes("wss://chat.example.com/room"), name);
      await writeFile(file, code.replaceAll("wss://chat.example.com/room", url));
      const child = execFile(process.execPath, [file], { timeout: 20_000 });
      let said = "";
      for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (said += part));
      const exited = once(child, "exit");
      await eventually(() => said, (text) => text.includes("subscribed") || child.exitCode !== null);
      await publish(the.gates[1], `readme-${name}`, ["1"]);
      const [status] = await exited;
      assert.equal(status, 0, `${name}: ${said}`);
      assert.match(said, /text 1/, name);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
