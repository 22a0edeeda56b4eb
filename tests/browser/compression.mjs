// permessage-deflate as a browser does it: headless Chromium offers it with every WebSocket, and with a parameter of its own.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { many, records, sha256 } from "../messages.mjs";
import { backend, eventually, gateway } from "../support.mjs";
import { openChromium } from "./chromium.mjs";

let peer, chromium;
before(async () => {
  peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
  chromium = await openChromium();
});
after(async () => {
  await chromium?.close();
  await peer?.stop();
});

/** In the page: sends all texts at once, and answers what came back, and what was negotiated. */
function talk({ url, texts }) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    const echoes = [];
    socket.onopen = () => texts.forEach((text) => socket.send(text));
    socket.onmessage = ({ data }) => {
      echoes.push(data);
      if (echoes.length === texts.length) socket.close(4000, "done");
    };
    socket.onclose = ({ code, reason }) => resolve({ extensions: socket.extensions, echoes, code, reason });
  });
}

const OFFER = "permessage-deflate; client_max_window_bits";
for (const [mode, told, offered] of [
  ["passthrough", "permessage-deflate; client_no_context_takeover", OFFER],
  ["terminate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover", ""],
]) {
  test(`${mode}: a page's large texts and many small ones come back whole`, async () => {
    const gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
defaults: { compression: ${mode} }
`);
    try {
      await chromium.page.goto(`${gate.http}/plain`);
      const texts = [records(12_000), ...many(300), "", "grüße ".repeat(100_000)];
      const answer = await chromium.page.evaluate(talk, { url: `${gate.ws}/echo?${mode}`, texts });
      assert.deepEqual([answer.extensions, answer.code, answer.reason], [told, 4000, "done"]);
      assert.deepEqual(answer.echoes.map(sha256), texts.map(sha256));

      const session = await eventually(
        async () => (await (await fetch(`${peer.http}/seen`)).json()).find(({ path }) => path === `/echo?${mode}`),
        (session) => session?.open === false,
      );
      const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
      assert.deepEqual([session.offered, session.messages, session.bytes], [offered, texts.length, bytes]);
      const line = await gate.line({ event: "session" });
      assert.deepEqual(
        [line.compression, line.messages_in, line.messages_out, line.cause],
        [mode, texts.length, texts.length, "client_closed"],
      );
      for (const carried of [line.bytes_in, line.bytes_out]) assert.ok(carried < bytes / 5, `${carried} of ${bytes} bytes`);
    } finally {
      await gate.stop();
    }
  });
}
