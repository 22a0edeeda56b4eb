// Drives Autobahn|Testsuite: its fuzzing client against servers, and clients of ours against its fuzzing server.
//
// A run is `direct`, or through a gateway with `defaults`, with `opened` limits, or one that lets compression
// `terminate`. `ws` offers and accepts permessage-deflate. A run's table has for each case
// { behavior, behaviorClose, code, report }, where `code` is the close code that the suite received, and `report` the
// file with all that was on the wire.

import { once } from "node:events";
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { backend, certificates, freePort, gateway, serve, temporaryFolder } from "../support.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const requirements = readFileSync(join(root, "tests/conformance/requirements.txt"), "utf8");
/** The suite and its version. */
export const SUITE = /^(autobahntestsuite)==(\S+)$/m.exec(requirements).slice(1).join(" ");

const WSTEST = join(root, "target/tools/autobahn/bin/wstest");
const REPORTS = join(root, "target/conformance");

const SIZES = "max_size: off, max_fragments: off, upstream_max_size: off, control_rate: off";
const LIMITS = {
  defaults: "",
  // UTF-8 and RFC 6455 are checked as ever.
  opened: `defaults: { message: { ${SIZES}, max_ratio: off } }`,
  terminate: `defaults: { compression: terminate, message: { ${SIZES} } }`,
};

const configuration = (port, limits, rule = "", listener = "") => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0"${listener} }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
${limits}
rules:
  - name: app
    upstream: app
    ${rule}`;

/** The suite's client, before a backend on Node's `ws`; `cases` are patterns such as `6.*`. A table for each run. */
export function againstServers(runs, cases, minutes) {
  return playServers("servers", Object.fromEntries(runs.map((run) => [run, { run }])), cases, minutes);
}

/** The same over HTTP/2: HAProxy before the gateway makes an extended CONNECT of each handshake. */
export function againstServersOverHttp2(runs, cases, minutes) {
  const agents = runs.map((run) => [run, { run, front: "http2" }]);
  return playServers("servers-http2", Object.fromEntries(agents), cases, minutes);
}

/** The same directly, and through the gateway's defaults over each of these: a table for each. */
export function againstFronts(cases, minutes) {
  const fronts = ["http1", "http1-tls", "http2", "http2-tls"];
  const agents = fronts.map((front) => [front, { run: "defaults", front }]);
  return playServers("fronts", Object.fromEntries([["direct", { run: "direct" }], ...agents]), cases, minutes);
}

// What HAProxy says to the gateway where it stands before it: the suite's client has neither TLS that is of today nor
// HTTP/2. And the protocol that each session then has in the gateway's log.
const BRIDGES = {
  "http1-tls": ["ssl verify none alpn http/1.1", "h1"],
  http2: ["proto h2 ws h2", "h2"],
  "http2-tls": ["ssl verify none alpn h2 ws h2", "h2"],
};

/** What the suite's client connects to for a gateway, and how that is stopped. */
async function before(front, gate) {
  if (!(front in BRIDGES)) return { url: gate.ws, stop() {} };
  const [words, wanted] = BRIDGES[front];
  const folder = await temporaryFolder();
  const [file, port] = [join(folder, "haproxy.cfg"), await freePort()];
  await writeFile(file, `
global
  maxconn 200
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
listen app
  bind 127.0.0.1:${port}
  server gateway 127.0.0.1:${gate.port} ${words}
`);
  const stop = await serve("haproxy", ["-db", "-f", file], [port]);
  return {
    url: `ws://127.0.0.1:${port}`,
    async stop() {
      await stop();
      await rm(folder, { recursive: true, force: true });
      const sessions = gate.log.filter(({ event }) => event === "session");
      if (sessions.length === 0 || sessions.some(({ protocol }) => protocol !== wanted)) {
        throw new Error(`not every session of ${front} came over ${wanted}`);
      }
    },
  };
}

/** `agents`: by their names, the run of each, and over what it comes to the gateway. */
async function playServers(name, agents, cases, minutes) {
  const folder = await reports(name);
  const pair = join(folder, "gateway");
  await certificates(folder, { gateway: ["localhost", "127.0.0.1"] });
  const tls = `, tls: { certificates: [{ cert_file: "${pair}.crt", key_file: "${pair}.key" }] }`;
  const peer = await backend("backends/ws_echo.mjs", { PERMESSAGE_DEFLATE: "1" });
  const [gates, fronts] = [[], []];
  try {
    const servers = [];
    for (const [agent, { run, front }] of Object.entries(agents)) {
      if (run === "direct") {
        servers.push({ agent, url: peer.ws });
      } else {
        const gate = await gateway(configuration(peer.port, LIMITS[run], "", front?.endsWith("-tls") ? tls : ""));
        gates.push(gate);
        const bridge = await before(front, gate);
        fronts.push(bridge);
        servers.push({ agent, url: bridge.url });
      }
    }
    const spec = join(folder, "spec.json");
    await writeFile(spec, JSON.stringify({ outdir: folder, servers, cases }));
    await wstest(["-m", "fuzzingclient", "-s", spec], minutes);
    return await results(folder, Object.keys(agents));
  } finally {
    await Promise.all(fronts.map((front) => front.stop()));
    await Promise.all([peer, ...gates].map((process) => process.stop()));
  }
}

/** A client on Node's `ws` that echoes, before the suite's server; `cases` as above. A table for each run. */
export async function againstClients(runs, cases, minutes) {
  const folder = await reports("clients");
  const port = await freePort();
  const spec = join(folder, "spec.json");
  await writeFile(spec, JSON.stringify({ outdir: folder, url: `ws://127.0.0.1:${port}`, cases }));
  const stop = await serve(installed(), ["-m", "fuzzingserver", "-u", "0", "-s", spec], [port]);
  const gates = [];
  try {
    const direct = `ws://127.0.0.1:${port}`;
    const count = Number(await echo(`${direct}/getCaseCount`));
    if (!(count > 0)) throw new Error("the suite's server says nothing of its cases");
    const deadline = Date.now() + minutes * 60_000;
    for (const run of runs) {
      let url = direct;
      if (run !== "direct") {
        // The suite's server refuses a Host with another port than its own.
        const rule = `request_headers: { set: { host: "127.0.0.1:${port}" } }`;
        const gate = await gateway(configuration(port, LIMITS[run], rule));
        gates.push(gate);
        url = gate.ws;
      }
      for (let number = 1; number <= count; number += 1) {
        if (Date.now() > deadline) throw new Error(`not done within ${minutes} minutes, at case ${number} of ${run}`);
        await echo(`${url}/runCase?case=${number}&agent=${run}`);
      }
    }
    await echo(`${direct}/updateReports?agent=${runs[0]}`);
    return await results(folder, runs);
  } finally {
    await stop();
    await Promise.all(gates.map((gate) => gate.stop()));
  }
}

/** Connects, and sends back what comes until the connection ends. Answers the last text that came. */
async function echo(url) {
  const socket = new WebSocket(url, { perMessageDeflate: true, maxPayload: 0, maxFragments: 0, maxBufferedChunks: 0 });
  let last;
  socket.on("message", (data, isBinary) => {
    last = isBinary ? undefined : data.toString();
    socket.send(data, { binary: isBinary });
  });
  // What the suite does wrong on purpose is an error here, and what it makes of the answer is in its report.
  socket.on("error", () => {});
  await new Promise((resolve) => socket.once("close", resolve));
  return last;
}

function installed() {
  if (!existsSync(WSTEST)) throw new Error("Autobahn|Testsuite is not installed: run `scripts/setup test`");
  return WSTEST;
}

async function reports(direction) {
  const folder = join(REPORTS, direction);
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  return folder;
}

async function wstest(args, minutes) {
  const child = spawn(installed(), args, { stdio: ["ignore", "pipe", "pipe"], timeout: minutes * 60_000 });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (said = (said + part).slice(-2000)));
  const [code, signal] = await once(child, "exit");
  // Its exit code says nothing about the cases, only whether it came to its end.
  if (code !== 0) throw new Error(`wstest ended with ${code ?? signal}: ${said}`);
}

async function results(folder, runs) {
  const index = JSON.parse(await readFile(join(folder, "index.json"), "utf8"));
  const tables = {};
  for (const run of runs) {
    const cases = Object.entries(index[run] ?? {}).sort(([one], [other]) => byNumber(one, other));
    tables[run] = Object.fromEntries(
      cases.map(([id, { behavior, behaviorClose, remoteCloseCode, reportfile }]) => [
        id,
        { behavior, behaviorClose, code: remoteCloseCode, report: join(folder, reportfile) },
      ]),
    );
  }
  return tables;
}

/** 1.2.9 before 1.2.10. */
export function byNumber(one, other) {
  const [left, right] = [one, other].map((id) => id.split(".").map(Number));
  for (let i = 0; i < left.length; i += 1) {
    if (left[i] !== right[i]) return left[i] - (right[i] ?? 0);
  }
  return 0;
}
