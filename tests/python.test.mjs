// The Python client through real gateways on one Redis, on a network that breaks.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { relay } from "./relay.mjs";
import { bed, publish, start } from "./rooms.mjs";
import { eventually, temporaryFolder } from "./support.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** Runs a Python program that has the client, and answers what it has said so far and how it ends. */
function python(...args) {
  const env = { ...process.env, PYTHONPATH: here("../clients/python"), PYTHONDONTWRITEBYTECODE: "1" };
  const child = spawn(here(".venv/bin/python"), args.map(String), { env, timeout: 30_000 });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (said += part));
  const exited = new Promise((resolve) => child.once("exit", resolve));
  return {
    said: (text) => eventually(() => said, (now) => now.includes(text) || child.exitCode !== null),
    async end() {
      const status = await exited;
      assert.equal(status, 0, said);
      return said.trim().split("\n");
    },
  };
}

const room = (...args) => python(here("clients/sluicegate_room.py"), ...args);
const transcript = async (running) => JSON.parse((await running.end()).at(-1));
const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => `${from + at}`);

let the;
before(async () => {
  the = await bed();
});
after(() => the?.stop());

test("on a network that breaks, and between two gateways, every message comes once and in order", async () => {
  const [one, two] = the.gates;
  const wire = await relay(one.port);
  try {
    const ALL = 200;
    const ann = room(`${wire.ws}/broken`, ALL);
    await ann.said("subscribed");
    for (let at = 1; at <= ALL; at += 1) {
      await publish(the.gates[at % 2], "broken", [at]);
      if (at % 20 === 0 && at < ALL) {
        wire.pointTo([one, two][(at / 20) % 2].port);
        wire.cut();
      }
    }
    const { ids, gaps, states } = await transcript(ann);
    assert.deepEqual([ids, gaps], [numbers(1, ALL), []]);
    assert.ok(states.includes("recovered"), `${states}`);
  } finally {
    await wire.stop();
  }
});

test("a cursor that was exported is where the next client begins, and one of another log is a gap", async () => {
  const first = room(`${the.gates[0].ws}/exported`, 2);
  await first.said("subscribed");
  await publish(the.gates[1], "exported", [1, 2]);
  const { cursor, resumable } = await transcript(first);
  assert.equal(resumable, true);
  await publish(the.gates[1], "exported", [3]);
  // The second message was not asked to be followed, so it was not done with.
  const second = await transcript(room(`${the.gates[1].ws}/exported`, 2, JSON.stringify(cursor)));
  assert.deepEqual([second.ids, second.gaps, second.states], [["2", "3"], [], ["recovered"]]);
  const third = room(`${the.gates[1].ws}/exported`, 1, '{"exported": ["eu.other.7.1-0"]}');
  await third.said("subscribed");
  await publish(the.gates[0], "exported", [4]);
  assert.deepEqual((await transcript(third)).gaps, ["lineage"]);
});

test("refusals are waited for, ends are told, and without the subprotocol it is plain", async () => {
  const limited = await start(the.peer.port, "memory", { rule: ", handshake: { per_ip: { rate: 20/m, burst: 1 } }" });
  try {
    const first = room(`${limited.ws}/limited`, 1);
    await first.said("subscribed");
    const second = room(`${limited.ws}/limited`, 1);
    await second.said("subscribed");
    await publish(limited, "limited", ["end"]);
    const found = await Promise.all([first, second].map(transcript));
    assert.deepEqual(found.map(({ statuses }) => statuses.includes(429)), [false, true]);
  } finally {
    await limited.stop();
  }
  const ending = room(`${the.gates[0].ws}/ending`, 2);
  await ending.said("subscribed");
  await publish(the.gates[0], "ending", ["end"]);
  assert.equal((await transcript(ending)).end, 4001);
  const plain = await transcript(room(`${the.gates[0].ws}/plain`, 0, '{"room": ["eu.a.1.1-0"]}'));
  assert.deepEqual([plain.resumable, plain.gaps], [false, ["not_resumable"]]);
});

test("the examples of its README run", async () => {
  const folder = await temporaryFolder();
  try {
    const readme = await readFile(here("../clients/python/README.md"), "utf8");
    const examples = [...readme.matchAll(/^```python (\w+)\n(.*?)^```$/gms)].map(([, name, code]) => [name, code]);
    assert.deepEqual(examples.map(([name]) => name), ["room", "cursor"]);
    for (const [name, code] of examples) {
      const file = join(folder, `${name}.py`);
      assert.ok(code.includes("wss://chat.example.com/room"), name);
      const kept = JSON.stringify(join(folder, "cursor.json"));
      await writeFile(file, code
        .replaceAll("wss://chat.example.com/room", `${the.gates[0].ws}/readme-py-${name}`)
        .replaceAll('"cursor.json"', kept));
      const running = python(file);
      await running.said("subscribed");
      await publish(the.gates[1], `readme-py-${name}`, ["1"]);
      assert.match((await running.end()).join("\n"), /text 1/, name);
    }
    assert.match(await readFile(join(folder, "cursor.json"), "utf8"), /"readme-py-cursor": \["eu\./);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
