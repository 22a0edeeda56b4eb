// Starts backends, clients and the gateway for the Node tests.

import { execFile, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
export const SLUICEGATE = process.env.SLUICEGATE ?? here("../target/debug/sluicegate");
const interpreters = { mjs: process.execPath, py: here("./.venv/bin/python") };
const command = (script) => [interpreters[script.split(".").at(-1)], here(`./${script}`)];

/** Starts a backend and waits for its line `{"listening": PORT}`. */
export async function backend(script, env = {}) {
  const [interpreter, file] = command(script);
  const child = spawn(interpreter, [file], { stdio: ["pipe", "pipe", "inherit"], env: { ...process.env, ...env } });
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
 * Runs the gateway on a configuration, in which `{ bind: 127.0.0.1:0 }` stands for every address. `log` has its lines
 * so far; `line` waits for one that holds the given fields, and `metric` for the value of a series.
 */
export async function gateway(configuration) {
  const folder = await temporaryFolder();
  const file = join(folder, "sluicegate.yaml");
  await writeFile(file, configuration);
  const child = spawn(SLUICEGATE, ["run", "-c", file], { stdio: ["ignore", "ignore", "pipe"] });
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
  const started = line({ event: "started" });
  await Promise.race([started, exited.then(({ code }) => Promise.reject(new Error(`ended with ${code}: ${stray}`)))]);
  const port = (listener) => Number(log.find((entry) => entry.listener === listener).address.split(":").at(-1));
  const admin = `http://127.0.0.1:${port("admin")}`;
  const metrics = async () => (await fetch(`${admin}/metrics`)).text();
  return {
    child,
    exited,
    log,
    line,
    metrics,
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

/** A folder of its own for a test. */
export function temporaryFolder() {
  return mkdtemp(join(tmpdir(), "sluicegate-test-"));
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
export function client(script, ...args) {
  const [interpreter, file] = command(script);
  const words = args.filter((arg) => arg !== undefined).map((arg) => (typeof arg === "string" ? arg : JSON.stringify(arg)));
  return new Promise((resolve, reject) => {
    execFile(interpreter, [file, ...words], { timeout: 30_000 }, (error, stdout, stderr) => {
      try {
        resolve({ ...JSON.parse(stdout), exit: error?.code ?? 0 });
      } catch {
        reject(new Error(`${script}: ${error ?? "no transcript"}\n${stdout}${stderr}`));
      }
    });
  });
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
