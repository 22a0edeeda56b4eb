// examples/ticker as it is, with a few clients, some of which read slowly: all have the feed's last price of every symbol in
// the end, and no price goes back. `make ticker` measures it with thousands.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { eventually, freePort, gateway, temporaryFolder, total } from "./support.mjs";

const CLIENTS = 30;
const SYMBOLS = 500;
const RUN_MS = 3_000;
const here = (name) => fileURLToPath(new URL(`../examples/ticker/${name}`, import.meta.url));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let folder, gate, feed;

/** Starts the feed, to a gateway that publishes at `publish`. */
function start(port, publish) {
  const env = { ...process.env, PORT: String(port), PUBLISH: `http://127.0.0.1:${publish}/publish`, LAST: join(folder, "last.json") };
  const child = spawn(process.execPath, [here("feed.mjs")], { env, stdio: ["ignore", "ignore", "inherit"] });
  const exited = once(child, "exit");
  return {
    async stop() {
      child.kill("SIGTERM");
      const [code] = await exited;
      return code;
    },
  };
}

before(async () => {
  folder = await temporaryFolder();
  const [port, publish] = await Promise.all([freePort(), freePort()]);
  let configuration = await readFile(here("ticker.yaml"), "utf8");
  for (const [place, address] of [["8080", "0"], ["9901", "0"], ["3000", port], ["5561", publish]]) {
    assert.ok(configuration.includes(`127.0.0.1:${place}`), place);
    configuration = configuration.replaceAll(`127.0.0.1:${place}`, `127.0.0.1:${address}`);
  }
  gate = await gateway(configuration);
  feed = start(port, publish);
});
after(async () => {
  await feed?.stop();
  await gate?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** A page, as far as its prices go. */
class Client {
  prices = new Map();
  went = [];
  messages = 0;
  updates = 0;

  constructor() {
    this.socket = new WebSocket(`${gate.ws}/prices`, { perMessageDeflate: false });
    this.socket.on("message", (data) => {
      const changed = JSON.parse(data);
      this.messages += 1;
      this.updates += changed.length;
      for (const value of changed) {
        const [symbol, , number] = value;
        const had = this.prices.get(symbol)?.[2] ?? 0;
        if (number < had) this.went.push([symbol, number, had]);
        this.prices.set(symbol, value);
      }
    });
  }
}

test("the page is served, and connects to where the prices are", async () => {
  // The feed starts as the gateway does.
  const answer = await eventually(() => fetch(gate.http), ({ status }) => status !== 502);
  assert.equal(answer.status, 200);
  assert.match(await answer.text(), /new WebSocket\(.*\/prices/);
});

test("every client has the feed's last price of every symbol, slow ones too, and gets far fewer messages than were published", async () => {
  const clients = Array.from({ length: CLIENTS }, () => new Client());
  await eventually(() => clients.map(({ prices }) => prices.size), (sizes) => sizes.every((size) => size === SYMBOLS));
  const slow = clients.slice(0, 3);
  for (const { socket } of slow) socket.pause();
  await pause(RUN_MS);
  assert.equal(await feed.stop(), 0);
  const { published, last } = JSON.parse(await readFile(join(folder, "last.json"), "utf8"));
  for (const { socket } of slow) socket.resume();
  const wanted = JSON.stringify(last.toSorted());
  await eventually(
    () => clients.filter(({ prices }) => JSON.stringify([...prices.values()].toSorted()) === wanted).length,
    (same) => same === CLIENTS,
  );
  for (const client of clients) {
    assert.deepEqual(client.went, [], "no price goes back");
    assert.equal(client.socket.readyState, WebSocket.OPEN);
    assert.ok(client.messages * 4 < published, `${client.messages} messages of ${published} changes`);
    assert.ok(client.updates <= published + SYMBOLS, `${client.updates}`);
  }
  const metrics = await gate.metrics();
  assert.equal(total(metrics, "sluicegate_publishes_total", { result: "stored" }), published);
  assert.equal(total(metrics, "sluicegate_gaps_total"), 0);
  for (const { socket } of clients) socket.terminate();
});
