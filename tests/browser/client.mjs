// @sluicegate/client in a page: headless Chromium and Firefox lose their connection, and their page, and miss nothing.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { publish } from "../rooms.mjs";
import { backend, certificates, eventually, gateway, temporaryFolder } from "../support.mjs";
import { openChromium } from "./chromium.mjs";
import { openFirefox } from "./firefox.mjs";

const PAGE = `<!doctype html><title>rooms</title><script type="module">
import { SluicegateSocket } from "/dist/index.js";
const room = new URLSearchParams(location.search).get("room");
const protocols = new URLSearchParams(location.search).getAll("protocol");
window.told = { ids: [], gaps: [], states: [], losses: [], opens: 0 };
const cursor = JSON.parse(sessionStorage.getItem("cursor") ?? "{}");
const socket = new SluicegateSocket("/rooms/" + room, protocols, { cursor, backoff: { baseMs: 300 } });
window.socket = socket;
socket.onopen = () => (told.opens += 1);
socket.onmessage = ({ id, channel }) => channel && told.ids.push(id);
socket.ongap = ({ why }) => told.gaps.push(why);
socket.onsubscription = ({ state }) => told.states.push(state);
socket.ondisconnect = ({ code }) => told.losses.push(code);
addEventListener("pagehide", () => sessionStorage.setItem("cursor", JSON.stringify(socket.exportCursor())));
</script>`;

let folder, files, peer, plain, gate;
before(async () => {
  folder = await temporaryFolder();
  await certificates(folder, { local: ["localhost", "127.0.0.1"] });
  const [key, cert] = ["local.key", "local.crt"].map((name) => join(folder, name));
  files = createServer(async ({ url }, response) => {
    const { pathname } = new URL(url, "http://files");
    if (pathname === "/") return response.setHeader("content-type", "text/html").end(PAGE);
    const file = /^\/dist\/[a-z]+\.js$/.test(pathname) && fileURLToPath(new URL(`../../clients/typescript${pathname}`, import.meta.url));
    if (!file) return response.writeHead(404).end();
    response.setHeader("content-type", "text/javascript").end(await readFile(file));
  });
  files.listen(0, "127.0.0.1");
  await once(files, "listening");
  [peer, plain] = await Promise.all([backend("backends/grip_rooms.mjs"), backend("backends/ws_echo.mjs")]);
  gate = await gateway(`
version: 1
listeners:
  - { name: public, bind: "127.0.0.1:0" }
  - { name: secure, bind: "127.0.0.1:0", tls: { certificates: [{ cert_file: "${cert}", key_file: "${key}" }] } }
admin: { bind: "127.0.0.1:0" }
upstreams:
  - { name: rooms, endpoints: ["127.0.0.1:${peer.port}"] }
  - { name: plain, endpoints: ["127.0.0.1:${plain.port}"] }
  - { name: files, endpoints: ["127.0.0.1:${files.address().port}"] }
backplane: { publish: { bind: "127.0.0.1:0" } }
rules:
  - { name: plain, match: { path_prefix: /rooms/plain }, upstream: plain }
  - { name: rooms, match: { path_prefix: /rooms }, upstream: rooms, backplane: grip }
  - { name: files, upstream: files }
`);
  const [publishing, admin, secure] = await Promise.all(
    ["publish", "admin", "secure"].map(async (listener) => (await gate.line({ event: "listening", listener })).address));
  gate = { ...gate, publish: `http://${publishing}/publish`, admin: `http://${admin}`, https: `https://${secure}` };
});
after(async () => {
  await gate?.stop();
  await Promise.all([peer?.stop(), plain?.stop()]);
  files?.close();
  await rm(folder, { recursive: true, force: true });
});

const told = (page, holds) => eventually(() => page.evaluate(() => window.told ?? {}), holds);

// What becomes of a WebSocket that is answered no subprotocol although it offered one: Chromium fails it, Firefox does not.
const BROWSERS = { Chromium: [openChromium, 1], Firefox: [openFirefox, 0] };

for (const [name, [open, failures]] of Object.entries(BROWSERS)) {
  test(`${name}: a page that loses its connection, and is loaded anew, misses nothing`, async () => {
    const room = `rooms/${name}`;
    const browser = await open();
    try {
      const { page } = browser;
      await page.goto(`${gate.http}/?room=${name}`);
      await told(page, ({ states }) => states?.length === 1);
      await publish(gate, room, [1]);
      await told(page, ({ ids }) => ids.length === 1);
      const id = await page.evaluate(() => window.socket.connectionId);
      assert.equal((await fetch(`${gate.admin}/sessions/${id}?code=1012`, { method: "DELETE" })).status, 202);
      await publish(gate, room, [2, 3]);
      await told(page, ({ ids }) => ids.length === 3);
      await page.goto("about:blank");
      await publish(gate, room, [4]);
      await page.goto(`${gate.http}/?room=${name}`);
      const second = await told(page, ({ ids }) => ids?.length === 1);
      assert.deepEqual([second.ids, second.gaps, second.states], [["4"], [], ["recovered"]]);
    } finally {
      await browser.close();
    }
  });

  test(`${name}: behind a server without the subprotocol the page falls back`, async () => {
    const browser = await open();
    try {
      const { page } = browser;
      // With a subprotocol of the application the server chooses; without one another try goes without ours.
      for (const [query, protocol, losses] of [["&protocol=chat", "chat", 0], ["", "", failures]]) {
        await page.goto(`${gate.http}/?room=plain${query}`);
        const seen = await told(page, ({ opens }) => opens === 1);
        const found = await page.evaluate(() => [window.socket.resumable, window.socket.protocol]);
        assert.deepEqual([...found, seen.losses.length], [false, protocol, losses]);
      }
    } finally {
      await browser.close();
    }
  });
}

test("over HTTP/2 it is the same", async () => {
  const browser = await openChromium({ ignoreHTTPSErrors: true });
  try {
    const { page } = browser;
    await page.goto(`${gate.https}/?room=h2&protocol=chat`);
    await told(page, ({ states }) => states?.length === 1);
    const id = await page.evaluate(() => window.socket.connectionId);
    assert.equal((await fetch(`${gate.admin}/sessions/${id}?code=1012`, { method: "DELETE" })).status, 202);
    await publish(gate, "rooms/h2", [1, 2]);
    const { ids, gaps } = await told(page, ({ ids }) => ids.length === 2);
    assert.deepEqual([ids, gaps], [["1", "2"], []]);
    const { protocol, subprotocol } = await gate.line({ event: "session", session_id: id });
    assert.deepEqual([protocol, subprotocol], ["h2", "sluicegate.v1.chat"]);
  } finally {
    await browser.close();
  }
});
