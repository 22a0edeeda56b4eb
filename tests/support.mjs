// Starts backends and clients for the Node tests.

import { execFile, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
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

/** Asks again until `holds` accepts what `ask` answers; fails after 10 s with the last answer. */
export async function eventually(ask, holds) {
  const end = Date.now() + 10_000;
  for (;;) {
    const answer = await ask();
    if (holds(answer)) return answer;
    if (Date.now() > end) throw new Error(`still ${JSON.stringify(answer)} after 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
