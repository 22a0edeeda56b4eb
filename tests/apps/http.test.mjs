// What runs beside WebSockets on the same host: server-sent events, long polls, uploads, downloads, REST.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { after, before, describe, test } from "node:test";
import { backend, eventually, gateway, residentBytes, total } from "../support.mjs";

const MIB = 1024 * 1024;

/** Waits for an event, not for ever. */
const event = (emitter, name) => once(emitter, name, { signal: AbortSignal.timeout(20_000) });

const configuration = (port, rule = "") => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
rules:
  - name: app
    upstream: app
${rule}`;

const seen = async ({ http }) => (await fetch(`${http}/seen`)).json();

/** Sends one request and answers the whole response, with whether it came on a connection that was used before. */
async function send(url, { method = "GET", headers = {}, agent, body = "" } = {}) {
  const request = http.request(url, { method, headers, agent });
  const answered = event(request, "response");
  // What is still being sent when the answer is there may fail.
  request.on("error", () => {});
  if (body instanceof Readable) body.pipe(request);
  else request.end(body);
  const [response] = await answered;
  const parts = [];
  for await (const part of response) parts.push(part);
  if (body instanceof Readable && !request.writableFinished) {
    body.unpipe(request);
    request.destroy();
  }
  return {
    status: response.statusCode,
    headers: response.headers,
    body: Buffer.concat(parts),
    json: () => JSON.parse(Buffer.concat(parts)),
    reused: request.reusedSocket,
  };
}

/** Opens a stream of server-sent events; `next` waits for one event more. */
async function events(url) {
  const request = http.get(`${url}/events`, { agent: false });
  request.on("error", () => {});
  const [response] = await event(request, "response");
  assert.deepEqual([response.statusCode, response.headers["content-type"]], [200, "text/event-stream"]);
  const lines = createInterface({ input: response })[Symbol.asyncIterator]();
  return {
    async next() {
      for (;;) {
        const { value, done } = await lines.next();
        if (done) return null;
        if (value.startsWith("data: ")) return value.slice("data: ".length);
      }
    },
    close: () => request.destroy(),
  };
}

describe("server-sent events and long polls", () => {
  let app, gate, impatient;
  const emit = async (data) => (await send(`${app.http}/events`, { method: "POST", body: data })).json();
  before(async () => {
    app = await backend("backends/http_app.mjs");
    gate = await gateway(configuration(app.port));
  });
  after(() => Promise.all([gate?.stop(), impatient?.stop(), app?.stop()]));

  test("events arrive one by one, each before the next is sent", async () => {
    const streams = await Promise.all(Array.from({ length: 5 }, () => events(gate.http)));
    await eventually(async () => (await emit("first")) === 5, Boolean);
    for (const stream of streams) while ((await stream.next()) !== "first");
    for (let i = 0; i < 20; i += 1) {
      assert.equal(await emit(`event ${i}`), 5);
      for (const stream of streams) assert.equal(await stream.next(), `event ${i}`);
    }
    for (const stream of streams) stream.close();
    // The backend learns of it, and does not write to nobody for ever.
    await eventually(() => emit("nobody"), (streams) => streams === 0);
  });

  test("a stream and long polls are silent for long, and other requests go on meanwhile", async () => {
    const stream = await events(gate.http);
    const polls = Array.from({ length: 20 }, () => send(`${gate.http}/poll?hold=3000`, { agent: false }));
    let others = 0;
    const settled = Promise.all(polls).finally(() => (others = -others));
    while (others >= 0) {
      assert.equal((await send(`${gate.http}/meanwhile`)).status, 200);
      others += 1;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    for (const poll of await settled) assert.deepEqual([poll.status, poll.json().held], [200, 3000]);
    assert.ok(others < -20, `${-others} requests within 3 s`);
    await emit("still here");
    assert.equal(await stream.next(), "still here");
    stream.close();
  });

  test("an answer that does not begin in time is 504; one that began may be silent for longer", async () => {
    impatient = await gateway(configuration(app.port, "    http: { response_timeout: 1s }"));
    const stream = await events(impatient.http);
    assert.equal(await emit("before"), 1);
    assert.equal(await stream.next(), "before");
    const late = await send(`${impatient.http}/poll?hold=3000`);
    const refusal = await impatient.line({ event: "refusal" });
    assert.deepEqual([late.status, refusal.status, refusal.cause], [504, 504, "upstream_timeout"]);
    assert.equal((await send(`${impatient.http}/poll?hold=100`)).status, 200);
    await emit("after");
    assert.equal(await stream.next(), "after");
    stream.close();
  });

  test("a stream that is silent for http.idle_timeout is cut, and its backend learns of it", async () => {
    const short = await gateway(configuration(app.port, "    http: { idle_timeout: 1s }"));
    try {
      const stream = await events(short.http);
      for (let i = 0; i < 4; i += 1) {
        await new Promise((resolve) => setTimeout(resolve, 500));
        await emit(`event ${i}`);
        assert.equal(await stream.next(), `event ${i}`);
      }
      assert.equal(await stream.next().catch(() => null), null);
      await eventually(() => emit("nobody"), (streams) => streams === 0);
    } finally {
      await short.stop();
    }
  });
});

describe("uploads and downloads", () => {
  const SIZE = 100 * MIB;
  let app, gate, usual;
  before(async () => {
    app = await backend("backends/http_app.mjs");
    gate = await gateway(configuration(app.port, "    http: { max_body_size: 200MiB }"));
    usual = await gateway(configuration(app.port));
  });
  after(() => Promise.all([gate?.stop(), usual?.stop(), app?.stop()]));

  /** A body of so many bytes, which tells its hash at the end. */
  function content(bytes) {
    const hash = createHash("sha256");
    const part = Buffer.alloc(65_536);
    const parts = function* () {
      for (let at = 0; at < bytes; at += part.length) {
        part.writeUInt32LE(at >>> 4, (at >>> 4) % 65_000);
        const next = Buffer.from(part.subarray(0, Math.min(part.length, bytes - at)));
        hash.update(next);
        yield next;
      }
    };
    return { stream: Readable.from(parts()), sha256: () => hash.digest("hex") };
  }

  /** The most memory that the gateway had while `work` ran, over what it had before. */
  async function growth(of, work) {
    const before = await residentBytes(of.child);
    let most = before;
    const watch = setInterval(async () => {
      most = Math.max(most, await residentBytes(of.child).catch(() => 0));
    }, 20);
    try {
      await work();
    } finally {
      clearInterval(watch);
    }
    return most - before;
  }

  for (const [way, headers] of [
    ["with Content-Length", { "content-length": SIZE }],
    ["chunked", { "transfer-encoding": "chunked" }],
  ]) {
    test(`100 MiB ${way} arrive intact, and the gateway's memory stays flat`, async () => {
      const body = content(SIZE);
      const more = await growth(gate, async () => {
        const { status, json } = await send(`${gate.http}/upload`, { method: "POST", headers, body: body.stream });
        assert.equal(status, 200);
        const framing = { length: headers["content-length"]?.toString() ?? null, encoding: headers["transfer-encoding"] ?? null };
        assert.deepEqual(json(), { bytes: SIZE, sha256: body.sha256(), ...framing });
      });
      assert.ok(more < 16 * MIB, `${(more / MIB).toFixed(1)} MiB more`);
    });
  }

  for (const [way, query, framing] of [
    ["with Content-Length", "&length=1", { "content-length": String(SIZE) }],
    ["chunked", "", { "transfer-encoding": "chunked" }],
  ]) {
    test(`a download of 100 MiB ${way} arrives intact, and the gateway's memory stays flat`, async () => {
      const more = await growth(gate, async () => {
        const request = http.get(`${gate.http}/download?bytes=${SIZE}${query}`, { agent: false });
        const [response] = await event(request, "response");
        const hash = createHash("sha256");
        let bytes = 0;
        for await (const part of response) {
          hash.update(part);
          bytes += part.length;
        }
        assert.deepEqual([response.statusCode, bytes], [200, SIZE]);
        assert.equal(hash.digest("hex"), response.headers["x-sha256"]);
        for (const [name, value] of Object.entries(framing)) assert.equal(response.headers[name], value);
      });
      assert.ok(more < 16 * MIB, `${(more / MIB).toFixed(1)} MiB more`);
    });
  }

  test("a download that nobody reads holds the backend back", async () => {
    const more = await growth(gate, async () => {
      const request = http.get(`${gate.http}/download?bytes=${SIZE}`, { agent: false });
      request.on("error", () => {});
      const [response] = await event(request, "response");
      response.pause();
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      request.destroy();
    });
    assert.ok(more < 16 * MIB, `${(more / MIB).toFixed(1)} MiB more`);
    await eventually(async () => (await seen(app)).broken["/download"], (broken) => broken === 1);
  });

  describe("over http.max_body_size, 1 MiB by default", () => {
    const refused = async (answer, nth) => {
      assert.equal(answer.status, 413);
      assert.equal(answer.headers["content-type"], "application/problem+json");
      const line = await usual.line({ event: "refusal", status: 413 }, nth);
      assert.deepEqual([line.rule, line.path], ["app", "/upload"]);
      assert.ok(answer.json().type.endsWith(line.cause), `${answer.json().type} ${line.cause}`);
    };

    test("a body that says so gets 413 before its backend hears of it", async () => {
      const before = (await seen(app)).requests["/upload"] ?? 0;
      const headers = { "content-length": 10 * MIB };
      await refused(await send(`${usual.http}/upload`, { method: "POST", headers, body: content(10 * MIB).stream }), 1);
      assert.equal((await seen(app)).requests["/upload"] ?? 0, before);
    });

    test("one that waits for 100 Continue need not be sent", async () => {
      const headers = { "content-length": 10 * MIB, expect: "100-continue" };
      const request = http.request(`${usual.http}/upload`, { method: "POST", headers, agent: false });
      request.on("error", () => {});
      let continued = false;
      request.on("continue", () => (continued = true));
      request.flushHeaders();
      const [response] = await event(request, "response");
      assert.deepEqual([response.statusCode, continued], [413, false]);
      request.destroy();
    });

    test("one that is chunked gets 413 where it passes the limit, and its backend sees it break off", async () => {
      const before = (await seen(app)).broken["/upload"] ?? 0;
      const headers = { "transfer-encoding": "chunked" };
      await refused(await send(`${usual.http}/upload`, { method: "POST", headers, body: content(10 * MIB).stream }), 3);
      await eventually(async () => (await seen(app)).broken["/upload"], (broken) => broken === before + 1);
    });

    test("exactly at it both are taken", async () => {
      for (const headers of [{ "content-length": MIB }, { "transfer-encoding": "chunked" }]) {
        const body = content(MIB);
        const { status, json } = await send(`${usual.http}/upload`, { method: "POST", headers, body: body.stream });
        assert.deepEqual([status, json().bytes, json().sha256], [200, MIB, body.sha256()]);
      }
    });

    test("answers may be larger", async () => {
      assert.equal((await send(`${usual.http}/download?bytes=${2 * MIB}`)).body.length, 2 * MIB);
    });
  });
});

describe("REST over kept-alive connections", () => {
  const CONNECTIONS = 20;
  const REQUESTS = 500;
  let app, gate;
  before(async () => {
    app = await backend("backends/http_app.mjs");
    gate = await gateway(configuration(app.port));
  });
  after(() => Promise.all([gate?.stop(), app?.stop()]));

  test("20 connections of 500 requests: none is lost, none mixed up, and the counts are exact", async () => {
    const connection = async (nth) => {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      let opened = 0;
      for (let i = 0; i < REQUESTS; i += 1) {
        const body = i % 2 ? JSON.stringify({ nth, i }) : "";
        const method = i % 2 ? "PUT" : "GET";
        // One in ten is not there: an error of the application is no reason to close.
        const path = i % 10 === 0 ? "/status/404" : `/items/${nth}?i=${i}`;
        const answer = await send(gate.http + path, { method, body, agent, headers: { "x-nth": `${nth}-${i}` } });
        if (!answer.reused) opened += 1;
        if (i % 10 === 0) {
          assert.equal(answer.status, 404);
          continue;
        }
        const echo = answer.json();
        assert.deepEqual([answer.status, echo.method, echo.url, echo.body], [200, method, path, body]);
        assert.equal(echo.headers.find(([name]) => name === "x-nth")[1], `${nth}-${i}`);
      }
      agent.destroy();
      assert.equal(opened, 1, "connections opened");
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, (_, nth) => connection(nth)));

    const { requests, broken, connections } = await seen(app);
    const whole = CONNECTIONS * REQUESTS;
    assert.equal(Object.values(requests).reduce((sum, count) => sum + count, 0), whole);
    assert.deepEqual(broken, {});
    assert.ok(connections <= 2 * CONNECTIONS, `${connections} connections to the backend`);
    await gate.metric("sluicegate_http_requests_total", { rule: "app", status_class: "2xx" }, whole * 0.9);
    await gate.metric("sluicegate_http_requests_total", { rule: "app", status_class: "4xx" }, whole * 0.1);
    await gate.metric("sluicegate_http_requests_total", {}, whole);
    assert.equal(total(await gate.metrics(), "sluicegate_http_request_seconds_count", { rule: "app" }), whole);
    await gate.line({ event: "request" }, whole);
  });
});
