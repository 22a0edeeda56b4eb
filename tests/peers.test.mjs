// The backends and clients of the integration tests, tried against each other with nothing between them: what a test
// through the gateway then finds is the gateway's.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { backend, client, eventually } from "./support.mjs";

const seen = async ({ http }) => (await fetch(`${http}/seen`)).json();
const ended = (peer, path) =>
  eventually(async () => (await seen(peer)).filter((s) => s.path === path).at(-1), (session) => session?.open === false);

for (const script of ["backends/ws_echo.mjs", "backends/websockets_echo.py"]) {
  describe(script, () => {
    let peer;
    before(async () => (peer = await backend(script)));
    after(() => peer.stop());

    for (const driver of ["clients/ws_client.mjs", "clients/websockets_client.py"]) {
      test(`echoes text, binary and fragments verbatim to ${driver}`, async () => {
        const steps = [
          { send: "grüße" },
          { send_binary: 70_000 },
          { send_text: 0 },
          { fragments: ["a", "b", "c"] },
          { receive: 4 },
          { close: [4000, "done"] },
          { closed: true },
        ];
        const path = `/echo?${driver}`;
        const transcript = await client(driver, peer.ws + path, steps, { protocols: ["x", "chat"] });
        assert.equal(transcript.exit, 0, JSON.stringify(transcript));
        assert.equal(transcript.protocol, "chat");
        assert.deepEqual(transcript.messages, [
          { type: "text", bytes: 7, text: "grüße" },
          { type: "binary", bytes: 70_000 },
          { type: "text", bytes: 0, text: "" },
          { type: "text", bytes: 3, text: "abc" },
        ]);
        const session = await ended(peer, path);
        assert.deepEqual([session.code, session.reason, session.messages, session.bytes], [4000, "done", 4, 70_010]);
      });

      test(`closes ${driver} with the code and reason that the path names`, async () => {
        const { close } = await client(driver, `${peer.ws}/close?code=4001&reason=bye`, [{ closed: true }]);
        assert.deepEqual(close, { code: 4001, reason: "bye" });
      });

      test(`sends ${driver} one large message`, async () => {
        const { messages } = await client(driver, `${peer.ws}/flood?bytes=3000000`, [{ receive: 1 }, { close: [1000] }]);
        assert.deepEqual(messages, [{ type: "binary", bytes: 3_000_000 }]);
      });

      test(`tells ${driver} the headers that it saw`, async () => {
        const { messages } = await client(driver, `${peer.ws}/headers`, [{ receive: 1 }, { close: [1000] }], {
          headers: { "x-app": "v2" },
          origin: "https://app.example.com",
        });
        const headers = JSON.parse(messages[0].text).map(([name, value]) => [name.toLowerCase(), value]);
        const value = (name) => headers.find(([other]) => other === name)?.[1];
        assert.equal(value("x-app"), "v2");
        assert.equal(value("origin"), "https://app.example.com");
        assert.equal(value("sec-websocket-version"), "13");
      });
    }

    test("sees a client that vanishes as 1006", async () => {
      await client("clients/ws_client.mjs", `${peer.ws}/gone`, [{ send: "x" }, { receive: 1 }, { terminate: true }]);
      assert.equal((await ended(peer, "/gone")).code, 1006);
    });

    test("stays silent where asked to", async () => {
      const steps = [{ send: "x" }, { ping: "p" }, { sleep: 100 }, { close: [1000] }, { closed: true }];
      const { messages, pongs } = await client("clients/ws_client.mjs", `${peer.ws}/silent`, steps);
      assert.deepEqual([messages, pongs], [[], ["p"]]);
    });

    test("answers plain HTTP", async () => {
      const response = await fetch(`${peer.http}/plain`);
      assert.deepEqual([response.status, await response.text()], [200, "plain\n"]);
      assert.equal((await fetch(`${peer.http}/nowhere`)).status, 404);
    });

    test("ends when standard input closes, and on SIGTERM", async () => {
      const first = await backend(script);
      first.child.stdin.end();
      assert.deepEqual(await first.exited, { code: 0, signal: null });
      const second = await backend(script);
      assert.deepEqual(await second.stop(), { code: 0, signal: null });
    });
  });
}

describe("backends/ws_echo.mjs, what only it does", () => {
  let peer;
  before(async () => (peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" })));
  after(() => peer.stop());
  const run = (path, steps, options) => client("clients/ws_client.mjs", peer.ws + path, steps, options);

  test("accepts compression where it is offered", async () => {
    const steps = [{ send_text: 5000 }, { receive: 1 }, { close: [1000] }];
    assert.equal((await run("/", steps)).extensions, "");
    const { extensions, messages } = await run("/", steps, { deflate: true });
    assert.equal(extensions, "permessage-deflate");
    assert.equal(messages[0].bytes, 5000);
  });

  test("never pongs on /nopong", async () => {
    const steps = [{ ping: "p" }, { send: "x" }, { receive: 1 }, { close: [1000] }];
    assert.deepEqual((await run("/nopong", steps)).pongs, []);
    assert.equal((await seen(peer)).find((s) => s.path === "/nopong").pings, 1);
  });

  test("pings on /ping", async () => {
    const { pings } = await run("/ping?payload=hello", [{ receive_ping: 1 }, { close: [1000] }]);
    assert.deepEqual(pings, ["hello"]);
  });

  test("closes without a code, and ends without a Close frame", async () => {
    assert.equal((await run("/close", [{ closed: true }])).close.code, 1005);
    assert.equal((await run("/terminate", [{ closed: true }])).close.code, 1006);
  });

  test("refuses an upgrade with plain HTTP", async () => {
    const { status, headers, body, exit } = await run("/refuse?status=401", []);
    assert.deepEqual([status, headers["x-backend"], body, exit], [401, "refused", "refused\n", 0]);
  });

  test("echoes a posted body", async () => {
    const response = await fetch(`${peer.http}/plain`, { method: "POST", body: "a body" });
    assert.equal(await response.text(), "a body");
  });
});

describe("backends/socketio.mjs", () => {
  let peer;
  before(async () => (peer = await backend("backends/socketio.mjs")));
  after(() => peer.stop());

  for (const [transports, first, last] of [
    ["polling", "polling", "polling"],
    ["websocket", "websocket", "websocket"],
    ["polling,websocket", "polling", "websocket"],
  ]) {
    test(`acknowledges over ${transports}`, async () => {
      const result = await client("clients/socketio_client.mjs", peer.http, transports, "5");
      assert.deepEqual(result, { connected: true, first, last, acknowledged: 5, exit: 0 });
    });
  }

  test("answers plain HTTP", async () => {
    assert.equal((await fetch(peer.http)).status, 200);
  });
});

test("a client's script that cannot go on fails with its reason", async () => {
  const peer = await backend("backends/ws_echo.mjs");
  try {
    const gone = await client("clients/ws_client.mjs", `${peer.ws}/close?code=4000`, [{ receive: 1 }]);
    assert.deepEqual([gone.exit, gone.done, gone.error], [1, false, "Error: closed after 0 of 1 messages"]);
    const late = await client("clients/ws_client.mjs", `${peer.ws}/silent`, [{ receive: 1 }], { timeout_ms: 100 });
    assert.match(late.error, /longer than timeout_ms/);
  } finally {
    await peer.stop();
  }
});
