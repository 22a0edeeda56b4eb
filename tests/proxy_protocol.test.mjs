// The PROXY protocol as HAProxy speaks it, both versions and its health checks.

import assert from "node:assert/strict";
import { once } from "node:events";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { backend, eventually, freePort, gateway, serve, temporaryFolder } from "./support.mjs";

for (const [version, option] of [[1, "send-proxy"], [2, "send-proxy-v2"]]) {
  describe(`HAProxy that sends version ${version}`, () => {
    let folder, peer, gate, haproxy, port;
    before(async () => {
      folder = await temporaryFolder();
      peer = await backend("backends/ws_echo.mjs");
      gate = await gateway(`
version: 1
trusted_proxies: [127.0.0.1]
listeners: [{ name: public, bind: "127.0.0.1:0", client_address: proxy_protocol }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
rules: [{ name: app, upstream: app }]
`);
      port = await freePort();
      const file = join(folder, "haproxy.cfg");
      await writeFile(file, `
global
  maxconn 100
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
listen app
  bind 127.0.0.1:${port}
  option httpchk
  http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host app.example
  server gateway 127.0.0.1:${gate.port} check inter 200ms fall 1 rise 1 ${option} check-send-proxy
`);
      haproxy = await serve("haproxy", ["-db", "-f", file], [port]);
    });
    after(async () => {
      await haproxy?.();
      await Promise.all([gate?.stop(), peer?.stop()]);
      if (folder) await rm(folder, { recursive: true, force: true });
    });

    test("names the client, whatever the client's headers say", async () => {
      const headers = { "x-forwarded-for": "9.9.9.9", "x-real-ip": "9.9.9.9" };
      const socket = new WebSocket(`ws://127.0.0.1:${port}/headers`, { headers, localAddress: "127.0.0.7" });
      const [message] = await once(socket, "message");
      const seen = new Map(JSON.parse(String(message)).map(([name, value]) => [name.toLowerCase(), value]));
      assert.equal(seen.get("x-forwarded-for"), "127.0.0.7");
      assert.equal(seen.get("x-real-ip"), "127.0.0.7");
      socket.close(1000);
      await once(socket, "close");
      const { client_ip, peer_ip } = await gate.line({ event: "session", path: "/headers" });
      assert.deepEqual([client_ip, peer_ip], ["127.0.0.7", "127.0.0.1"]);
    });

    test("is answered its health checks", async () => {
      const healthy = () => gate.log.filter(({ event, path, status }) => event === "request" && path === "/healthz" && status === 200);
      const lines = await eventually(healthy, (lines) => lines.length >= 3);
      assert.ok(lines.every(({ client_ip }) => client_ip === "127.0.0.1"), JSON.stringify(lines[0]));
      assert.deepEqual(gate.log.filter(({ cause }) => cause === "proxy_header"), []);
    });
  });
}
