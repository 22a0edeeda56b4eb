// HTTP/2 with the clients of others: Node's own with `ws` over it, and Python's `h2` with `websockets` over it, each with
// many sessions and plain requests on one connection, before a backend on `ws`.

import assert from "node:assert/strict";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { many, sha256 } from "./messages.mjs";
import { ask, connectHttp2, openWebSocket } from "./clients/ws_http2.mjs";
import { backend, certificates, client, gateway, temporaryFolder, total } from "./support.mjs";

const SESSIONS = 30;
const TEXTS = ["grüße", "", "long ".repeat(100_000), ...many(50)];

let folder, peer, clear, secure;
before(async () => {
  folder = await temporaryFolder();
  await certificates(folder, { local: ["localhost", "127.0.0.1"] });
  const [key, cert] = ["local.key", "local.crt"].map((name) => join(folder, name));
  peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
  const configuration = (listener) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0"${listener} }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
`;
  clear = await gateway(configuration(""));
  secure = await gateway(configuration(`, tls: { certificates: [{ cert_file: "${cert}", key_file: "${key}" }] }`));
});
after(async () => {
  await Promise.all([clear?.stop(), secure?.stop(), peer?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

/** Sends all texts on a socket, and answers the echoes when it is closed. */
async function talk({ socket }) {
  const echoes = [];
  socket.on("message", (data) => {
    echoes.push(data.toString());
    if (echoes.length === TEXTS.length) socket.close(4000, "done");
  });
  for (const text of TEXTS) socket.send(text);
  const [code, reason] = await once(socket, "close");
  assert.deepEqual([code, reason.toString()], [4000, "done"]);
  return echoes;
}

for (const [name, url] of [["in the clear", () => clear.http], ["under TLS", () => `https://127.0.0.1:${secure.port}`]]) {
  test(`Node's HTTP/2 client, ${name}: sessions and plain requests on one connection`, async () => {
    const gate = name === "in the clear" ? clear : secure;
    const session = await connectHttp2(url(), { rejectUnauthorized: false });
    try {
      const opened = await Promise.all(Array.from({ length: SESSIONS }, () =>
        openWebSocket(session, "/echo?token=secret", { "sec-websocket-protocol": "x, chat" })));
      for (const { answer } of opened) {
        assert.equal(answer["sec-websocket-protocol"], "chat");
        assert.equal(answer["sec-websocket-accept"], undefined);
      }
      const plain = Array.from({ length: SESSIONS }, (_, number) =>
        ask(session, { ":method": "POST", ":path": "/plain" }, `body ${number}`));
      const echoes = await Promise.all(opened.map(talk));
      for (const each of echoes) assert.deepEqual(each.map(sha256), TEXTS.map(sha256));
      const answers = await Promise.all(plain);
      assert.deepEqual(answers.map(({ status, body }) => [status, body.toString()]), answers.map((_, number) => [200, `body ${number}`]));
      const line = await gate.line({ event: "session", protocol: "h2" }, SESSIONS);
      const { method, status, path, subprotocol, close_code, closed_by } = line;
      assert.deepEqual({ method, status, path, subprotocol, close_code, closed_by },
        { method: "CONNECT", status: 200, path: "/echo", subprotocol: "chat", close_code: 4000, closed_by: "client" });
      const metrics = await gate.metrics();
      assert.equal(total(metrics, "sluicegate_handshakes_total", { result: "accepted" }), SESSIONS);
      assert.equal(total(metrics, "sluicegate_messages_total", { direction: "in", type: "text" }), SESSIONS * TEXTS.length);

      const refused = await openWebSocket(session, "/echo", { origin: "http://evil.example" });
      assert.deepEqual([refused.answer[":status"], JSON.parse(refused.body).type], [403, "urn:sluicegate:origin_not_allowed"]);
      const relayed = await openWebSocket(session, "/refuse?status=401");
      assert.deepEqual([relayed.answer[":status"], relayed.answer["x-backend"], relayed.body], [401, "refused", "refused\n"]);
    } finally {
      session.destroy();
    }
  });
}

test("permessage-deflate is negotiated over HTTP/2 as over HTTP/1.1", async () => {
  const session = await connectHttp2(clear.http);
  try {
    const offered = { "sec-websocket-extensions": "permessage-deflate; client_max_window_bits" };
    const { answer, stream } = await openWebSocket(session, "/echo", offered);
    assert.equal(answer["sec-websocket-extensions"], "permessage-deflate; client_no_context_takeover");
    stream.destroy();
  } finally {
    session.destroy();
  }
});

test("Python's h2: sessions and a plain request on one connection", async () => {
  const count = 10;
  // They are its arguments, which Linux limits to 128 KiB each.
  const texts = TEXTS.map((text) => text.slice(0, 100_000));
  const answer = await client("clients/websockets_http2.py", `127.0.0.1:${clear.port}`, "/echo", String(count), texts);
  assert.equal(answer.exit, 0, JSON.stringify(answer).slice(0, 2000));
  assert.equal(answer.plain, "plain\n");
  assert.equal(answer.sessions.length, count);
  for (const { headers, echoes, close, ended } of answer.sessions) {
    assert.deepEqual([headers[":status"], headers["sec-websocket-protocol"]], ["200", "chat"]);
    assert.deepEqual(echoes.map(sha256), texts.map(sha256));
    assert.deepEqual([close, ended], [[4000, "done"], true]);
  }
});
