// The demo as a command: its ports, what it prints, and how it ends. Its page is browser/demo.mjs's.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { SLUICEGATE, temporaryFolder } from "./support.mjs";

/** Starts the demo and waits for the line that ends what it prints. */
async function demo(...args) {
  const child = spawn(SLUICEGATE, ["demo", ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
  let printed = "";
  for await (const part of child.stdout.setEncoding("utf8").iterator({ destroyOnReturn: false })) {
    printed += part;
    if (/^Open .*\n/m.test(printed)) break;
  }
  child.stdout.resume();
  return {
    child,
    exited,
    printed,
    url: /^Open (http:\/\/\S+) in a browser\. Ctrl-C ends the demo\.$/m.exec(printed)?.[1],
    admin: /^Metrics are on (\S+), at \/metrics\.$/m.exec(printed)?.[1],
    configuration: [...printed.matchAll(/^ {4}(.*)$/gm)].map(([, line]) => line).join("\n"),
  };
}

/** Takes a port, or leaves it to whoever has it. */
function take(port) {
  const server = createServer();
  return new Promise((resolve) => {
    server.once("error", () => resolve({ close() {} }));
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}

test("takes free ports where 8080 and 9901 are taken, and serves there", async () => {
  const taken = [await take(8080), await take(9901)];
  try {
    const { child, exited, url, admin, printed } = await demo("--for", "60s");
    assert.ok(url && admin, printed);
    assert.notEqual(new URL(url).port, "8080");
    assert.ok(!admin.endsWith(":9901"), admin);
    assert.match(await (await fetch(url)).text(), /<title>Sluicegate demo<\/title>/);
    assert.match(await (await fetch(`http://${admin}/metrics`)).text(), /^sluicegate_connections\{rule="sample"\} 0$/m);
    child.kill("SIGINT");
    assert.deepEqual(await exited, { code: 0, signal: null });
  } finally {
    for (const server of taken) server.close();
  }
});

test("prints one URL and a configuration that check accepts", async () => {
  const { child, exited, printed, configuration } = await demo("--for", "60s");
  child.kill("SIGTERM");
  assert.deepEqual(await exited, { code: 0, signal: null });
  assert.equal(printed.match(/https?:\/\//g).length, 1, printed);
  const folder = await temporaryFolder();
  const file = join(folder, "demo.yaml");
  await writeFile(file, configuration);
  await promisify(execFile)(SLUICEGATE, ["check", "-c", file]);
  await rm(folder, { recursive: true });
});

test("ends by itself after --for", async () => {
  const { exited } = await demo("--for", "1s");
  assert.deepEqual(await exited, { code: 0, signal: null });
});

test("ends on Ctrl-C while a page's event stream is open", async () => {
  const { child, exited, url } = await demo();
  const events = await fetch(`${url}/events`);
  assert.equal(events.headers.get("content-type"), "text/event-stream");
  child.kill("SIGINT");
  assert.deepEqual(await exited, { code: 0, signal: null });
  await events.body.cancel().catch(() => {});
});
