// "Coming from nginx" in docs/configuration.md, line by line: nginx with the directive and Sluicegate with the key that
// the line names, asked the same. A line without a test here fails, and so does a test whose line is gone.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import WebSocket from "ws";
import { backend, eventually, freePort, gateway, nginx, SLUICEGATE, temporaryFolder, total } from "../support.mjs";

const HOST = "app.example.com";
const manual = await readFile(new URL("../../docs/configuration.md", import.meta.url), "utf8");
const table = new Map(
  manual
    .match(/^## Coming from nginx\n(.*?)^What there is no equivalent of/ms)[1]
    .split("\n")
    .filter((line) => line.startsWith("| ") && !line.startsWith("| nginx |") && !line.startsWith("| ---"))
    .map((line) => line.split("|").map((cell) => cell.trim()))
    .map(([, directive, here]) => [directive, here]),
);
const tested = new Set();

/** Waits for an event, not for ever. */
const event = (emitter, name) => once(emitter, name, { signal: AbortSignal.timeout(20_000) });

let a, b;
before(async () => {
  [a, b] = await Promise.all([backend("backends/http_app.mjs"), backend("backends/http_app.mjs")]);
});
after(() => Promise.all([a?.stop(), b?.stop()]));

/** Tests a line of the table: `work` gets what it says to write here. */
function line(directive, what, work) {
  tested.add(directive);
  test(`${directive}: ${what}`, async () => {
    const here = table.get(directive);
    assert.ok(here, "no such line in the manual");
    await work(/^`.*`$/.test(here) ? here.slice(1, -1) : here);
  });
}

const MAIN = ["upstreams", "listeners", "trusted_proxies", "limits", "access_log", "rule_files", "admin"];

/**
 * Starts nginx and Sluicegate before the same backends, and stops them when `work` is over.
 *
 * `here` are the keys of the manual's line, in flow style; `swap` replaces in them what a test cannot have: addresses,
 * and times that are long. `server` is for nginx's server block, `outside` for its http block. `rule` and `main` are more
 * of ours, `files` are put beside both configurations.
 */
async function compare({ here = "", swap = {}, server, outside = "", rule = "", main = "", files = {} }, work) {
  const replaced = { "a:1": `127.0.0.1:${a.port}`, "b:1": `127.0.0.1:${b.port}`, "0.0.0.0:8080": "127.0.0.1:0" };
  let written = here;
  for (const [from, to] of Object.entries({ ...swap, ...replaced, ...swap })) written = written.replaceAll(from, to);
  const key = written.split(":")[0];
  const ofMain = MAIN.includes(key);
  const has = (name) => key === name || main.startsWith(name);
  const action = /^(redirect|respond|upstream):/.test(written) ? "" : "upstream: app";
  const keys = [action, ofMain ? "" : written, rule].filter(Boolean);
  const configuration = [
    "version: 1",
    has("listeners") ? "" : 'listeners: [{ name: public, bind: "127.0.0.1:0" }]',
    has("admin") ? "" : 'admin: { bind: "127.0.0.1:0" }',
    has("upstreams") ? "" : `upstreams: [{ name: app, endpoints: ["127.0.0.1:${a.port}"] }]`,
    ofMain ? written : "",
    main,
    has("rule_files") ? "" : `rules:\n  - name: app\n    ${keys.join("\n    ")}`,
  ].filter(Boolean).join("\n");

  const folder = await temporaryFolder();
  await mkdir(join(folder, "logs"));
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content);
  const port = await freePort();
  const app = outside.includes("upstream app") ? "" : `upstream app { server 127.0.0.1:${a.port}; }`;
  const conf = `
    default_type text/plain;
    proxy_http_version 1.1;
    ${app}
    ${outside.replaceAll("FOLDER", folder).replaceAll("PORT", port)}
    ${outside.includes("server {") ? "" : `server {
      listen 127.0.0.1:${port};
      server_name _;
      ${server.replaceAll("FOLDER", folder)}
    }`}`;
  let stop, gate;
  try {
    stop = await nginx(folder, conf, [port]);
    gate = await gateway(configuration, files);
    await work({
      nginx: { name: "nginx", http: `http://127.0.0.1:${port}`, ws: `ws://127.0.0.1:${port}`, port, folder },
      sluicegate: { name: "sluicegate", ...gate },
    });
  } catch (error) {
    error.message += `\n${configuration}`;
    throw error;
  } finally {
    await Promise.all([stop?.(), gate?.stop()]);
    await rm(folder, { recursive: true, force: true });
  }
}

/** Sends a request as a client of app.example.com; answers status, headers, body, and what the backend saw. */
async function ask(side, path, { method = "GET", headers = {}, host = HOST, localAddress, body } = {}) {
  const request = http.request(side.http + path, { method, headers: { host, ...headers }, localAddress, agent: false });
  const answered = event(request, "response");
  request.on("error", () => {});
  request.end(body);
  const [response] = await answered;
  const parts = [];
  for await (const part of response) parts.push(part);
  const text = Buffer.concat(parts).toString();
  // What is of another type is the proxy's own.
  const saw = response.headers["content-type"] === "application/json" ? JSON.parse(text) : undefined;
  return {
    status: response.statusCode,
    headers: response.headers,
    text,
    saw,
    sent: (name) => saw.headers.filter(([other]) => other === name).map(([, value]) => value),
  };
}

/** Asks both the same, and compares what `look` sees in the answers with each other and with `expected`. */
async function same(sides, path, expected, look = ({ status, saw }) => (saw ? [status, saw.url] : [status]), options) {
  for (const side of [sides.nginx, sides.sluicegate]) {
    const answer = await ask(side, path, options);
    assert.deepEqual(look(answer), expected, `${side.name}: ${path} answered ${answer.status}`);
  }
}

/** Opens a WebSocket; answers it when it is open, else the status and headers of the refusal. */
async function open(side, path = "/", options = {}) {
  const socket = new WebSocket(side.ws + path, { headers: { host: HOST, ...options.headers }, ...options });
  socket.on("error", () => {});
  return Promise.race([
    once(socket, "open").then(() => ({ status: 101, socket })),
    once(socket, "unexpected-response").then(([, response]) => {
      response.resume();
      return { status: response.statusCode, headers: response.headers };
    }),
  ]);
}

/** How many long polls have come to the backends. */
async function polls() {
  const seen = async ({ http }) => (await (await fetch(`${http}/seen`)).json()).requests["/poll"] ?? 0;
  return (await seen(a)) + (await seen(b));
}

const both = ({ nginx, sluicegate }) => [nginx, sluicegate];
const PASS = "location / { proxy_pass http://app; }";
const BOTH = { '"a:1"': '"a:1", "b:1"' };
const TWO = (policy) => `upstream app { ${policy} server 127.0.0.1:${a.port}; server 127.0.0.1:${b.port}; }`;
const UPGRADE = `
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;`;
const UPGRADE_MAP = "map $http_upgrade $connection_upgrade { default upgrade; '' close; }";
const TAKE_OVER = "set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For;";

describe("upstreams", () => {
  const ports = async (side, requests) => {
    const all = [];
    for (const [path, options] of requests) all.push((await ask(side, path, options)).saw.port);
    return all;
  };
  const count = (all, peer) => all.filter((port) => port === peer.port).length;

  line("`proxy_pass http://app;`", "passes the path as it came", (here) =>
    compare({ here, server: PASS }, async (sides) => {
      await same(sides, "/a/b%20c?d=e%2Ff", [200, "/a/b%20c?d=e%2Ff"]);
      await same(sides, "/status/404", [404]);
    }));

  line("`upstream app { server a:1; server b:1; }`", "uses both servers", (here) =>
    compare({ here, server: PASS, outside: TWO("") }, async (sides) => {
      for (const side of both(sides)) {
        const held = await Promise.all([ask(side, "/poll?hold=500"), ask(side, "/poll?hold=500")]);
        assert.deepEqual(held.map(({ saw }) => saw.port).sort(), [a.port, b.port].sort(), side.name);
      }
    }));

  line("round robin, nginx' own default", "takes servers in turn", (here) =>
    compare({ here, swap: BOTH, server: PASS, outside: TWO("") }, async (sides) => {
      for (const side of both(sides)) {
        const all = await ports(side, Array(10).fill(["/"]));
        assert.deepEqual([count(all, a), count(all, b)], [5, 5], side.name);
      }
    }));

  line("`least_conn;`", "takes the server with fewer requests in flight", (here) =>
    compare({ here, swap: BOTH, server: PASS, outside: TWO("least_conn;") }, async (sides) => {
      for (const side of both(sides)) {
        const before = await polls();
        const held = ask(side, "/poll?hold=1500");
        await eventually(polls, (now) => now > before);
        const all = await ports(side, Array(4).fill(["/"]));
        const { port } = (await held).saw;
        assert.equal(all.filter((other) => other === port).length, 0, side.name);
      }
    }));

  const networks = Array.from({ length: 24 }, (_, i) => ["/", { localAddress: `127.0.${i}.1` }]);
  line("`ip_hash;`", "sends an address to one server", (here) =>
    compare({ here, swap: BOTH, server: PASS, outside: TWO("ip_hash;") }, async (sides) => {
      for (const side of both(sides)) {
        const first = await ports(side, networks);
        assert.deepEqual(await ports(side, networks), first, side.name);
        assert.ok(count(first, a) >= 2 && count(first, b) >= 2, `${side.name}: ${first}`);
      }
      // By the whole address here; nginx looks at the first three bytes.
      const neighbours = Array.from({ length: 24 }, (_, i) => ["/", { localAddress: `127.0.0.${i + 1}` }]);
      assert.equal(new Set(await ports(sides.nginx, neighbours)).size, 1);
      assert.equal(new Set(await ports(sides.sluicegate, neighbours)).size, 2);
    }));

  line("`hash $arg_room consistent;`", "sends a room to one server", (here) =>
    compare({ here, main: upstreams(), server: PASS, outside: TWO("hash $arg_room consistent;") }, async (sides) => {
      const rooms = Array.from({ length: 24 }, (_, i) => [`/?room=${i}`]);
      for (const side of both(sides)) {
        const first = await ports(side, rooms);
        assert.deepEqual(await ports(side, rooms), first, side.name);
        assert.ok(count(first, a) >= 2 && count(first, b) >= 2, `${side.name}: ${first}`);
      }
    }));

  // nginx has it in its commercial build only, so this is what the directive's manual says.
  line("`sticky cookie srv_id expires=1h;`", "brings a client back by that cookie", (here) =>
    compare({ here, main: upstreams(), server: PASS, outside: TWO("") }, async ({ sluicegate }) => {
      const { headers, saw } = await ask(sluicegate, "/");
      assert.equal(headers["set-cookie"].length, 1);
      assert.match(headers["set-cookie"][0], /^srv_id=[^;]+;.* Max-Age=3600\b/);
      const cookie = headers["set-cookie"][0].split(";")[0];
      const again = await ports(sluicegate, Array(6).fill(["/", { headers: { cookie } }]));
      assert.deepEqual(again, Array(6).fill(saw.port));
    }));

  line("`max_fails`, `fail_timeout`, `proxy_next_upstream`", "passes over a server that is not there", (here) => {
    assert.equal(here, "built in");
    return freePort().then((dead) =>
      compare(
        {
          main: `upstreams: [{ name: app, endpoints: ["127.0.0.1:${dead}", "127.0.0.1:${a.port}"] }]`,
          server: PASS,
          outside: `upstream app {
            server 127.0.0.1:${dead} max_fails=1 fail_timeout=10s;
            server 127.0.0.1:${a.port};
          }`,
        },
        async (sides) => {
          for (let i = 0; i < 10; i += 1) await same(sides, `/${i}`, [200, `/${i}`]);
        },
      ));
  });

  line("`proxy_connect_timeout 2s;`", "gives a server that does not accept so long, and answers 504", async (here) => {
    const deaf = await backend("backends/deaf.mjs");
    const waiting = Array.from({ length: 4 }, () => connect(deaf.port, "127.0.0.1").on("error", () => {}));
    try {
      await compare(
        {
          here,
          swap: { "a:1": `127.0.0.1:${deaf.port}`, "2s": "1s" },
          server: "location / { proxy_connect_timeout 1s; proxy_pass http://app; }",
          outside: `upstream app { server 127.0.0.1:${deaf.port}; }`,
        },
        async (sides) => {
          for (const side of both(sides)) {
            const began = Date.now();
            assert.equal((await ask(side, "/")).status, 504, side.name);
            const took = Date.now() - began;
            assert.ok(took >= 900 && took < 10_000, `${side.name}: ${took} ms`);
          }
        },
      );
    } finally {
      for (const socket of waiting) socket.destroy();
      deaf.child.kill("SIGKILL");
    }
  });

  line("`proxy_read_timeout 60s;`", "answers 504 when the answer does not begin in time", (here) =>
    compare(
      { here, swap: { "60s": "1s" }, server: "location / { proxy_read_timeout 1s; proxy_pass http://app; }" },
      async (sides) => {
        await same(sides, "/poll?hold=3000", [504], ({ status }) => [status]);
        await same(sides, "/poll?hold=100", [200, 100], ({ status, saw }) => [status, saw.held]);
      },
    ));

  function upstreams() {
    const endpoints = [a, b].map(({ port }) => `"127.0.0.1:${port}"`);
    return `upstreams: [{ name: app, endpoints: [${endpoints}], balance: round_robin }]`;
  }
});

describe("which requests", () => {
  line("`listen 8080;`", "listens", (here) =>
    compare({ here, server: PASS }, (sides) => same(sides, "/", [200, "/"])));

  line("`server_name app.example.com *.example.com;`", "serves these names and no other", (here) =>
    compare(
      {
        here,
        outside: `
          server { listen 127.0.0.1:PORT; server_name app.example.com *.example.com; ${PASS} }
          server { listen 127.0.0.1:PORT default_server; return 404; }`,
      },
      async (sides) => {
        for (const [host, status] of [
          ["app.example.com", 200], ["APP.example.com", 200], ["x.example.com:8080", 200],
          ["example.com", 404], ["app.example.com.evil.example", 404], ["xexample.com", 404],
        ]) {
          await same(sides, "/", [status], (answer) => [answer.status], { host });
        }
        // One label here; nginx takes any number, which is `**.` here.
        assert.equal((await ask(sides.nginx, "/", { host: "x.y.example.com" })).status, 200);
        assert.equal((await ask(sides.sluicegate, "/", { host: "x.y.example.com" })).status, 404);
      },
    ));

  line("`location = /ws`", "takes this path alone", (here) =>
    compare({ here, server: "location = /ws { proxy_pass http://app; }" }, async (sides) => {
      await same(sides, "/ws?a=b", [200, "/ws?a=b"]);
      for (const path of ["/ws/", "/ws/x", "/wsx", "/"]) await same(sides, path, [404]);
    }));

  line("`location /ws/`", "takes what is below this path", (here) =>
    compare({ here, server: "location /ws/ { proxy_pass http://app; }" }, async (sides) => {
      for (const path of ["/ws/", "/ws/x", "/ws/x/y?z"]) await same(sides, path, [200, path]);
      for (const path of ["/wsx", "/"]) await same(sides, path, [404]);
      // nginx sends the client to /ws/; here it is in.
      assert.equal((await ask(sides.nginx, "/ws")).status, 301);
      assert.equal((await ask(sides.sluicegate, "/ws")).status, 200);
    }));

  line("`location ~ ^/rooms/[0-9]+$`", "takes paths of this form", (here) =>
    compare({ here, server: "location ~ ^/rooms/[0-9]+$ { proxy_pass http://app; }" }, async (sides) => {
      await same(sides, "/rooms/12?x", [200, "/rooms/12?x"]);
      for (const path of ["/rooms/", "/rooms/x", "/rooms/12/y", "/a/rooms/12"]) await same(sides, path, [404]);
    }));

  line("`allow 10.0.0.0/8; deny all;`", "serves these addresses, and answers 403 to others", (here) =>
    compare(
      {
        here,
        main: "trusted_proxies: [127.0.0.1]",
        outside: TAKE_OVER,
        server: "location / { allow 10.0.0.0/8; deny all; proxy_pass http://app; }",
      },
      async (sides) => {
        for (const [address, status] of [["10.1.2.3", 200], ["11.1.2.3", 403], ["2001:db8::1", 403]]) {
          const headers = { "x-forwarded-for": address };
          await same(sides, "/", [status], (answer) => [answer.status], { headers });
        }
        await same(sides, "/", [403]);
      },
    ));
});

describe("answers of one's own, paths and headers", () => {
  line("`proxy_pass http://app/v1/;` in `location /api/`", "puts one prefix in place of another", (here) =>
    compare({ here, server: "location /api/ { proxy_pass http://app/v1/; }" }, async (sides) => {
      await same(sides, "/api/users?x=%2F", [200, "/v1/users?x=%2F"]);
      await same(sides, "/api/", [200, "/v1/"]);
      // What nginx has decoded it sends decoded; here it stays as it came.
      assert.equal((await ask(sides.sluicegate, "/api/a%20b")).saw.url, "/v1/a%20b");
    }));

  line("`rewrite ^/api/(.*)$ /$1 break;`", "takes a prefix off", (here) =>
    compare({ here, server: "location / { rewrite ^/api/(.*)$ /$1 break; proxy_pass http://app; }" }, async (sides) => {
      await same(sides, "/api/users?x=1", [200, "/users?x=1"]);
      await same(sides, "/api/", [200, "/"]);
      for (const path of ["/apix/y", "/other"]) await same(sides, path, [200, path]);
    }));

  line("`return 301 https://$host$request_uri;`", "sends the client to https", (here) =>
    compare({ here, server: "return 301 https://$host$request_uri;" }, async (sides) => {
      const look = ({ status, headers }) => [status, headers.location];
      for (const path of ["/", "/a/b?c=d", "/a%20b?c=%2Fd&e"]) {
        await same(sides, path, [301, `https://${HOST}${path}`], look);
        await same(sides, path, [301, `https://${HOST}${path}`], look, { host: `${HOST}:8080`, method: "POST" });
      }
    }));

  line("`return 503;` with `error_page 503 /maintenance.html;`", "answers with a page", (here) =>
    compare(
      {
        here,
        files: { "maintenance.html": "<h1>Back soon</h1>\n" },
        server: `
          location / { return 503; }
          error_page 503 /maintenance.html;
          location = /maintenance.html { internal; root FOLDER; default_type text/html; }`,
      },
      async (sides) => {
        const look = ({ status, headers, text }) => [status, headers["content-type"].split(";")[0], text];
        await same(sides, "/any/path", [503, "text/html", "<h1>Back soon</h1>\n"], look);
        for (const side of both(sides)) assert.equal((await open(side)).status, 503, side.name);
      },
    ));

  line(
    "`proxy_http_version 1.1;`, `proxy_set_header Upgrade $http_upgrade;`, `proxy_set_header Connection $connection_upgrade;` and its `map`",
    "passes WebSockets and requests on one path",
    (here) => {
      assert.equal(here, "not needed");
      const server = `location / { proxy_pass http://app; ${UPGRADE} }`;
      return compare({ outside: UPGRADE_MAP, server }, async (sides) => {
        for (const side of both(sides)) {
          const { socket } = await open(side);
          socket.send("hello");
          assert.equal(String((await once(socket, "message"))[0]), "hello");
          socket.close(1000);
          assert.equal((await once(socket, "close"))[0], 1000);
        }
        await same(sides, "/", [200, "/"]);
      });
    },
  );

  line("`proxy_set_header Host $host;`, `X-Real-IP`, `X-Forwarded-For`, `X-Forwarded-Proto`", "tells the backend of the client", (here) => {
    assert.equal(here, "not needed");
    const server = `location / {
      proxy_pass http://app;
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }`;
    const look = ({ sent }) => ["host", "x-real-ip", "x-forwarded-for", "x-forwarded-proto"].map(sent);
    return compare({ server }, async (sides) => {
      await same(sides, "/", [[HOST], ["127.0.0.1"], ["127.0.0.1"], ["http"]], look);
      // The port stays here, as with $http_host, and what a client claims is not passed on.
      const options = { host: `${HOST}:8080`, headers: { "x-forwarded-for": "192.0.2.1" } };
      const [theirs, ours] = [look(await ask(sides.nginx, "/", options)), look(await ask(sides.sluicegate, "/", options))];
      assert.deepEqual(theirs, [[HOST], ["127.0.0.1"], ["192.0.2.1, 127.0.0.1"], ["http"]]);
      assert.deepEqual(ours, [[`${HOST}:8080`], ["127.0.0.1"], ["127.0.0.1"], ["http"]]);
    });
  });

  const sent = (name) => (answer) => [answer.status, answer.sent(name)];
  line("`proxy_set_header X-Tenant acme;`", "sets a header of the request, also one that the client sent", (here) =>
    compare({ here, server: "location / { proxy_set_header X-Tenant acme; proxy_pass http://app; }" }, async (sides) => {
      await same(sides, "/", [200, ["acme"]], sent("x-tenant"));
      await same(sides, "/", [200, ["acme"]], sent("x-tenant"), { headers: { "x-tenant": ["evil", "other"] } });
    }));

  line("`proxy_set_header X-Debug \"\";`", "takes a header of the request away", (here) =>
    compare({ here, server: 'location / { proxy_set_header X-Debug ""; proxy_pass http://app; }' }, async (sides) => {
      await same(sides, "/", [200, []], sent("x-debug"), { headers: { "x-debug": "1", "x-other": "2" } });
      await same(sides, "/", [200, ["2"]], sent("x-other"), { headers: { "x-debug": "1", "x-other": "2" } });
    }));

  line("`add_header X-Frame-Options DENY always;`", "sets a header of every answer", (here) =>
    compare({ here, server: "location / { add_header X-Frame-Options DENY always; proxy_pass http://app; }" }, async (sides) => {
      const look = ({ status, headers }) => [status, headers["x-frame-options"]];
      for (const [path, status] of [["/", 200], ["/moved", 302], ["/status/404", 404], ["/status/500", 500]]) {
        await same(sides, path, [status, "DENY"], look);
      }
    }));

  line("`proxy_hide_header X-Powered-By;`", "takes a header of the answer away", (here) =>
    compare({ here, server: "location / { proxy_hide_header X-Powered-By; proxy_pass http://app; proxy_redirect off; }" }, (sides) =>
      same(sides, "/moved", [302, undefined, "/there", "Cookie"], ({ status, headers }) => [
        status, headers["x-powered-by"], headers.location, headers.vary,
      ])));
});

describe("time and size", () => {
  line("`proxy_read_timeout 1d;` for WebSockets", "leaves quiet sessions open", (here) =>
    compare(
      {
        here,
        swap: { "25s": "1s" },
        outside: UPGRADE_MAP,
        server: `location / { proxy_pass http://app; proxy_read_timeout 1d; ${UPGRADE} }`,
      },
      async (sides) => {
        const [quiet, pinged] = await Promise.all(both(sides).map((side) => open(side)));
        // Until here has pinged twice.
        for (let pings = 0; pings < 2; pings += 1) await event(pinged.socket, "ping");
        for (const { socket } of [quiet, pinged]) {
          socket.send("still here");
          assert.equal(String((await once(socket, "message"))[0]), "still here");
          socket.terminate();
        }
      },
    ));

  line("`proxy_buffering off;`, `proxy_request_buffering off;`", "passes events on at once", (here) => {
    assert.equal(here, "not needed");
    const server = "location / { proxy_buffering off; proxy_request_buffering off; proxy_pass http://app; }";
    return compare({ server }, async (sides) => {
      for (const side of both(sides)) {
        const request = http.get(`${side.http}/events`, { agent: false, headers: { host: HOST } });
        const [response] = await event(request, "response");
        // The stream is open, and its first line is here.
        const [part] = await event(response, "data");
        assert.match(String(part), /begun/, side.name);
        request.on("error", () => {}).destroy();
      }
    });
  });

  line("`client_max_body_size 10m;`", "answers 413 to larger bodies", (here) =>
    compare({ here, server: `location / { client_max_body_size 10m; proxy_pass http://app; }` }, async (sides) => {
      const body = Buffer.alloc(10 * 1024 * 1024);
      const options = { method: "POST", body };
      await same(sides, "/upload", [200, body.length], ({ status, saw }) => [status, saw.bytes], options);
      const larger = { method: "POST", body: Buffer.alloc(body.length + 1) };
      await same(sides, "/upload", [413], ({ status }) => [status], larger);
    }));

  line("`client_header_timeout`, `keepalive_timeout`, `large_client_header_buffers`", "bounds heads in time and size", (here) =>
    compare(
      {
        here,
        swap: { "timeout: 10s": "timeout: 1s" },
        outside: "client_header_timeout 1s; keepalive_timeout 1s; large_client_header_buffers 4 8k;",
        server: PASS,
      },
      async (sides) => {
        // nginx answers 400 to what is too large and nothing to what is too late; here there are statuses for both.
        const large = (side) => ask(side, "/", { headers: { "x-large": "x".repeat(40_000) } });
        assert.deepEqual([(await large(sides.nginx)).status, (await large(sides.sluicegate)).status], [400, 431]);
        const late = async (side, text) => {
          const socket = connect(side.port, "127.0.0.1");
          let answer = "";
          socket.on("data", (part) => (answer += part)).on("error", () => {});
          socket.write(text);
          await event(socket, "close");
          return answer.split("\r\n")[0];
        };
        const begun = `GET / HTTP/1.1\r\nHost: ${HOST}\r\n`;
        const cut = await Promise.all(both(sides).map((side) => late(side, begun)));
        assert.deepEqual(cut, ["", "HTTP/1.1 408 Request Timeout"]);
        // One request, and then silence.
        const kept = await Promise.all(both(sides).map((side) => late(side, `${begun}\r\n`)));
        assert.deepEqual(kept, ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]);
      },
    ));
});

describe("limits", () => {
  line("`limit_req zone=ip rate=10r/s burst=20;`", "bounds the handshakes of an address", (here) =>
    compare(
      {
        here,
        // So slow that none is added while the test runs.
        swap: { "10/s": "1/m" },
        outside: `limit_req_zone $binary_remote_addr zone=ip:1m rate=1r/m; ${UPGRADE_MAP}`,
        server: `location / { limit_req zone=ip burst=20 nodelay; proxy_pass http://app; ${UPGRADE} }`,
      },
      async (sides) => {
        // nginx lets one and then the burst through, and answers 503; here the burst is all, and it is 429.
        for (const [side, through, status] of [[sides.nginx, 21, 503], [sides.sluicegate, 20, 429]]) {
          const all = await Promise.all(Array.from({ length: 30 }, () => open(side)));
          for (const { socket } of all) socket?.terminate();
          const opened = all.filter((answer) => answer.status === 101).length;
          assert.equal(opened, through, side.name);
          const refused = all.filter((answer) => answer.status !== 101);
          assert.ok(refused.every((answer) => answer.status === status), side.name);
          if (status === 429) assert.ok(refused.every(({ headers }) => Number(headers["retry-after"]) > 0));
          // Another address is not concerned.
          const other = await open(side, "/", { localAddress: "127.0.0.2" });
          assert.equal(other.status, 101, side.name);
          other.socket.terminate();
        }
      },
    ));

  line("`limit_conn addr 50;`", "bounds the sessions of an address", (here) =>
    compare(
      {
        here,
        swap: { 50: "3" },
        outside: `limit_conn_zone $binary_remote_addr zone=addr:1m; ${UPGRADE_MAP}`,
        server: `location / { limit_conn addr 3; proxy_pass http://app; ${UPGRADE} }`,
      },
      async (sides) => {
        for (const [side, status] of [[sides.nginx, 503], [sides.sluicegate, 429]]) {
          const all = [];
          for (let i = 0; i < 5; i += 1) all.push(await open(side));
          assert.deepEqual(all.map((answer) => answer.status), [101, 101, 101, status, status], side.name);
          // A place that was given back can be taken again.
          all[0].socket.terminate();
          const again = await eventually(() => open(side), (answer) => answer.status === 101);
          for (const { socket } of [...all, again]) socket?.terminate();
        }
      },
    ));

  line("`worker_connections`, `worker_rlimit_nofile`", "bounds what the process takes", (here) =>
    compare({ here, swap: { 20000: "2" }, server: PASS }, async ({ sluicegate }) => {
      const all = [await open(sluicegate), await open(sluicegate), await open(sluicegate)];
      assert.deepEqual(all.map(({ status }) => status), [101, 101, 503]);
      for (const { socket } of all) socket?.terminate();
    }));
});

describe("the address of the client", () => {
  const look = ({ sent }) => [sent("x-real-ip"), sent("x-forwarded-for")];
  const server = (from) => `location / {
    proxy_pass http://app;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For "${from}, $realip_remote_addr";
  }`;

  line("`set_real_ip_from 10.0.0.0/8;`, `real_ip_recursive on;`", "finds it behind trusted hops, and appends the last", (here) =>
    compare(
      {
        here,
        swap: { "10.0.0.0/8": "127.0.0.0/8" },
        outside: "set_real_ip_from 127.0.0.0/8; real_ip_recursive on; real_ip_header X-Forwarded-For;",
        server: server("$http_x_forwarded_for"),
      },
      async (sides) => {
        for (const [came, client] of [
          ["203.0.113.9", "203.0.113.9"],
          ["203.0.113.9, 127.0.0.7", "203.0.113.9"],
          ["198.51.100.1, 203.0.113.9, 127.0.0.7, 127.0.0.8", "203.0.113.9"],
          ["2001:db8::1", "2001:db8::1"],
        ]) {
          const headers = { "x-forwarded-for": came };
          await same(sides, "/", [[client], [`${came}, 127.0.0.1`]], look, { headers });
        }
      },
    ));

  line("`real_ip_header CF-Connecting-IP;`", "reads it from another header", (here) =>
    compare(
      {
        here,
        main: "trusted_proxies: [127.0.0.1]",
        outside: "set_real_ip_from 127.0.0.1; real_ip_header CF-Connecting-IP;",
        server: server("$http_x_forwarded_for"),
      },
      async (sides) => {
        const headers = { "cf-connecting-ip": "203.0.113.9", "x-forwarded-for": "192.0.2.1" };
        await same(sides, "/", [["203.0.113.9"]], (answer) => look(answer).slice(0, 1), { headers });
      },
    ));
});

describe("the process", () => {
  line("`access_log off;`", "writes no line for a request", (here) =>
    compare({ here, server: PASS }, async ({ sluicegate }) => {
      assert.equal((await ask(sluicegate, "/quiet")).status, 200);
      assert.equal((await open(sluicegate, "/", { origin: "https://evil.example" })).status, 403);
      // A refusal is still said, and stands behind where the request's line would be.
      await sluicegate.line({ event: "refusal" });
      assert.deepEqual(sluicegate.log.filter(({ event }) => event === "request"), []);
    }));

  line("`include conf.d/*.conf;`", "reads more files", (here) =>
    compare(
      {
        here,
        swap: { "rules/*.yaml": "site-*.yaml" },
        files: {
          "site-one.yaml": "rules: [{ name: one, match: { path_prefix: /one }, upstream: app }]",
          "site-two.yaml": "rules: [{ name: two, match: { path_prefix: /two }, respond: { status: 410 } }]",
          "one.conf": "location /one { proxy_pass http://app; }",
          "two.conf": "location /two { return 410; }",
        },
        server: "include FOLDER/*e.conf; include FOLDER/*o.conf;",
      },
      async (sides) => {
        await same(sides, "/one/x", [200, "/one/x"]);
        await same(sides, "/two", [410], ({ status }) => [status]);
        await same(sides, "/three", [404], ({ status }) => [status]);
      },
    ));

  line("`stub_status`", "counts sessions", (here) =>
    compare(
      {
        here,
        swap: { "127.0.0.1:9901": "127.0.0.1:0" },
        outside: UPGRADE_MAP,
        server: `location = /basic_status { stub_status; } location / { proxy_pass http://app; ${UPGRADE} }`,
      },
      async (sides) => {
        const opened = await Promise.all(both(sides).map((side) => open(side)));
        // nginx counts the request that asks too.
        assert.match((await ask(sides.nginx, "/basic_status")).text, /^Active connections: 2 /);
        assert.equal(total(await sides.sluicegate.metrics(), "sluicegate_connections"), 1);
        for (const { socket } of opened) socket.terminate();
      },
    ));

  line("`nginx -t`, `nginx -T`, `nginx -s quit`", "checks, prints and ends", async (here) => {
    assert.equal(here, "`sluicegate check`, `sluicegate config`, SIGTERM");
    const folder = await temporaryFolder();
    const run = promisify(execFile);
    const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
    const port = await freePort();
    const nginxFile = join(folder, "nginx.conf");
    const file = join(folder, "sluicegate.yaml");
    try {
      await mkdir(join(folder, "logs"));
      const conf = (directive) => `
pid ${folder}/pid;
error_log stderr;
events {}
http { access_log off; server { ${directive} 127.0.0.1:${port}; } }`;
      const yaml = (key) => `
version: 1
${key}: [{ name: public, bind: "127.0.0.1:${port}" }]
upstreams: [{ name: app, endpoints: ["127.0.0.1:1"] }]`;
      const asked = (...args) => run("nginx", [...args, "-p", folder, "-c", nginxFile], { env });
      await writeFile(nginxFile, conf("listen"));
      await writeFile(file, yaml("listeners"));
      await asked("-t");
      await run(SLUICEGATE, ["check", "-c", file]);
      assert.match((await asked("-T")).stdout, new RegExp(`listen 127.0.0.1:${port}`));
      assert.match((await run(SLUICEGATE, ["config", "-c", file])).stdout, new RegExp(`127\\.0\\.0\\.1:${port}`));
      await writeFile(nginxFile, conf("lissten"));
      await writeFile(file, yaml("lisseners"));
      await assert.rejects(asked("-t"), { code: 1 });
      await assert.rejects(run(SLUICEGATE, ["check", "-c", file]), { code: 2 });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
    const gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${a.port}"] }]`);
    // What is being answered is answered to its end.
    const before = await polls();
    const answer = ask(gate, "/poll?hold=500");
    await eventually(polls, (now) => now > before);
    const ended = gate.stop();
    assert.equal((await answer).status, 200);
    assert.deepEqual(await ended, { code: 0, signal: null });
  });
});

test("every line of the manual's table has its test", () => {
  assert.deepEqual([...table.keys()].filter((directive) => !tested.has(directive)), []);
  assert.ok(table.size >= 35, `${table.size} lines`);
});
