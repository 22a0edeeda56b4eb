// The default `same_origin`, straight and behind nginx and HAProxy that end TLS; and idle sessions behind nginx.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import WebSocket from "ws";
import { backend, eventually, freePort, gateway, nginx as startNginx, serve, temporaryFolder } from "./support.mjs";

const NAME = "app.example.com";

let folder, ca, peer;
const gates = {};

const configuration = (more) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
rules:
  - name: app
    upstream: app
    # Behind a trusted proxy the default limit is enforced, and these tests are faster than it allows.
    handshake: { per_ip: { rate: 1000/s, burst: 1000 } }
    keepalive: { interval: 1s, timeout: 10s }
${more}`;

before(async () => {
  folder = await temporaryFolder();
  await promisify(execFile)("openssl", [
    "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
    "-keyout", join(folder, "key.pem"), "-out", join(folder, "cert.pem"), "-subj", "/CN=sluicegate tests",
    "-addext", `subjectAltName=DNS:${NAME}`,
  ]);
  ca = await readFile(join(folder, "cert.pem"));
  await writeFile(join(folder, "both.pem"), Buffer.concat([ca, await readFile(join(folder, "key.pem"))]));
  peer = await backend("backends/ws_echo.mjs");
  gates.untrusting = await gateway(configuration(""));
  gates.trusting = await gateway(configuration("trusted_proxies: [127.0.0.1]"));
});
after(async () => {
  await Promise.all([...Object.values(gates), peer].map((running) => running?.stop()));
  if (folder) await rm(folder, { recursive: true, force: true });
});

/** Opens a WebSocket as a page of `origin` does that believes to be at `host`. Answers the status, after an echo. */
async function open(url, { host, origin, headers = {}, localAddress }) {
  const socket = new WebSocket(url, { headers: { host, ...headers }, origin, ca, servername: NAME, localAddress });
  const opened = once(socket, "open").then(() => 101);
  opened.catch(() => {});
  const refused = once(socket, "unexpected-response").then(([, response]) => response.resume().statusCode);
  refused.catch(() => {});
  const status = await Promise.race([opened, refused]);
  if (status === 101) {
    socket.send("hello");
    assert.equal(String((await once(socket, "message"))[0]), "hello");
    socket.close(1000);
    await once(socket, "close");
  } else {
    socket.on("error", () => {});
    socket.terminate();
  }
  return status;
}

function nginx(servers) {
  return startNginx(
    folder,
    `
      ssl_certificate ${folder}/cert.pem;
      ssl_certificate_key ${folder}/key.pem;
      ${servers.map(({ port, to, settings }) => `
        server {
          listen 127.0.0.1:${port} ssl;
          location / {
            proxy_pass http://127.0.0.1:${to};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            ${settings}
          }
        }`).join("\n")}`,
    servers.map(({ port }) => port),
  );
}

async function haproxy(frontends) {
  const file = join(folder, "haproxy.cfg");
  await writeFile(file, `
global
  maxconn 100
defaults
  mode http
  option forwardfor
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
${frontends.map(({ port, to, settings }) => `
frontend f${port}
  bind 127.0.0.1:${port} ssl crt ${folder}/both.pem
  ${settings}
  default_backend b${port}
backend b${port}
  server gateway 127.0.0.1:${to}`).join("\n")}
`);
  return serve("haproxy", ["-db", "-f", file], frontends.map(({ port }) => port));
}

/** Statuses of a page of the same site, of the same site over http, and of a foreign one, as `101 101 403`. */
async function statuses(url, host, options = {}) {
  const origins = [`https://${host}`, `http://${host}`, "https://evil.example", `https://${host}.evil.example`];
  const all = [];
  for (const origin of origins) all.push(await open(url, { host, origin, ...options }));
  assert.equal(all[3], 403, `${host}.evil.example`);
  return all.slice(0, 3).join(" ");
}

describe("straight", () => {
  for (const kind of ["untrusting", "trusting"]) {
    test(`a ${kind} gateway accepts its own origin and no other`, async () => {
      const { ws, port, line, metric } = gates[kind];
      assert.equal(await statuses(ws, `127.0.0.1:${port}`), "101 101 403");
      assert.equal(await statuses(ws, `${NAME}:${port}`), "101 101 403");
      const refusal = await line({ event: "refusal", origin: "https://evil.example" });
      assert.deepEqual([refusal.status, refusal.cause, refusal.policy], [403, "origin_not_allowed", "origin"]);
      await metric("sluicegate_policy_decisions_total", { policy: "origin", decision: "refused" }, 4);
    });
  }

  test("a client without Origin is let in", async () => {
    assert.equal(await open(gates.untrusting.ws, { host: NAME }), 101);
  });

  test("what a peer that is not trusted claims of host and scheme is not believed", async () => {
    const host = `${NAME}:${gates.untrusting.port}`;
    const headers = { "x-forwarded-host": "evil.example", "x-forwarded-proto": "https" };
    assert.equal(await statuses(gates.untrusting.ws, host, { headers }), "101 101 403");
  });

  test("another port is another origin", async () => {
    const { ws, port } = gates.untrusting;
    assert.equal(await open(ws, { host: `${NAME}:${port}`, origin: `https://${NAME}:${port + 1}` }), 403);
    assert.equal(await open(ws, { host: `${NAME}:${port}`, origin: `https://${NAME}` }), 403);
  });
});

// How proxies are set up to pass the host: what the gateway accepts from a page of the same site, of the same site over
// http, and of a foreign one. `standard` is a page at https://app.example.com, `port` one with its port in the URL.
const PROTO = "proxy_set_header X-Forwarded-Proto $scheme;";
const WAYS = [
  {
    way: "Host $http_host",
    settings: `proxy_set_header Host $http_host; ${PROTO}`,
    trusting: { standard: "101 403 403", port: "101 403 403" },
    untrusting: { standard: "101 101 403", port: "101 101 403" },
  },
  {
    // It drops the port: right at the standard port, where the page's origin has none either.
    way: "Host $host",
    settings: `proxy_set_header Host $host; ${PROTO}`,
    trusting: { standard: "101 403 403", port: "403 403 403" },
    untrusting: { standard: "101 101 403", port: "403 403 403" },
  },
  {
    way: "Host $host and X-Forwarded-Host $http_host",
    settings: `proxy_set_header Host $host; proxy_set_header X-Forwarded-Host $http_host; ${PROTO}`,
    trusting: { standard: "101 403 403", port: "101 403 403" },
    untrusting: { standard: "101 101 403", port: "403 403 403" },
  },
  {
    way: "the gateway's own Host and X-Forwarded-Host $http_host",
    settings: `proxy_set_header X-Forwarded-Host $http_host; ${PROTO}`,
    trusting: { standard: "101 403 403", port: "101 403 403" },
    untrusting: { standard: "403 403 403", port: "403 403 403" },
  },
  {
    way: "Host $http_host, without X-Forwarded-Proto",
    settings: "proxy_set_header Host $http_host;",
    trusting: { standard: "101 101 403", port: "101 101 403" },
    untrusting: { standard: "101 101 403", port: "101 101 403" },
  },
];

for (const [name, start, ways] of [
  ["nginx", nginx, WAYS],
  [
    "HAProxy",
    haproxy,
    [
      { ...WAYS[0], way: "Host as it came", settings: "http-request set-header X-Forwarded-Proto https" },
      { ...WAYS[4], way: "Host as it came, without X-Forwarded-Proto", settings: "" },
    ],
  ],
]) {
  describe(`behind ${name} that ends TLS`, () => {
    let stop;
    const ports = {};
    before(async () => {
      const servers = [];
      for (const { way, settings } of ways) {
        for (const kind of ["untrusting", "trusting"]) {
          const port = await freePort();
          ports[way + kind] = port;
          servers.push({ port, to: gates[kind].port, settings });
        }
      }
      stop = await start(servers);
    });
    after(() => stop?.());

    for (const { way, ...expected } of ways) {
      for (const kind of ["untrusting", "trusting"]) {
        test(`${kind} gateway, ${way}`, async () => {
          const port = ports[way + kind];
          const url = `wss://127.0.0.1:${port}/`;
          assert.equal(await statuses(url, NAME), expected[kind].standard, "at the standard port");
          assert.equal(await statuses(url, `${NAME}:${port}`), expected[kind].port, "at a port of its own");
        });
      }
    }

    test("the client's address is believed from a trusted proxy only", async () => {
      const wanted = { untrusting: "127.0.0.1", trusting: "127.0.0.2" };
      for (const [kind, client_ip] of Object.entries(wanted)) {
        const url = `wss://127.0.0.1:${ports[ways[0].way + kind]}/from-${name}`;
        assert.equal(await open(url, { host: NAME, origin: `https://${NAME}`, localAddress: "127.0.0.2" }), 101);
        const line = await gates[kind].line({ event: "session", path: `/from-${name}` });
        assert.deepEqual([line.client_ip, line.peer_ip], [client_ip, "127.0.0.1"]);
      }
    });
  });
}

describe("idle sessions behind nginx with proxy_read_timeout 2s", () => {
  let stop, plain, guarded;
  before(async () => {
    [plain, guarded] = [await freePort(), await freePort()];
    const settings = `proxy_set_header Host $http_host; ${PROTO} proxy_read_timeout 2s;`;
    stop = await nginx([
      { port: plain, to: peer.port, settings },
      { port: guarded, to: gates.trusting.port, settings },
    ]);
  });
  after(() => stop?.());

  test("are cut without the gateway, and live with its pings", async () => {
    const options = { headers: { host: NAME }, ca, servername: NAME };
    const opened = (port) => new WebSocket(`wss://127.0.0.1:${port}/`, options);
    const harmed = opened(plain);
    const kept = opened(guarded);
    let pings = 0;
    kept.on("ping", () => (pings += 1));
    const lost = once(kept, "close");
    lost.catch(() => {});
    await once(kept, "open");
    // The harm: nginx cuts the connection without a Close frame.
    const [code] = await once(harmed, "close");
    assert.equal(code, 1006);
    // Three times as long as nginx waits, in pings of a second each.
    await eventually(() => pings, (count) => count >= 6);
    kept.send("still here");
    const [message] = await Promise.race([once(kept, "message"), lost]);
    assert.equal(String(message), "still here");
    kept.close(1000);
    await lost;
  });
});
