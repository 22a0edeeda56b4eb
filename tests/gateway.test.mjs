// Libraries as they are used, through the real gateway: what the peers saw, what the log says, what the metrics count.

import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { backend, client, eventually, gateway, total } from "./support.mjs";

const configuration = (port, rule = "") => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
rules:
  - name: app
    match: { path_prefix: / }
    upstream: app
${rule}`;

const seen = async ({ http }) => (await fetch(`${http}/seen`)).json();
const ended = (peer, path) =>
  eventually(
    async () => (await seen(peer)).filter((session) => session.path === path).at(-1),
    (session) => session?.open === false,
  );

// What frames take on the wire, in bytes: RFC 6455 §5.2.
const head = (payload) => (payload < 126 ? 2 : payload < 65_536 ? 4 : 10);
const toClient = (...payloads) => payloads.reduce((sum, payload) => sum + head(payload) + payload, 0);
const toUpstream = (...payloads) => toClient(...payloads) + 4 * payloads.length;

const MILLION = 1_000_000;

for (const script of ["backends/ws_echo.mjs", "backends/websockets_echo.py"]) {
  for (const driver of ["clients/ws_client.mjs", "clients/websockets_client.py"]) {
    describe(`${script} behind the gateway, ${driver} before it`, () => {
      let peer, gate;
      before(async () => {
        // Both servers accept compression where it is offered; with it is what compression.test.mjs tries.
        peer = await backend(script, { PERMESSAGE_DEFLATE: "1" });
        gate = await gateway(configuration(peer.port));
      });
      after(() => Promise.all([gate?.stop(), peer?.stop()]));

      test("passes text, binary, fragments and a megabyte verbatim, with one log line and exact counts", async () => {
        const steps = [
          { send: "grüße" },
          { send_text: 0 },
          { fragments: ["a", "b", "c"] },
          { send_binary: 70_000 },
          { send_binary: MILLION },
          { send_text: MILLION },
          { receive: 6 },
          { close: [4000, "done"] },
          { closed: true },
        ];
        const options = { protocols: ["x", "chat"], deflate: false, headers: { "user-agent": "a script" } };
        const transcript = await client(driver, `${gate.ws}/echo?token=secret`, steps, options);
        assert.equal(transcript.exit, 0, JSON.stringify(transcript));
        assert.deepEqual(transcript.messages, [
          { type: "text", bytes: 7, text: "grüße" },
          { type: "text", bytes: 0, text: "" },
          { type: "text", bytes: 3, text: "abc" },
          { type: "binary", bytes: 70_000 },
          { type: "binary", bytes: MILLION },
          { type: "text", bytes: MILLION },
        ]);
        assert.deepEqual([transcript.protocol, transcript.extensions], ["chat", ""]);
        assert.deepEqual(transcript.close, { code: 4000, reason: "done" });
        const session = await ended(peer, "/echo?token=secret");
        assert.deepEqual([session.code, session.reason, session.messages, session.bytes], [4000, "done", 6, 2_070_010]);

        // Python's library ends a message in fragments with an empty frame.
        const fragments = driver.endsWith(".py") ? [1, 1, 1, 0] : [1, 1, 1];
        const bytesIn = toUpstream(7, 0, ...fragments, 70_000, MILLION, MILLION, 6);
        const bytesOut = toClient(7, 0, 3, 70_000, MILLION, MILLION, 6);
        const line = await gate.line({ event: "session" });
        const expected = {
          listener: "public", rule: "app", upstream: "app", endpoint: `127.0.0.1:${peer.port}`,
          host: `127.0.0.1:${gate.port}`, path: "/echo", method: "GET", client_ip: "127.0.0.1", peer_ip: "127.0.0.1",
          user_agent: "a script", protocol: "h1", status: 101, subprotocol: "chat", compression: "off", messages_in: 6,
          messages_out: 6, bytes_in: bytesIn, bytes_out: bytesOut, close_code: 4000, close_sent: 4000,
          closed_by: "client", cause: "client_closed",
        };
        for (const [field, value] of Object.entries(expected)) assert.equal(line[field], value, field);
        assert.ok(!JSON.stringify(gate.log).includes("secret"), "a query string in the log");

        const text = await gate.metrics();
        const close = { code: "4xxx", closed_by: "client", cause: "client_closed" };
        for (const [name, labels, value] of [
          ["handshakes_total", { result: "accepted" }, 1],
          ["messages_total", { direction: "in", type: "text" }, 4],
          ["messages_total", { direction: "in", type: "binary" }, 2],
          ["messages_total", { direction: "in", type: "close" }, 1],
          ["messages_total", { direction: "out", type: "text" }, 4],
          ["messages_total", { direction: "out", type: "binary" }, 2],
          ["messages_total", { direction: "out", type: "close" }, 1],
          ["bytes_total", { direction: "in" }, bytesIn],
          ["bytes_total", { direction: "out" }, bytesOut],
          ["closes_total", close, 1],
          ["closes_total", {}, 1],
        ]) {
          const counted = total(text, `sluicegate_${name}`, { rule: "app", ...labels });
          assert.equal(counted, value, `${name} ${JSON.stringify(labels)}`);
        }
        await gate.metric("sluicegate_connections", { rule: "app" }, 0);
      });

      test("passes the offer of compression to the backend, and names the client", async () => {
        const options = { deflate: true, origin: gate.http };
        const steps = [{ receive: 1 }, { close: [1000] }];
        const { messages, extensions } = await client(driver, `${gate.ws}/headers`, steps, options);
        assert.match(extensions, /^permessage-deflate; client_no_context_takeover(;|$)/);
        const headers = JSON.parse(messages[0].text).map(([name, value]) => [name.toLowerCase(), value]);
        const values = (name) => headers.filter(([other]) => other === name).map(([, value]) => value);
        assert.deepEqual(values("sec-websocket-extensions"), ["permessage-deflate; client_max_window_bits"]);
        assert.deepEqual(values("connection"), ["Upgrade"]);
        assert.deepEqual(values("upgrade"), ["websocket"]);
        assert.deepEqual(values("host"), [`127.0.0.1:${gate.port}`]);
        assert.deepEqual(values("origin"), [gate.http]);
        assert.deepEqual(values("x-forwarded-for"), ["127.0.0.1"]);
        assert.deepEqual(values("x-real-ip"), ["127.0.0.1"]);
        assert.deepEqual(values("x-forwarded-proto"), ["http"]);
        assert.deepEqual(values("x-forwarded-host"), [`127.0.0.1:${gate.port}`]);
      });

      test("passes the backend's close code and reason", async () => {
        const { close } = await client(driver, `${gate.ws}/close?code=4001&reason=bye`, [{ closed: true }]);
        assert.deepEqual(close, { code: 4001, reason: "bye" });
        const line = await gate.line({ event: "session", path: "/close" });
        const { close_code, close_sent, closed_by, cause } = line;
        assert.deepEqual([close_code, close_sent, closed_by, cause], [4001, 4001, "upstream", "upstream_closed"]);
        await gate.metric("sluicegate_closes_total", { code: "4xxx", closed_by, cause }, 1);
      });
    });
  }

  describe(`pings, and ${script}`, () => {
    let peer, gate, idled = 0;
    before(async () => {
      peer = await backend(script);
      gate = await gateway(configuration(peer.port, "    keepalive: { interval: 1s, timeout: 10s }"));
    });
    after(() => Promise.all([gate?.stop(), peer?.stop()]));

    for (const driver of ["clients/ws_client.mjs", "clients/websockets_client.py"]) {
      test(`ours hold an idle session of ${driver} open, and none of their pongs passes`, async () => {
        const path = `/idle?${driver}`;
        const before = await gate.metrics();
        const steps = [{ sleep: 2_500 }, { send: "x" }, { receive: 1 }, { close: [1000] }];
        const running = client(driver, gate.ws + path, steps);
        for (const side of ["client", "upstream"]) {
          const count = (text) => total(text, "sluicegate_ping_rtt_seconds_count", { side });
          await eventually(gate.metrics, (text) => count(text) >= count(before) + 1);
        }
        const transcript = await running;
        assert.equal(transcript.exit, 0, JSON.stringify(transcript));
        assert.deepEqual([transcript.messages.length, transcript.pongs], [1, []]);
        const session = await ended(peer, path);
        assert.deepEqual([session.messages, session.code], [1, 1000]);
        // Node's `ws` counts them: the pong of the client to our ping is not for the backend.
        assert.equal(session.pongs ?? 0, 0);
        const line = await gate.line({ event: "session", path: "/idle" }, (idled += 1));
        assert.ok(line.ping_rtt_ms > 0, JSON.stringify(line));
        // Ours are no messages of the peers' either: the bytes are those of one echo and one close.
        assert.deepEqual([line.bytes_in, line.bytes_out], [toUpstream(1, 2), toClient(1, 2)]);
        const text = await gate.metrics();
        for (const type of ["ping", "pong"]) assert.equal(total(text, "sluicegate_messages_total", { type }), 0, type);
      });
    }

    test("those of a client pass end to end", async () => {
      const steps = [{ ping: "theirs" }, { receive_pong: 1 }, { close: [1000] }];
      const { pongs } = await client("clients/ws_client.mjs", `${gate.ws}/pinged`, steps);
      assert.deepEqual(pongs, ["theirs"]);
      await gate.metric("sluicegate_messages_total", { direction: "in", type: "ping" }, 1);
      await gate.metric("sluicegate_messages_total", { direction: "out", type: "pong" }, 1);
    });

    if (script.endsWith(".mjs")) {
      test("those of a backend pass end to end", async () => {
        const { pings } = await client("clients/ws_client.mjs", `${gate.ws}/ping?payload=theirs`, [
          { receive_ping: 1 }, { send: "x" }, { receive: 1 }, { close: [1000] },
        ]);
        assert.deepEqual(pings, ["theirs"]);
        assert.equal((await ended(peer, "/ping?payload=theirs")).pongs, 1);
        await gate.metric("sluicegate_messages_total", { direction: "out", type: "ping" }, 1);
        await gate.metric("sluicegate_messages_total", { direction: "in", type: "pong" }, 1);
      });
    }
  });
}

describe("Socket.IO behind the gateway", () => {
  let peer, gate;
  before(async () => {
    peer = await backend("backends/socketio.mjs");
    gate = await gateway(configuration(peer.port));
  });
  after(() => Promise.all([gate?.stop(), peer?.stop()]));

  let sessions = 0;
  for (const [transports, first, last] of [
    ["polling", "polling", "polling"],
    ["websocket", "websocket", "websocket"],
    ["polling,websocket", "polling", "websocket"],
  ]) {
    test(`acknowledges over ${transports}`, async () => {
      const result = await client("clients/socketio_client.mjs", gate.http, transports, "20");
      assert.deepEqual(result, { connected: true, first, last, acknowledged: 20, exit: 0 });
      const connection = (await seen(peer)).at(-1);
      assert.deepEqual([connection.transport, connection.echoes], [last, 20]);
      // Polling is plain HTTP and makes no session.
      if (last === "websocket") sessions += 1;
      await gate.metric("sluicegate_handshakes_total", { result: "accepted" }, sessions);
      if (last === "websocket") {
        const line = await gate.line({ event: "session" }, sessions);
        assert.deepEqual([line.path, line.host], ["/socket.io/", `127.0.0.1:${gate.port}`]);
        assert.ok(line.messages_in >= 20 && line.messages_out >= 20, JSON.stringify(line));
      }
      assert.equal(gate.log.filter(({ event }) => event === "session").length, sessions);
    });
  }
});

describe("counters", () => {
  let peer, gate;
  before(async () => {
    peer = await backend("backends/ws_echo.mjs");
    gate = await gateway(configuration(peer.port).replace("path_prefix: /", "path_prefix: /app"));
  });
  after(() => Promise.all([gate?.stop(), peer?.stop()]));

  /** Every series of a family that is not 0, as `label=value …` with the labels that differ. */
  const series = (text, name) =>
    Object.fromEntries(
      [...text.matchAll(new RegExp(`^sluicegate_${name}\\{(.*)\\} (\\d+)$`, "gm"))]
        .filter(([, , value]) => value !== "0")
        .map(([, labels, value]) => [labels.replaceAll('"', ""), Number(value)]),
    );

  test("are exact over a script of sessions, messages, closes and refusals", async () => {
    const run = (path, steps, options) => client("clients/ws_client.mjs", gate.ws + path, steps, options);
    const talk = [{ send: "ten bytes!" }, { send_binary: 1000 }, { receive: 2 }];
    const closed = [{ closed: true }];
    await run("/app/a", [...talk, { close: [1000, "bye"] }, ...closed]);
    await run("/app/b", [...talk, { close: [4321] }, ...closed]);
    await run("/app/c", [...talk, { close: [] }, ...closed]);
    await run("/app/d", [...talk, { terminate: true }]);
    const origin = await run("/app/e", [], { origin: "https://evil.example" });
    assert.equal(origin.status, 403);
    assert.equal((await run("/elsewhere", [])).status, 404);
    assert.equal((await run("/app/f", [], { origin: "null" })).status, 403);
    await gate.metric("sluicegate_closes_total", {}, 4);
    await gate.metric("sluicegate_connections", {}, 0);

    const text = await gate.metrics();
    assert.deepEqual(series(text, "handshakes_total"), {
      "result=accepted,rule=app": 4,
      "result=origin_not_allowed,rule=app": 2,
      "result=no_rule,rule=none": 1,
    });
    assert.deepEqual(series(text, "closes_total"), {
      "cause=client_closed,closed_by=client,code=1000,rule=app": 1,
      "cause=client_closed,closed_by=client,code=4xxx,rule=app": 1,
      "cause=client_closed,closed_by=client,code=1005,rule=app": 1,
      "cause=client_gone,closed_by=client,code=1006,rule=app": 1,
    });
    assert.deepEqual(series(text, "messages_total"), {
      "direction=in,rule=app,type=text": 4,
      "direction=in,rule=app,type=binary": 4,
      "direction=in,rule=app,type=close": 3,
      "direction=out,rule=app,type=text": 4,
      "direction=out,rule=app,type=binary": 4,
      "direction=out,rule=app,type=close": 3,
    });
    const talked = Array(4).fill([10, 1000]).flat();
    assert.deepEqual(series(text, "bytes_total"), {
      "direction=in,rule=app": toUpstream(...talked, 5, 2, 0),
      "direction=out,rule=app": toClient(...talked, 5, 2, 0),
    });
    assert.deepEqual(series(text, "policy_decisions_total"), {
      "decision=allowed,policy=origin,rule=app": 4,
      "decision=allowed,policy=handshake_rate,rule=app": 6,
      "decision=allowed,policy=connections_per_ip,rule=app": 4,
      "decision=refused,policy=origin,rule=app": 2,
      "decision=refused,policy=route,rule=none": 1,
    });
    for (const [event, count] of [["session", 4], ["refusal", 3]]) {
      await gate.line({ event }, count);
      assert.equal(gate.log.filter((entry) => entry.event === event).length, count);
    }
  });

  test("show the bytes and messages of a session while it lasts", async () => {
    const before = await gate.metrics();
    const grown = async (name, labels, by) => {
      await gate.metric(`sluicegate_${name}`, labels, total(before, `sluicegate_${name}`, labels) + by);
    };
    const socket = new WebSocket(`${gate.ws}/app/long`);
    await once(socket, "open");
    await grown("connections", { rule: "app" }, 1);
    await grown("handshakes_total", { result: "accepted" }, 1);
    for (let i = 1; i <= 3; i += 1) {
      socket.send(Buffer.alloc(100_000));
      await once(socket, "message");
      await grown("bytes_total", { direction: "in" }, i * toUpstream(100_000));
      await grown("bytes_total", { direction: "out" }, i * toClient(100_000));
      await grown("messages_total", { direction: "in", type: "binary" }, i);
    }
    await grown("closes_total", {}, 0);
    // A message in progress counts by its bytes, not yet as a message.
    socket.send("begun", { fin: false });
    await grown("bytes_total", { direction: "in" }, 3 * toUpstream(100_000) + toUpstream(5));
    await grown("messages_total", { direction: "in", type: "text" }, 0);
    socket.send(" and ended", { fin: true });
    await once(socket, "message");
    await grown("messages_total", { direction: "in", type: "text" }, 1);
    socket.close(1000);
    await once(socket, "close");
    await grown("connections", { rule: "app" }, 0);
    await grown("closes_total", { code: "1000" }, 1);
  });
});
