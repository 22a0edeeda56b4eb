// Every file in rules/ at work: what its application does passes, and what it forbids does not.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { backend, client, gateway, rules } from "../support.mjs";

const KIB = 1024;
const tested = new Set();

/** Tests a rule file before `script`, which stands for the upstream of that name. `path` is where WebSockets go. */
function file(name, { upstream, script = "backends/ws_echo.mjs", path }, tests) {
  tested.add(`${name}.yaml`);
  describe(`rules/${name}.yaml`, () => {
    const place = {
      /** Runs a session to its end, as a page of the same site does unless `origin` is `null`. */
      async session(steps, { origin = place.gate.http, at = path, ...options } = {}) {
        const all = { timeout_ms: 20_000, ...options, ...(origin ? { origin } : {}) };
        return client("clients/ws_client.mjs", place.gate.ws + at, steps, all);
      },
      /** Runs one that is to pass. */
      async passes(steps, options) {
        const transcript = await place.session([...steps, { close: [1000] }, { closed: true }], options);
        assert.deepEqual([transcript.error, transcript.exit, transcript.close?.code], [undefined, 0, 1000]);
        return transcript;
      },
      /** Runs one that is to end with this code, for this cause. */
      async ends(steps, code, cause, options) {
        const { close } = await place.session([...steps, { closed: true }], options);
        assert.equal(close?.code, code);
        const line = await place.gate.line({ event: "session", cause });
        assert.deepEqual([line.close_code, line.closed_by], [code, "proxy"]);
      },
      /** Opens one that is to be refused. */
      async refused(status, cause, options) {
        assert.equal((await place.session([], options)).status, status);
        assert.equal((await place.gate.line({ event: "refusal", cause })).status, status);
      },
    };
    before(async () => {
      place.peer = await backend(script);
      place.gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0", hosts: [127.0.0.1] }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: ${upstream}, endpoints: ["127.0.0.1:${place.peer.port}"] }]
rule_files: ["${rules(name)}"]
`);
    });
    after(() => Promise.all([place.gate?.stop(), place.peer?.stop()]));
    tests(place);
  });
}

const repeat = (count, step) => Array(count).fill(step);

file("default", { upstream: "default", path: "/" }, (place) => {
  test("passes a mebibyte in fragments, from programs too, and plain requests", async () => {
    await place.passes([{ fragments: ["a", "b"] }, { send_binary: 1024 * KIB }, { receive: 2 }]);
    await place.passes([{ fragments: [512 * KIB, 512 * KIB] }, { receive: 1 }], { origin: null });
    assert.equal((await fetch(`${place.gate.http}/plain`)).status, 200);
  });
  test("ends what is larger with 1009, and 1024 fragments are the most", async () => {
    await place.ends([{ send_binary: 1024 * KIB + 1 }], 1009, "message_too_big");
    await place.passes([{ fragments: repeat(1024, "x") }, { receive: 1 }]);
    await place.ends([{ fragments: repeat(1025, "x") }], 1008, "too_many_fragments");
  });
  test("ends a flood of pings with 1008", () => place.ends(repeat(300, { ping: "x" }), 1008, "control_rate"));
  test("refuses the pages of others", () =>
    place.refused(403, "origin_not_allowed", { origin: "https://evil.example" }));
});

file("strict", { upstream: "default", path: "/" }, (place) => {
  test("passes a burst of small messages of its pages", async () => {
    await place.passes([...repeat(99, { send: "moved" }), { send_text: 64 * KIB }, { receive: 100 }]);
  });
  test("ends more with 1008, and larger with 1009", async () => {
    await place.ends(repeat(400, { send: "moved" }), 1008, "message_rate");
    await place.ends([{ send_binary: 64 * KIB + 1 }], 1009, "message_too_big");
  });
  test("ends a message in more than 16 fragments with 1008", () =>
    place.ends([{ fragments: repeat(17, "x") }], 1008, "too_many_fragments"));
  test("refuses who sends no Origin, and plain requests", async () => {
    await place.refused(403, "origin_not_allowed", { origin: null });
    assert.equal((await fetch(`${place.gate.http}/plain`)).status, 426);
  });
});

file("chat", { upstream: "chat", path: "/ws" }, (place) => {
  test("passes lines of text, and the history of a room", async () => {
    const { messages } = await place.passes(
      [{ receive: 1 }, ...repeat(50, { send: "hello" }), { receive: 50 }],
      { at: `/ws/flood?bytes=${4 * 1024 * KIB}`, origin: null },
    );
    assert.equal(messages[0].bytes, 4 * 1024 * KIB);
    await place.passes([{ fragments: repeat(16, 4 * KIB) }, { receive: 1 }]);
  });
  test("ends who types faster than a person with 1008", () =>
    place.ends(repeat(150, { send: "x" }), 1008, "message_rate"));
  test("ends a picture with 1009", () => place.ends([{ send_binary: 64 * KIB + 1 }], 1009, "message_too_big"));
  test("ends text that is none with 1007, and more fragments than a library makes with 1008", async () => {
    await place.ends([{ send_text_bytes: [0x68, 0xff] }], 1007, "client_invalid_utf8");
    await place.ends([{ fragments: repeat(17, "x") }], 1008, "too_many_fragments");
  });
  test("says 426 to who comes without an upgrade, and takes no other path", async () => {
    assert.equal((await fetch(`${place.gate.http}/ws`)).status, 426);
    assert.equal((await fetch(`${place.gate.http}/`)).status, 404);
  });
});

file("market-data", { upstream: "market-data", path: "/stream" }, (place) => {
  test("passes 100 subscriptions, a snapshot of a mebibyte, and many updates", async () => {
    await place.passes([{ receive: 1 }, ...repeat(100, { send: "SUB" }), { receive: 100 }], {
      at: `/stream/flood?bytes=${1024 * KIB}`,
    });
    await place.passes([{ receive: 20_000 }], { at: "/stream/flood?bytes=200&messages=20000", origin: null });
  });
  test("ends a larger snapshot with 1011, which is the backend's fault", () =>
    place.ends([], 1011, "upstream_message_too_big", { at: `/stream/flood?bytes=${1024 * KIB + 1}` }));
  test("ends a client's message over 4 KiB with 1009, and a flood with 1008", async () => {
    await place.ends([{ send_text: 4 * KIB + 1 }], 1009, "message_too_big");
    await place.ends(repeat(300, { send: "SUB" }), 1008, "message_rate");
  });
  test("ends a client that takes nothing for 10 s with 1013 in the log", async () => {
    const reader = new WebSocket(`${place.gate.ws}/stream/flood?bytes=100000&messages=500`);
    await once(reader, "open");
    reader.on("error", () => {}).pause();
    const line = await place.gate.line({ event: "session", cause: "slow_client" });
    assert.equal(line.close_code, 1013);
    assert.ok(line.duration_seconds > 9 && line.duration_seconds < 16, `${line.duration_seconds} s`);
    reader.terminate();
  });
});

file("mqtt", { upstream: "mqtt", path: "/mqtt" }, (place) => {
  test("passes 256 KiB in the pieces of small devices, and a burst of acknowledgements", async () => {
    await place.passes([{ fragments: repeat(256, KIB) }, { receive: 1 }], { origin: null });
    await place.passes([...repeat(999, { send_binary: 4 }), { receive: 999 }]);
  });
  test("ends larger ones with 1009, and a flood with 1008", async () => {
    await place.ends([{ send_binary: 256 * KIB + 1 }], 1009, "message_too_big");
    await place.ends(repeat(4_000, { send_binary: 4 }), 1008, "message_rate");
  });
});

file("rest-and-websocket", { upstream: "app", script: "backends/http_app.mjs", path: "/ws" }, (place) => {
  test("passes documents over WebSockets and over REST, with nothing that tells versions", async () => {
    await place.passes([...repeat(199, { send: "{}" }), { send_text: 256 * KIB }, { receive: 200 }]);
    const response = await fetch(`${place.gate.http}/items/1`, { method: "PUT", body: "{}" });
    assert.deepEqual([response.status, (await response.json()).body], [200, "{}"]);
    const moved = await fetch(`${place.gate.http}/moved`, { redirect: "manual" });
    const headers = ["x-content-type-options", "server", "x-powered-by"].map((name) => moved.headers.get(name));
    assert.deepEqual([moved.status, ...headers], [302, "nosniff", null, null]);
  });
  test("takes a photo of 10 MiB, and answers 413 to more", async () => {
    const upload = async (bytes) => {
      const response = await fetch(`${place.gate.http}/upload`, { method: "POST", body: Buffer.alloc(bytes) });
      return [response.status, (await response.json()).bytes];
    };
    assert.deepEqual(await upload(10 * 1024 * KIB), [200, 10 * 1024 * KIB]);
    assert.deepEqual(await upload(10 * 1024 * KIB + 1), [413, undefined]);
    await place.gate.line({ event: "refusal", cause: "body_too_large", rule: "app" });
  });
  test("ends larger messages with 1009, and more of them with 1008", async () => {
    await place.ends([{ send_text: 256 * KIB + 1 }], 1009, "message_too_big");
    await place.ends(repeat(1_000, { send: "x" }), 1008, "message_rate");
  });
  test("has WebSockets under /ws and nowhere else", async () => {
    await place.refused(403, "upgrade_denied", { at: "/items/1" });
    assert.equal((await fetch(`${place.gate.http}/ws`)).status, 426);
  });
});

test("every rule file has its tests", async () => {
  const files = await readdir(new URL("../../rules", import.meta.url));
  assert.deepEqual(files.sort(), [...tested].sort());
});
