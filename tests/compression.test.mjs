// permessage-deflate between real libraries, through the gateway in each of its modes: what was negotiated with whom, that
// every message arrives whole, and what the log and the metrics say of it.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { many, noise, records, sha256 } from "./messages.mjs";
import { backend, client, eventually, gateway, total } from "./support.mjs";

const MODES = ["passthrough", "terminate", "refuse"];
const OURS = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const MILLION = 1_000_000;

// What each library offers and answers by itself.
const OFFERED = {
  "clients/ws_client.mjs": "permessage-deflate; client_max_window_bits",
  "clients/websockets_client.py": "permessage-deflate; client_max_window_bits",
};
const ANSWERED = {
  "backends/ws_echo.mjs": { answered: "permessage-deflate", told: "permessage-deflate; client_no_context_takeover" },
  "backends/websockets_echo.py": {
    answered: "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
    told: "permessage-deflate; client_no_context_takeover; server_max_window_bits=12; client_max_window_bits=12",
  },
};

/** A rule for each mode, under a path of its name. */
const configuration = (port) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
rules:
${MODES.map((mode) => `
  - name: ${mode}
    match: { path_prefix: /${mode} }
    rewrite: { strip_prefix: /${mode} }
    upstream: app
    compression: ${mode}
`).join("")}`;

const seen = async ({ http }, path) => {
  const sessions = await (await fetch(`${http}/seen`)).json();
  return sessions.filter((session) => session.path === path).at(-1);
};
const ended = (peer, path) => eventually(() => seen(peer, path), (session) => session?.open === false);

// Each step that sends, and what has to come back for it.
const SENT = [
  [{ send: "grüße" }, ["grüße"]],
  [{ send_text: 0 }, [""]],
  [{ send_binary: 0 }, [Buffer.alloc(0)]],
  [{ fragments: ["a", "", "bc"] }, ["abc"]],
  [{ fragments: [3000, 1, 70_000] }, ["t".repeat(73_001)]],
  [{ send_binary: 70_000 }, [Buffer.alloc(70_000, "b")]],
  [{ send_text: MILLION }, ["t".repeat(MILLION)]],
  [{ send_records: 15_000 }, [records(15_000)]],
  [{ send_noise: MILLION }, [noise(MILLION)]],
  [{ send_many: 500 }, many(500)],
];
const TOLD = [...SENT.flatMap(([, messages]) => messages), ...many(200)];
const STEPS = [
  ...SENT.map(([step]) => step),
  { receive: TOLD.length - 200 },
  { echo_many: 200 },
  { close: [4000, "done"] },
  { closed: true },
];
const message = (data) => ({
  type: typeof data === "string" ? "text" : "binary",
  bytes: Buffer.byteLength(data),
  sha256: sha256(data),
});
const PLAIN_BYTES = TOLD.reduce((sum, data) => sum + Buffer.byteLength(data), 0);
const TEXTS = TOLD.filter((data) => typeof data === "string").length;

for (const [script, { answered, told }] of Object.entries(ANSWERED)) {
  for (const [driver, offered] of Object.entries(OFFERED)) {
    describe(`${script} behind the gateway, ${driver} before it`, () => {
      let peer, gate;
      before(async () => {
        peer = await backend(script, { PERMESSAGE_DEFLATE: "1" });
        gate = await gateway(configuration(peer.port));
      });
      after(() => Promise.all([gate?.stop(), peer?.stop()]));

      for (const [mode, negotiated] of [
        ["passthrough", { client: told, offered, answered, compression: "passthrough" }],
        ["terminate", { client: OURS, offered: "", answered: "", compression: "terminate" }],
        ["refuse", { client: "", offered: "", answered: "", compression: "off" }],
      ]) {
        test(`${mode}: every message comes back whole, and the log and the metrics have them`, async () => {
          const path = `/echo?${mode}`;
          const options = { deflate: true, digest: true, timeout_ms: 25_000 };
          const transcript = await client(driver, `${gate.ws}/${mode}${path}`, STEPS, options);
          assert.equal(transcript.error, undefined);
          assert.deepEqual(transcript.messages, TOLD.map(message));
          assert.deepEqual(transcript.close, { code: 4000, reason: "done" });
          assert.equal(transcript.extensions, negotiated.client);
          const session = await ended(peer, path);
          assert.deepEqual(
            [session.offered, session.answered, session.messages, session.bytes, session.code],
            [negotiated.offered, negotiated.answered, TOLD.length, PLAIN_BYTES, 4000],
          );

          const line = await gate.line({ event: "session", rule: mode });
          const expected = {
            compression: negotiated.compression, messages_in: TOLD.length, messages_out: TOLD.length, close_code: 4000,
            close_sent: 4000, closed_by: "client", cause: "client_closed",
          };
          for (const [field, value] of Object.entries(expected)) assert.equal(line[field], value, field);
          // Of 3.1 MB a million cannot be compressed; the texts and zeros shrink to a fraction.
          for (const direction of ["in", "out"]) {
            const bytes = line[`bytes_${direction}`];
            const [least, most] = mode === "refuse" ? [PLAIN_BYTES, 1.01 * PLAIN_BYTES] : [MILLION, 1.25 * MILLION];
            assert.ok(bytes > least && bytes < most, `${bytes} bytes ${direction} of ${PLAIN_BYTES}`);
            const text = await gate.metrics();
            for (const [name, labels, value] of [
              ["messages_total", { type: "text" }, TEXTS],
              ["messages_total", { type: "binary" }, TOLD.length - TEXTS],
              ["messages_total", { type: "close" }, 1],
              ["bytes_total", {}, bytes],
            ]) {
              const counted = total(text, `sluicegate_${name}`, { rule: mode, direction, ...labels });
              assert.equal(counted, value, `${name} ${direction} ${JSON.stringify(labels)}`);
            }
          }
          await gate.metric("sluicegate_closes_total", { rule: mode, code: "4xxx", cause: "client_closed" }, 1);
          await gate.metric("sluicegate_connections", { rule: mode }, 0);
        });
      }

      for (const mode of ["passthrough", "terminate"]) {
        test(`${mode}: a client that offers nothing gets nothing`, async () => {
          const path = `/plain?${mode}`;
          const steps = [{ send_text: 5000 }, { receive: 1 }, { close: [1000] }, { closed: true }];
          const transcript = await client(driver, `${gate.ws}/${mode}${path}`, steps);
          assert.deepEqual([transcript.extensions, transcript.messages[0].bytes], ["", 5000]);
          const session = await ended(peer, path);
          assert.deepEqual([session.offered, session.answered, session.bytes], ["", "", 5000]);
          await gate.line({ event: "session", path: `/${mode}/plain`, compression: "off", cause: "client_closed" });
        });

        test(`${mode}: a message that is small on the wire and inflates to over the limit is 1009`, async () => {
          const path = `/bomb?${mode}`;
          const steps = [{ send: "before" }, { receive: 1 }, { send_text: 2 << 20 }, { closed: true }];
          const transcript = await client(driver, `${gate.ws}/${mode}${path}`, steps, { deflate: true });
          assert.equal(transcript.close.code, 1009);
          const session = await ended(peer, path);
          assert.equal(session.messages, 1);
          // Where the beginning of the frame had gone on, no Close frame can follow it.
          assert.ok(session.code === 1001 || session.code === 1006, `${session.code}`);
          const line = await gate.line({ event: "session", path: `/${mode}/bomb` });
          assert.deepEqual([line.cause, line.close_code, line.messages_in], ["message_too_big", 1009, 1]);
          assert.ok(line.bytes_in < 10_000, `${line.bytes_in} bytes`);
        });
      }
    });
  }
}

describe("what a client can ask for", () => {
  let peer, gate;
  before(async () => {
    peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
    gate = await gateway(configuration(peer.port));
  });
  after(() => Promise.all([gate?.stop(), peer?.stop()]));

  const steps = [
    { send_records: 3_000 }, { send_many: 100 }, { send_noise: 100_000 }, { receive: 102 }, { close: [1000] }, { closed: true },
  ];
  const whole = [records(3_000), ...many(100), noise(100_000)].map(message);

  for (const [deflate, offered, passed, ours] of [
    [
      { clientMaxWindowBits: 9, serverMaxWindowBits: 9 },
      "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
      "permessage-deflate; client_no_context_takeover; server_max_window_bits=9; client_max_window_bits=9",
      `${OURS}; server_max_window_bits=9`,
    ],
    [
      { serverNoContextTakeover: true, clientNoContextTakeover: true, serverMaxWindowBits: 15, threshold: 0 },
      "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15; client_max_window_bits",
      `${OURS}; server_max_window_bits=15`,
      `${OURS}; server_max_window_bits=12`,
    ],
  ]) {
    for (const [mode, sees, told] of [["passthrough", offered, passed], ["terminate", "", ours]]) {
      test(`${mode}: ${Object.entries(deflate).join(" ")}`, async () => {
        const path = `/asked?${encodeURIComponent(mode + JSON.stringify(deflate))}`;
        const transcript = await client("clients/ws_client.mjs", `${gate.ws}/${mode}${path}`, steps, { deflate, digest: true });
        assert.equal(transcript.error, undefined);
        assert.deepEqual([transcript.extensions, transcript.messages], [told, whole]);
        assert.equal((await ended(peer, path)).offered, sees);
      });
    }
  }
});

describe("a backend without compression", () => {
  let peer, gate;
  before(async () => {
    peer = await backend("backends/ws_echo.mjs");
    gate = await gateway(configuration(peer.port));
  });
  after(() => Promise.all([gate?.stop(), peer?.stop()]));

  for (const [mode, offered, told, compression] of [
    ["passthrough", OFFERED["clients/ws_client.mjs"], "", "off"],
    ["terminate", "", OURS, "terminate"],
  ]) {
    test(`${mode}: is ${mode === "terminate" ? "spared it, and its clients have it" : "taken at its word"}`, async () => {
      const steps = [{ send_records: 5_000 }, { receive: 1 }, { close: [1000] }, { closed: true }];
      const options = { deflate: true, digest: true };
      const transcript = await client("clients/ws_client.mjs", `${gate.ws}/${mode}/without`, steps, options);
      assert.deepEqual([transcript.extensions, transcript.messages], [told, [message(records(5_000))]]);
      assert.deepEqual((await ended(peer, "/without")).offered, offered);
      const line = await gate.line({ event: "session", rule: mode });
      const bytes = Buffer.byteLength(records(5_000));
      assert.equal(line.compression, compression);
      for (const carried of [line.bytes_in, line.bytes_out]) assert.equal(carried < bytes / 3, mode === "terminate", `${carried}`);
    });
  }
});

describe("Socket.IO that compresses", () => {
  let peer;
  before(async () => (peer = await backend("backends/socketio.mjs", { PERMESSAGE_DEFLATE: "1" })));
  after(() => peer?.stop());

  for (const mode of MODES) {
    test(`acknowledges large values after its upgrade, ${mode}`, async () => {
      const gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
defaults: { compression: ${mode} }
`);
      try {
        const result = await client("clients/socketio_client.mjs", gate.http, "polling,websocket", "20", "50000");
        assert.deepEqual(result, { connected: true, first: "polling", last: "websocket", acknowledged: 20, exit: 0 });
        const line = await gate.line({ event: "session" });
        assert.equal(line.compression, mode === "refuse" ? "off" : mode);
        for (const bytes of [line.bytes_in, line.bytes_out]) {
          assert.equal(bytes < 100_000, mode !== "refuse", `${bytes} bytes for a million`);
        }
      } finally {
        await gate.stop();
      }
    });
  }
});
