// TLS and Unix sockets with the libraries and proxies that people have: certificates of openssl, Node's and Python's own
// TLS before the gateway, nginx before it on a Unix socket and behind it under TLS.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import https from "node:https";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { backend, certificates, clientIn, freePort, gateway, nginx, temporaryFolder } from "./support.mjs";

const MILLION = 1_000_000;

const configuration = ({ listener = "", upstream, more = "" }) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0"${listener} }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, ${upstream} }]
${more}
`;

const endpoint = (peer) => `endpoints: ["127.0.0.1:${peer.port}"]`;
const pair = (folder, name) => `cert_file: "${folder}/${name}.crt", key_file: "${folder}/${name}.key"`;

/** What /headers says that the backend saw. */
const seenBy = async (socket) => {
  const [message] = await once(socket, "message");
  socket.close(1000);
  await once(socket, "close");
  return new Map(JSON.parse(String(message)).map(([name, value]) => [name.toLowerCase(), value]));
};

describe("a listener with certificates of openssl", () => {
  let folder, peer, gate;
  before(async () => {
    folder = await temporaryFolder();
    await certificates(folder, { server: ["localhost", "app.example"], other: ["other.example"], client: ["a client"] });
    peer = await backend("backends/ws_echo.mjs");
    const tls = `certificates: [{ ${pair(folder, "server")} }, { ${pair(folder, "other")} }]`;
    const auth = `client_ca_file: "${folder}/ca.crt", client_auth: optional`;
    gate = await gateway(configuration({ listener: `, tls: { ${tls}, ${auth} }`, upstream: endpoint(peer) }));
  });
  after(async () => {
    await Promise.all([gate?.stop(), peer?.stop()]);
    if (folder) await rm(folder, { recursive: true, force: true });
  });

  for (const driver of ["clients/ws_client.mjs", "clients/websockets_client.py"]) {
    test(`serves ${driver}, which knows the CA`, async () => {
      const steps = [
        { send: "grüße" },
        { fragments: ["a", "b", "c"] },
        { send_binary: MILLION },
        { ping: "x" },
        { receive: 3 },
        { close: [4000, "done"] },
        { closed: true },
      ];
      const env = { NODE_EXTRA_CA_CERTS: join(folder, "ca.crt"), SSL_CERT_FILE: join(folder, "ca.crt") };
      const transcript = await clientIn(env, driver, `wss://localhost:${gate.port}/echo`, steps);
      assert.equal(transcript.exit, 0, JSON.stringify(transcript));
      assert.deepEqual(transcript.messages.map(({ bytes }) => bytes), [7, 3, MILLION]);
      assert.deepEqual(transcript.close, { code: 4000, reason: "done" });
    });

    test(`is refused by ${driver}, which does not`, async () => {
      const nth = gate.log.filter(({ cause }) => cause === "tls_handshake").length + 1;
      const transcript = await clientIn({}, driver, `wss://localhost:${gate.port}/echo`);
      assert.equal(transcript.opened, false, JSON.stringify(transcript));
      const { detail, policy } = await gate.line({ event: "refusal", cause: "tls_handshake" }, nth);
      // Some say why with an alert, and some go away.
      assert.match(detail, /our certificate|went away/);
      assert.equal(policy, "tls");
    });
  }

  test("tells the backend of the client's certificate", async () => {
    const file = (name) => readFile(join(folder, name));
    const options = { ca: await file("ca.crt"), cert: await file("client.crt"), key: await file("client.key") };
    const headers = { "client-cert": ":Zm9yZ2Vk:" };
    const url = `wss://localhost:${gate.port}/headers`;
    const seen = await seenBy(new WebSocket(url, { ...options, headers }));
    const pem = String(options.cert).replace(/-----[^-]+-----|\s/g, "");
    assert.equal(seen.get("client-cert"), `:${pem}:`);
    assert.equal(seen.get("x-forwarded-proto"), "https");
    const without = await seenBy(new WebSocket(url, { ca: options.ca, headers }));
    assert.equal(without.get("client-cert"), undefined);
  });

  test("shows the certificate of the name that is asked for", async () => {
    const ca = await readFile(join(folder, "ca.crt"));
    for (const [servername, shown] of [["other.example", "other"], ["app.example", "server"], ["x.example", "server"]]) {
      const request = https.get({
        port: gate.port,
        path: "/plain",
        servername,
        ca,
        checkServerIdentity: (_name, { subject }) => assert.equal(subject.CN, shown),
        headers: { host: servername },
        agent: false,
      });
      const [response] = await once(request, "response");
      assert.equal(response.statusCode, 200);
      response.resume();
      await once(response, "end");
    }
  });
});

describe("nginx before the gateway, on a Unix socket, and behind it, under TLS", () => {
  let folder, peer, gate, stop, front, inner;
  before(async () => {
    folder = await temporaryFolder();
    await certificates(folder, { inner: ["inner.example"], gateway: ["the gateway"] });
    peer = await backend("backends/ws_echo.mjs");
    [front, inner] = [await freePort(), await freePort()];
    const tls = `sni: inner.example, ca_file: "${folder}/ca.crt", ${pair(folder, "gateway")}`;
    gate = await gateway(
      configuration({
        listener: ` }, { name: local, bind: "unix:${folder}/front.sock"`,
        upstream: `endpoints: ["127.0.0.1:${inner}"], tls: { ${tls} }`,
        more: "trusted_proxies: [unix]",
      }),
    );
    const upgrade = `
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header Host $host;`;
    stop = await nginx(folder, `
      server {
        listen 127.0.0.1:${front};
        location / {
          proxy_pass http://unix:${folder}/front.sock:;
          proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
          ${upgrade}
        }
      }
      server {
        listen 127.0.0.1:${inner} ssl;
        ssl_certificate ${folder}/inner.crt;
        ssl_certificate_key ${folder}/inner.key;
        ssl_client_certificate ${folder}/ca.crt;
        ssl_verify_client on;
        location / {
          proxy_pass http://127.0.0.1:${peer.port};
          proxy_set_header X-Shown $ssl_client_s_dn;
          ${upgrade}
        }
      }`, [front, inner]);
  });
  after(async () => {
    await stop?.();
    await Promise.all([gate?.stop(), peer?.stop()]);
    if (folder) await rm(folder, { recursive: true, force: true });
  });

  test("the client is the one that nginx names, and the certificate the one that is ours", async () => {
    const seen = await seenBy(new WebSocket(`ws://127.0.0.1:${front}/headers`, { localAddress: "127.0.0.9" }));
    assert.equal(seen.get("x-shown"), "CN=gateway");
    assert.equal(seen.get("x-forwarded-for"), "127.0.0.9");
    const { client_ip, peer_ip, listener } = await gate.line({ event: "session", path: "/headers" });
    assert.deepEqual([client_ip, peer_ip, listener], ["127.0.0.9", "unix", "local"]);
    const answer = await fetch(`http://127.0.0.1:${front}/plain`);
    assert.equal(await answer.text(), "plain\n");
  });

  test("Node's ws reaches the Unix socket by itself", async () => {
    const seen = await seenBy(new WebSocket(`ws+unix:${folder}/front.sock:/headers?direct`, { headers: { host: "a" } }));
    assert.equal(seen.get("x-shown"), "CN=gateway");
    assert.equal(seen.get("x-forwarded-for"), undefined);
  });
});
