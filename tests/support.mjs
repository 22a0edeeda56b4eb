// Starts backends, clients and the gateway for the Node tests.

import { execFile, spawn } from "node:child_process";
import { promisify } from "node:util";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
export const SLUICEGATE = process.env.SLUICEGATE ?? here("../target/debug/sluicegate");
const interpreters = { mjs: process.execPath, py: here("./.venv/bin/python") };
const command = (script) => [interpreters[script.split(".").at(-1)], here(`./${script}`)];

/** A rule file that is shipped, for `rule_files`. */
export const rules = (name) => here(`../rules/${name}.yaml`);

/** Starts a backend, on a port of its own or the given one, and waits for its line `{"listening": PORT}`. */
export async function backend(script, env = {}, wanted = 0) {
  const [interpreter, file] = command(script);
  const child = spawn(interpreter, [file, String(wanted)], {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...process.env, ...env },
  });
  const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
  const line = await firstLine(child);
  const { listening: port } = JSON.parse(line);
  return {
    port,
    child,
    exited,
    http: `http://127.0.0.1:${port}`,
    ws: `ws://127.0.0.1:${port}`,
    stop() {
      child.kill("SIGTERM");
      return exited;
    },
  };
}

/**
 * Runs the gateway on a configuration, in which `{ bind: 127.0.0.1:0 }` stands for every address; `files` are put
 * beside it, and `options` are given behind. `log` has its lines so far; `line` waits for one that holds the given fields,
 * and `metric` for the value of a series.
 */
export async function gateway(configuration, files = {}, env = {}, options = []) {
  const folder = await temporaryFolder();
  const file = join(folder, "sluicegate.yaml");
  for (const [name, text] of Object.entries({ ...files, "sluicegate.yaml": configuration })) {
    await writeFile(join(folder, name), text);
  }
  const child = spawn(SLUICEGATE, ["run", "-c", file, ...options], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, ...env },
  });
  const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
  const log = [];
  let stray = "";
  createInterface({ input: child.stderr }).on("line", (text) => {
    if (text.startsWith("{")) log.push(JSON.parse(text));
    else stray += `${text}\n`;
  });
  const line = async (fields, nth = 1) => {
    const holds = (entry) => Object.entries(fields).every(([name, value]) => entry[name] === value);
    const found = () => log.filter(holds)[nth - 1];
    await eventually(() => found() ?? { wanted: fields, log: log.slice(-3), stray }, (answer) => answer === found());
    return found();
  };
  const started = () => log.some(({ event }) => event === "started");
  await eventually(() => started() || child.exitCode, (state) => state !== null);
  if (!started()) {
    await rm(folder, { recursive: true, force: true });
    throw new Error(`the gateway ended with ${child.exitCode}: ${stray}`);
  }
  const port = (listener) => Number(log.find((entry) => entry.listener === listener).address.split(":").at(-1));
  const admin = `http://127.0.0.1:${port("admin")}`;
  const metrics = async () => (await fetch(`${admin}/metrics`)).text();
  return {
    child,
    exited,
    log,
    line,
    metrics,
    admin,
    port: port("public"),
    http: `http://127.0.0.1:${port("public")}`,
    ws: `ws://127.0.0.1:${port("public")}`,
    /** Waits until the series whose labels hold all of `labels` add up to `wanted`. */
    async metric(name, labels, wanted) {
      await eventually(async () => total(await metrics(), name, labels), (value) => value === wanted);
    },
    async stop() {
      child.kill("SIGTERM");
      const end = await exited;
      await rm(folder, { recursive: true, force: true });
      return end;
    },
  };
}

/** The sum of the series of `name` that hold all of `labels`, in Prometheus' text. */
export function total(text, name, labels = {}) {
  const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
  let sum = 0;
  for (const line of text.split("\n")) {
    const series = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (series?.[1] !== name) continue;
    const held = (series[2] ?? "").split(/,(?=\w+=")/);
    if (wanted.every((pair) => held.includes(pair))) sum += Number(series[3]);
  }
  return sum;
}

/** Starts a server of a test's own, and waits until it listens on all its ports. Answers how to stop it. */
export async function serve(command, args, ports) {
  // Not on every user's path.
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
  const child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (said += part));
  const exited = once(child, "exit");
  exited.catch(() => {});
  const listens = (port) =>
    new Promise((resolve) => {
      const socket = connect(port, "127.0.0.1", () => resolve(true));
      socket.once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
  for (const port of ports) {
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`${command} ended: ${said}`);
      return listens(port);
    }, Boolean);
  }
  return async () => {
    child.kill("SIGTERM");
    await exited;
  };
}

/** Starts nginx with what its `http` block shall hold; its files are in `folder`. Answers how to stop it. */
export async function nginx(folder, http, ports) {
  const file = join(folder, "nginx.conf");
  const user = process.getuid() === 0 ? "user root;" : "";
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  await writeFile(file, `
    ${user}
    daemon off;
    worker_processes 1;
    pid ${folder}/nginx.pid;
    error_log stderr warn;
    events { worker_connections 64; }
    http {
      access_log off;
      ${temporary.map((kind) => `${kind}_temp_path ${folder}/${kind};`).join(" ")}
      ${http}
    }`);
  return serve("nginx", ["-p", folder, "-c", file, "-e", "stderr"], ports);
}

/** A folder of its own for a test. */
export function temporaryFolder() {
  return mkdtemp(join(tmpdir(), "sluicegate-test-"));
}

/**
 * A CA of a test's own in `folder` (`ca.crt`), by openssl, and for each name a certificate and its key (`NAME.crt`,
 * `NAME.key`) for these hosts.
 */
export async function certificates(folder, names) {
  const openssl = async (...args) => {
    const child = spawn("openssl", args, { cwd: folder, stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    child.stderr.on("data", (part) => (said += part));
    const [code] = await once(child, "exit");
    if (code !== 0) throw new Error(`openssl ${args[0]}: ${said}`);
  };
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  await openssl("req", "-x509", ...key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=a test's CA");
  for (const [name, hosts] of Object.entries(names)) {
    const subject = hosts.map((host) => (/^[\d.]+$/.test(host) ? `IP:${host}` : `DNS:${host}`)).join(",");
    await openssl("req", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    await writeFile(join(folder, `${name}.ext`), `subjectAltName=${subject}\n`);
    const sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`];
    await openssl("x509", "-req", "-in", `${name}.csr`, "-out", `${name}.crt`, ...sign);
  }
}

/** The variables that give a process another time of day, by so much; what it measures intervals by stays as it is. */
export async function shifted(by) {
  const { stdout } = await promisify(execFile)("faketime", ["-f", by, "printenv", "LD_PRELOAD"]);
  return { LD_PRELOAD: stdout.trim(), FAKETIME: by, FAKETIME_DONT_FAKE_MONOTONIC: "1" };
}

/** A port that was free a moment ago, for servers that cannot take any. */
export async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Runs a client to its end and returns its transcript. */
export const client = (script, ...args) => clientIn({}, script, ...args);

/** The same with these variables in its environment. */
export function clientIn(env, script, ...args) {
  const [interpreter, file] = command(script);
  const words = args.filter((arg) => arg !== undefined).map((arg) => (typeof arg === "string" ? arg : JSON.stringify(arg)));
  return new Promise((resolve, reject) => {
    execFile(interpreter, [file, ...words], { timeout: 30_000, env: { ...process.env, ...env } }, (error, stdout, stderr) => {
      try {
        resolve({ ...JSON.parse(stdout), exit: error?.code ?? 0 });
      } catch {
        reject(new Error(`${script}: ${error ?? "no transcript"}\n${stdout}${stderr}`));
      }
    });
  });
}

/** How much memory a process has, in bytes. Linux. */
export async function residentBytes({ pid }) {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)[1]) * 1024;
}

/** The first line of a child's standard output that `matches`; fails when the child ends or 20 s pass before it. */
export function firstLine(child, matches = () => true) {
  return new Promise((resolve, reject) => {
    const lines = createInterface({ input: child.stdout });
    const late = setTimeout(() => reject(new Error("the awaited line did not come within 20 s")), 20_000);
    lines.on("line", (line) => {
      if (!matches(line)) return;
      clearTimeout(late);
      resolve(line);
    });
    lines.once("close", () => {
      clearTimeout(late);
      reject(new Error("ended before the awaited line came"));
    });
  });
}

/** Asks again until `holds` accepts what `ask` answers; fails after 20 s with the last answer. */
export async function eventually(ask, holds) {
  const end = Date.now() + 20_000;
  for (;;) {
    const answer = await ask();
    if (holds(answer)) return answer;
    if (Date.now() > end) throw new Error(`still ${JSON.stringify(answer)} after 20 s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
