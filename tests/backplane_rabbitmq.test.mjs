// Fan-out over RabbitMQ: two gateways on one broker, a client that goes from one to the other.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import WebSocket from "ws";
import { publish, start } from "./rooms.mjs";
import { backend, eventually, freePort, serve, temporaryFolder } from "./support.mjs";

/** A broker with a folder, ports and a port mapper of its own. */
async function rabbit() {
  const folder = await temporaryFolder();
  const [port, distribution, epmd] = [await freePort(), await freePort(), await freePort()];
  await mkdir(`${folder}/home`);
  await writeFile(`${folder}/plugins`, "[].\n");
  await writeFile(`${folder}/rabbit.conf`, `listeners.tcp.local = 127.0.0.1:${port}\n`);
  const variables = {
    HOME: `${folder}/home`,
    RABBITMQ_NODENAME: `sluicegate${port}@localhost`,
    RABBITMQ_NODE_IP_ADDRESS: "127.0.0.1",
    RABBITMQ_NODE_PORT: port,
    RABBITMQ_DIST_PORT: distribution,
    ERL_EPMD_PORT: epmd,
    // One that is killed while it starts would leave it where the tests run.
    ERL_CRASH_DUMP: "/dev/null",
    ERL_EPMD_ADDRESS: "127.0.0.1",
    RABBITMQ_MNESIA_BASE: `${folder}/data`,
    RABBITMQ_LOG_BASE: `${folder}/log`,
    RABBITMQ_ENABLED_PLUGINS_FILE: `${folder}/plugins`,
    RABBITMQ_CONFIG_FILE: `${folder}/rabbit`,
    RABBITMQ_CONF_ENV_FILE: `${folder}/none`,
    RABBITMQ_PID_FILE: `${folder}/pid`,
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
  };
  // The server's own script: the one on the path changes the user.
  const words = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
  const stop = await serve("env", [...words, "/usr/lib/rabbitmq/bin/rabbitmq-server"], []);
  const log = `${folder}/log/sluicegate${port}@localhost.log`;
  const has = async () => (await readFile(log, "utf8").catch(() => "")).includes("Server startup complete");
  // It takes seconds, and more where others work too.
  for (let tries = 0; !(await has()); tries += 1) {
    assert.ok(tries < 1200, "the broker does not start");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return {
    engine: `{ rabbitmq: { url: "amqp://127.0.0.1:${port}" } }`,
    async stop() {
      process.kill(Number(await readFile(`${folder}/pid`, "utf8")), "SIGKILL");
      await stop();
      await endMapper(epmd);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Ends the port mapper that a broker has started, which outlives it. */
async function endMapper(port) {
  const read = (file) => readFile(file, "utf8").catch(() => "");
  for (const id of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    if ((await read(`/proc/${id}/comm`)).trim() !== "epmd") continue;
    if ((await read(`/proc/${id}/environ`)).split("\0").includes(`ERL_EPMD_PORT=${port}`)) process.kill(Number(id));
  }
}

/** A client of a room, and what it was sent of what was published. */
async function enter(gate, path) {
  const socket = new WebSocket(`${gate.ws}/${path}`);
  const got = [];
  socket.on("message", (data) => String(data) === "welcome" || got.push(String(data)));
  await once(socket, "open");
  return {
    got,
    has: (count) => eventually(() => got, (texts) => texts.length >= count),
    async leave() {
      socket.close();
      await once(socket, "close");
    },
  };
}

let peer, broker;
before(async () => {
  [peer, broker] = await Promise.all([backend("backends/grip_rooms.mjs"), rabbit()]);
});
after(() => Promise.all([peer?.stop(), broker?.stop()]));

test("what is published at one gateway comes out of the other, and who comes back gets what it missed", async () => {
  const [one, two] = await Promise.all([start(peer.port, broker.engine), start(peer.port, broker.engine)]);
  try {
    for (const each of [one, two]) await each.metric("sluicegate_region_up", {}, 1);
    const ann = await enter(two, "tea");
    await two.metric("sluicegate_subscriptions", {}, 1);
    await publish(one, "tea", ["m-1", "m-2"]);
    await ann.has(2);
    await ann.leave();
    await publish(one, "tea", ["m-3"]);
    // The publisher tries one again, at another gateway.
    await publish(two, "tea", ["m-3", "m-4"]);
    const expected = ["text m-3", "text m-4"];
    for (const [at, gate] of [two, one].entries()) {
      const back = await enter(gate, "tea?prev=m-2");
      await back.has(expected.length);
      await publish(one, "tea", [`m-${at + 5}`]);
      expected.push(`text m-${at + 5}`);
      await back.has(expected.length);
      assert.deepEqual(back.got, expected);
      await back.leave();
    }
    const gone = await enter(one, "tea?prev=nobody-published-this");
    await gone.has(1);
    assert.deepEqual(gone.got, ["gap"]);
    await gone.leave();
  } finally {
    await Promise.all([one.stop(), two.stop()]);
  }
});
