// WebSockets of browsers over HTTP/2: headless Chromium and Firefox open them on the connection that their page came over.

import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { many, records, sha256 } from "../messages.mjs";
import { backend, certificates, gateway, temporaryFolder } from "../support.mjs";
import { openChromium } from "./chromium.mjs";
import { openFirefox } from "./firefox.mjs";

let folder, peer, gate;
before(async () => {
  folder = await temporaryFolder();
  await certificates(folder, { local: ["localhost", "127.0.0.1"] });
  const [key, cert] = ["local.key", "local.crt"].map((name) => join(folder, name));
  peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
  gate = await gateway(`
version: 1
listeners:
  - { name: public, bind: "127.0.0.1:0", tls: { certificates: [{ cert_file: "${cert}", key_file: "${key}" }] } }
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
`);
});
after(async () => {
  await gate?.stop();
  await peer?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** In the page: opens so many sockets at once, sends all texts on each, and answers what came back. */
function talk({ url, texts, sockets }) {
  const one = () =>
    new Promise((resolve) => {
      const socket = new WebSocket(url);
      const echoes = [];
      socket.onopen = () => texts.forEach((text) => socket.send(text));
      socket.onmessage = ({ data }) => {
        echoes.push(data);
        if (echoes.length === texts.length) socket.close(4000, "done");
      };
      socket.onclose = ({ code, reason }) => resolve({ extensions: socket.extensions, echoes, code, reason });
    });
  return Promise.all(Array.from({ length: sockets }, one));
}

// What a page is told of the extensions: Firefox leaves the parameters out.
const BROWSERS = {
  Chromium: [() => openChromium({ ignoreHTTPSErrors: true }), "permessage-deflate; client_no_context_takeover"],
  Firefox: [openFirefox, "permessage-deflate"],
};
for (const [index, [name, [open, compression]]] of Object.entries(BROWSERS).entries()) {
  test(`${name}: a page's WebSockets come over the HTTP/2 connection of the page`, async () => {
    const base = `127.0.0.1:${gate.port}`;
    const path = `/echo/${name}`;
    const browser = await open();
    try {
      await browser.page.goto(`https://${base}/plain?${name}`);
      const page = await gate.line({ event: "request", path: "/plain" }, index + 1);
      assert.deepEqual([page.protocol, page.status], ["h2", 200]);
      const texts = [records(5_000), ...many(100), "", "grüße ".repeat(50_000)];
      const sockets = 5;
      const answers = await browser.page.evaluate(talk, { url: `wss://${base}${path}?token=secret`, texts, sockets });
      for (const { extensions, echoes, code, reason } of answers) {
        assert.deepEqual([extensions, code, reason], [compression, 4000, "done"]);
        assert.deepEqual(echoes.map(sha256), texts.map(sha256));
      }
      const line = await gate.line({ event: "session", path }, sockets);
      const { protocol, method, status, close_code, closed_by, messages_in, origin } = line;
      assert.deepEqual(
        { protocol, method, status, close_code, closed_by, messages_in, origin },
        { protocol: "h2", method: "CONNECT", status: 200, close_code: 4000, closed_by: "client",
          messages_in: texts.length, origin: `https://${base}` },
      );
    } finally {
      await browser.close();
    }
  });
}
