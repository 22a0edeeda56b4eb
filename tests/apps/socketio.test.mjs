// Socket.IO as it is deployed: clients that poll and then upgrade, two servers that know nothing of each other, and two
// gateways in front, between which HAProxy spreads the requests one by one.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { io } from "socket.io-client";
import { backend, eventually, freePort, gateway, serve, temporaryFolder, total } from "../support.mjs";

const SECRET = randomBytes(32).toString("hex");
const STICKY = "    sticky: { cookie: { name: sluicegate, ttl: 1h, secret_files: [sticky.key] } }";

const configuration = (ports, rule) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
trusted_proxies: [127.0.0.1]
upstreams:
  - name: app
    endpoints: [${ports.map((port) => `"127.0.0.1:${port}"`).join(", ")}]
    balance: round_robin
rules:
  - name: app
    upstream: app
    # All clients of these tests have the same address.
    handshake: { per_ip: { rate: 1000/s, burst: 1000 } }
${rule}`;

/** Both servers, both gateways and what spreads requests between them. */
async function deployment(rule) {
  const folder = await temporaryFolder();
  const servers = await Promise.all([backend("backends/socketio.mjs"), backend("backends/socketio.mjs")]);
  const ports = servers.map(({ port }) => port);
  const start = () => gateway(configuration(ports, rule), { "sticky.key": SECRET });
  const gates = await Promise.all([start(), start()]);
  const port = await freePort();
  const file = join(folder, "haproxy.cfg");
  await writeFile(file, `
global
  maxconn 1000
defaults
  mode http
  option forwardfor
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
frontend public
  bind 127.0.0.1:${port}
  default_backend gateways
backend gateways
  balance roundrobin
${gates.map((gate, nth) => `  server gateway${nth} 127.0.0.1:${gate.port}`).join("\n")}
`);
  const stopSpreading = await serve("haproxy", ["-db", "-f", file], [port]);
  return {
    http: `http://127.0.0.1:${port}`,
    servers,
    gates,
    ports,
    async stop() {
      await stopSpreading();
      await Promise.all([...gates, ...servers].map((running) => running.stop()));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/**
 * A client with the cookies of a browser: Node's Socket.IO client keeps them for one connection, so what it had is
 * handed on to the next.
 */
function user(url, options = {}) {
  const extraHeaders = {};
  const socket = io(url, {
    forceNew: true,
    withCredentials: true,
    extraHeaders,
    reconnectionDelay: 100,
    reconnectionDelayMax: 500,
    timeout: 10_000,
    ...options,
  });
  const cookie = () => new Map(socket.io.engine?._cookieJar?.cookies).get("sluicegate")?.value;
  let last;
  const user = {
    socket,
    ends: 0,
    failures: [],
    cookie: () => cookie() ?? last,
    /** Which server it talks to, by an acknowledged event. */
    port: () => socket.timeout(5_000).emitWithAck("port"),
    upgraded: () => socket.connected && socket.io.engine.transport.name === "websocket",
    close: () => socket.disconnect(),
  };
  socket.on("disconnect", () => {
    user.ends += 1;
    last = user.cookie();
  });
  socket.on("connect_error", (error) => user.failures.push(`${error.message} ${error.description ?? ""}`));
  socket.io.on("reconnect_attempt", () => {
    if (last) extraHeaders.cookie = `sluicegate=${last}`;
  });
  // From the first answer on the jar has what the browser would have.
  socket.io.on("open", () => {
    last = user.cookie();
    if (cookie()) delete extraHeaders.cookie;
  });
  return user;
}

const spread = (ports, values) => ports.map((port) => values.filter((value) => value === port).length);

describe("two Socket.IO servers behind two gateways with the same sticky secret", () => {
  let place, users;
  before(async () => (place = await deployment(STICKY)));
  after(() => place?.stop());
  beforeEach(() => (users = []));
  afterEach(() => users.forEach(({ close }) => close()));

  test("serve 100 clients that poll first and then upgrade", async () => {
    users = Array.from({ length: 100 }, () => user(place.http));
    await eventually(() => users.filter((user) => user.upgraded()).length, (upgraded) => upgraded === 100);
    const ports = await Promise.all(
      users.map(async ({ socket, port }) => {
        for (let i = 0; i < 5; i += 1) {
          const value = { number: i, text: "grüße" };
          assert.deepEqual(await socket.timeout(10_000).emitWithAck("echo", value), value);
        }
        return port();
      }),
    );
    assert.deepEqual(users.flatMap(({ failures }) => failures), []);
    assert.equal(users.filter(({ ends }) => ends > 0).length, 0);
    // Nobody is where everybody is.
    for (const count of spread(place.ports, ports)) assert.ok(count >= 20, spread(place.ports, ports).join(" and "));
    for (const { metrics } of place.gates) {
      const accepted = total(await metrics(), "sluicegate_handshakes_total", { result: "accepted" });
      assert.ok(accepted >= 20, `${accepted} of 100 upgrades through one of the gateways`);
    }
    assert.ok(users.every(({ cookie }) => cookie()));
  });

  test("when one is killed its clients go to the other with a new cookie, and stay there when it is back", async () => {
    users = Array.from({ length: 30 }, () => user(place.http));
    await eventually(() => users.filter((user) => user.upgraded()).length, (upgraded) => upgraded === 30);
    const state = async (user) => ({ user, port: await user.port(), cookie: user.cookie() });
    const before = await Promise.all(users.map(state));
    const [killed, other] = place.ports;
    const moved = before.filter(({ port }) => port === killed);
    assert.ok(moved.length > 0 && moved.length < 30, `${moved.length} of 30 on the first server`);

    place.servers[0].child.kill("SIGKILL");
    await eventually(() => moved.filter(({ user }) => user.ends > 0).length, (ended) => ended === moved.length);
    await eventually(() => users.filter((user) => user.upgraded()).length, (upgraded) => upgraded === 30);
    assert.deepEqual(spread(place.ports, await Promise.all(users.map(({ port }) => port()))), [0, 30]);
    for (const { user, port, cookie } of before) {
      if (port === killed) assert.notEqual(user.cookie(), cookie, "a client that moved has its old cookie");
      else assert.deepEqual([user.ends, user.cookie()], [0, cookie], "a client of the other server was disturbed");
    }

    place.servers[0] = await backend("backends/socketio.mjs", {}, killed);
    const healthy = async ({ metrics }) =>
      total(await metrics(), "sluicegate_upstream_healthy", { endpoint: `127.0.0.1:${killed}` });
    for (const gate of place.gates) await eventually(() => healthy(gate), (value) => value === 1);
    // Made to connect anew, they are still where their cookie says.
    const cookies = users.map(({ cookie }) => cookie());
    const connected = users.map(({ socket }) => once(socket, "connect", { signal: AbortSignal.timeout(20_000) }));
    for (const { socket } of users) socket.io.engine.close();
    await Promise.all(connected);
    assert.deepEqual(spread([killed, other], await Promise.all(users.map(({ port }) => port()))), [0, 30]);
    assert.deepEqual(users.map(({ cookie }) => cookie()), cookies);
  });

  test("a cookie holds on both gateways, and one that was tampered with chooses nothing", async () => {
    const ask = async (gate, cookie) => {
      const response = await fetch(`${gate.http}/port`, { headers: cookie ? { cookie: `sluicegate=${cookie}` } : {} });
      const set = response.headers.getSetCookie().map((line) => /^sluicegate=([^;]+)/.exec(line)?.[1]);
      return { port: Number(await response.text()), set: set[0], count: set.length };
    };
    const first = await ask(place.gates[0]);
    assert.equal(first.count, 1, "Set-Cookie headers of the first answer");
    for (const gate of [...place.gates, ...place.gates, ...place.gates]) {
      assert.deepEqual(await ask(gate, first.set), { port: first.port, set: undefined, count: 0 });
    }

    const bad = ["", "x", `127.0.0.1:${first.port}`, first.set.slice(1), `${first.set}A`, [...first.set].reverse().join("")];
    for (let at = 0; at < first.set.length; at += 1) {
      const other = first.set[at] === "A" ? "B" : "A";
      bad.push(first.set.slice(0, at) + other + first.set.slice(at + 1));
    }
    if (bad.length % 2) bad.push("y");
    const ports = [];
    for (const cookie of bad) {
      const answer = await ask(place.gates[0], cookie);
      assert.equal(answer.count, 1, `no new cookie for ${cookie}`);
      ports.push(answer.port);
    }
    // As if they had brought none: in turn.
    assert.deepEqual(spread(place.ports, ports), [bad.length / 2, bad.length / 2]);
  });

  test("the cookie says nothing of the server, and is for HTTP alone", async () => {
    const response = await fetch(`${place.gates[0].http}/port`);
    const [line, ...more] = response.headers.getSetCookie();
    assert.equal(more.length, 0);
    assert.match(line, /^sluicegate=[\w-]+; Path=\/; HttpOnly; Max-Age=3600; SameSite=Lax$/);
    const value = /^sluicegate=([^;]+)/.exec(line)[1];
    const decoded = Buffer.from(value, "base64url").toString("latin1");
    for (const port of place.ports) assert.ok(!value.includes(port) && !decoded.includes(port), value);
  });
});

describe("two Socket.IO servers behind gateways that are not sticky", () => {
  let place;
  before(async () => (place = await deployment("")));
  after(() => place?.stop());

  // Nobody else asks, so the second request goes to the second server.
  test("do not know at one server what the other began", async () => {
    const handshake = await fetch(`${place.gates[0].http}/socket.io/?EIO=4&transport=polling`);
    const { sid } = JSON.parse((await handshake.text()).slice(1));
    const next = await fetch(`${place.gates[0].http}/socket.io/?EIO=4&transport=polling&sid=${sid}`);
    assert.deepEqual([next.status, (await next.json()).message], [400, "Session ID unknown"]);
  });

  test("fail every client that polls", async () => {
    const users = Array.from({ length: 20 }, () => user(place.http, { transports: ["polling"] }));
    const hurt = () => users.filter(({ failures, ends }) => failures.length + ends > 0).length;
    // So many requests that no client meets the same server with all of them by chance.
    for (const { socket } of users) {
      socket.on("connect", async () => {
        for (let i = 0; i < 20 && socket.connected; i += 1) {
          await socket.timeout(1_000).emitWithAck("echo", i).catch(() => {});
        }
      });
    }
    try {
      await eventually(hurt, (count) => count === users.length);
    } finally {
      for (const { close } of users) close();
    }
  });
});
