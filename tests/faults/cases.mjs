// The faults, each as what is done to a run while it is under traffic. `engines` says where a fault applies; `options`
// what the run has that others have not; `long` is true for `make faults`, and makes them last longer.
//
// A fault whose history was lost (`loses`) says so in the history, with what it concerns: all other faults must be told
// by no gap. See checker.mjs.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";
import { eventually } from "../support.mjs";
import { REGION_CASES } from "./region_cases.mjs";
import { Redis } from "./servers.mjs";

const BOTH = ["memory", "redis"];
const REDIS = ["redis"];
/** Every acknowledged command is on disk. */
const DURABLE = ["--appendonly", "yes", "--appendfsync", "always"];

const SYNC_AT_ONCE = ["--repl-diskless-sync-delay", "0"];

/** The ids of the connections that Redis pushes by. */
async function pushing(redis) {
  const list = await redis.ask("CLIENT", "LIST", "TYPE", "pubsub");
  return [...list.matchAll(/^id=(\d+) /gm)].map(([, id]) => id);
}

async function offset(redis, name) {
  return Number(new RegExp(`^${name}:(\\d+)`, "m").exec(await redis.ask("INFO", "replication"))[1]);
}

const refused = (world) => world.records.filter(({ e, status }) => e === "answer" && status === 503).length;

export const CASES = [
  {
    name: "connections are lost",
    engines: BOTH,
    async play(world, long) {
      world.plainAt(0);
      world.fault("reset", "begin");
      world.churn([5, 40]);
      await sleep(long ? 8_000 : 1_500);
    },
  },
  {
    name: "gateway killed",
    engines: BOTH,
    async play(world, long) {
      world.churn();
      for (let round = 0; round < (long ? 4 : 1); round += 1) {
        await sleep(600);
        const at = round % world.gates.length;
        // A gateway is the whole engine where that is its memory.
        world.fault("killed", "begin", { loses: world.engine === "memory" ? "all" : "nothing" });
        await world.gates[at].kill();
        await sleep(300);
        world.gates[at] = await world.gate();
        world.fault("killed", "end");
      }
      await sleep(400);
    },
  },
  {
    name: "gateway drained",
    engines: BOTH,
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        await sleep(500);
        const at = round % world.gates.length;
        world.fault("drained", "begin", { loses: world.engine === "memory" ? "all" : "nothing" });
        const before = world.live.flatMap(({ codes }) => codes).filter((code) => code === 1012).length;
        const stopped = world.gates[at].stop();
        await stopped;
        world.gates[at] = await world.gate();
        world.fault("drained", "end");
        const closed = world.live.flatMap(({ codes }) => codes).filter((code) => code === 1012).length;
        assert.ok(closed > before, "nobody was closed with 1012");
      }
      await sleep(400);
    },
  },
  {
    name: "Redis killed, restarted with its file",
    engines: REDIS,
    options: { redisArgs: DURABLE },
    async play(world, long) {
      world.plainAt(0);
      world.plainAt(1);
      world.churn();
      for (let round = 0; round < (long ? 4 : 1); round += 1) {
        await sleep(500);
        world.fault("redis killed", "begin");
        await world.redis.kill();
        await sleep(300);
        await world.redis.up();
        world.fault("redis killed", "end");
        await sleep(600);
      }
    },
  },
  {
    name: "Redis killed, restarted empty",
    engines: REDIS,
    async play(world, long) {
      world.plainAt(0);
      world.plainAt(1);
      for (let round = 0; round < (long ? 4 : 1); round += 1) {
        await sleep(500);
        const gaps = world.records.filter(({ e }) => e === "gap").length;
        world.fault("redis emptied", "begin", { loses: "all" });
        await world.redis.kill();
        await world.redis.empty();
        await world.redis.up();
        world.fault("redis emptied", "end");
        const told = () => world.records.filter(({ e }) => e === "gap").length - gaps;
        const owed = world.live.reduce((sum, { channels }) => sum + channels.length, 0);
        await eventually(told, (count) => count >= owed);
      }
    },
  },
  ...[2, 10].map((seconds) => ({
    name: `Redis stopped for ${seconds} s`,
    engines: REDIS,
    // Once is longer than a short run; it is in `make faults`.
    onlyLong: seconds > 2,
    async play(world, long) {
      world.plainAt(0);
      world.plainAt(1);
      world.churn();
      for (let round = 0; round < (long && seconds < 10 ? 3 : 1); round += 1) {
        await sleep(400);
        world.fault("redis stopped", "begin");
        world.redis.signal("SIGSTOP");
        await sleep(seconds * 1_000);
        world.redis.signal("SIGCONT");
        world.fault("redis stopped", "end");
        await sleep(600);
      }
    },
  })),
  {
    name: "Pub/Sub connections cut",
    engines: REDIS,
    async play(world, long) {
      world.churn();
      let killed = 0;
      for (let round = 0; round < (long ? 12 : 3); round += 1) {
        await sleep(world.random.between(200, 500));
        world.fault("pubsub cut", "begin");
        killed += Number(await world.redis.ask("CLIENT", "KILL", "TYPE", "pubsub"));
        world.fault("pubsub cut", "end");
      }
      assert.ok(killed > 0, "there was no connection to cut");
      await sleep(400);
    },
  },
  {
    name: "Pub/Sub output over its limit",
    engines: REDIS,
    options: { sessions: 4, extra: [0, 1].map((gate) => ({ name: `big${gate}`, channels: ["big"], group: "other", gate })) },
    async play(world, long) {
      await world.redis.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 0");
      for (let round = 0; round < (long ? 4 : 1); round += 1) {
        const before = await pushing(world.redis);
        world.fault("overflow", "begin");
        world.gates[1].child.kill("SIGSTOP");
        // More than the sockets between hold. What goes to the gateway that is stopped waits for it.
        for (let nth = 0; nth < 130; nth += 1) {
          const mid = `big-${round}-${nth}`;
          assert.equal(await world.publish("big", mid, 0, 100_000), "ok", mid);
        }
        world.gates[1].child.kill("SIGCONT");
        world.fault("overflow", "end");
        await eventually(() => pushing(world.redis), (now) => now.length >= 2 && before.some((id) => !now.includes(id)));
        // Two rounds are less than the history; three are more.
        const big = world.live.filter(({ name }) => name.startsWith("big"));
        const wanting = () => big.filter(({ got }) => !got.some(([, mid]) => mid === `big-${round}-129`)).length;
        await eventually(wanting, (count) => count === 0);
      }
    },
  },
  {
    name: "replica promoted without the newest",
    engines: REDIS,
    options: { redisArgs: SYNC_AT_ONCE },
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const replica = await Redis.start(...SYNC_AT_ONCE, "--replicaof", "127.0.0.1", String(world.redis.port));
        world.cleanup.push(() => replica.stop());
        await eventually(() => replica.ask("INFO", "replication"), (text) => text.includes("master_link_status:up"));
        await sleep(400);
        const gaps = world.records.filter(({ e }) => e === "gap").length;
        const [soon, late] = world.live;
        await Promise.all([soon.leave(), late.leave()]);
        // From here on the replica hears nothing of what the master acknowledges; what it did before, it has.
        await world.quietly(async () => {
          const written = await offset(world.redis, "master_repl_offset");
          await eventually(() => offset(replica, "slave_repl_offset"), (read) => read >= written);
          await replica.ask("REPLICAOF", "NO", "ONE");
          world.fault("promoted", "begin", { loses: "suffix" });
        });
        await sleep(500);
        const { redis: master } = world;
        await master.kill();
        // What it acknowledged with its last breath is lost as well; until the replica is reached nothing is acknowledged.
        await world.answered();
        world.redis = replica;
        world.fault("promoted", "end");
        world.way_in.to(replica.port);
        // One while the gateways still have what the engine lost, one when they know.
        soon.comeBack();
        const told = () => world.records.filter(({ e }) => e === "gap").length - gaps;
        await eventually(told, (count) => count >= 2 * (world.live.length - 2));
        late.comeBack();
        await sleep(300);
      }
    },
  },
  {
    name: "away for longer than the history",
    engines: BOTH,
    options: { window: 40 },
    async play(world, long) {
      for (let round = 0; round < (long ? 5 : 1); round += 1) {
        const away = world.live[round % 3];
        await away.leave();
        world.fault("away", "begin", { loses: "all", sessions: [away.name] });
        const published = () => Math.min(...away.channels.map((channel) => world.records.filter((record) => record.e === "publish" && record.channel === channel).length));
        const before = published();
        await eventually(published, (count) => count > before + 60);
        away.comeBack();
        const from = world.records.length;
        const told = () => world.records.slice(from).some(({ e, session }) => e === "gap" && session === away.name);
        await eventually(told, Boolean);
        world.fault("away", "end");
      }
    },
  },
  {
    name: "slow consumers",
    engines: BOTH,
    options: {
      sessions: 6,
      channels: ["a"],
      window: 120,
      rule: ", slow_client: { max_queue_messages: 64, max_queue_bytes: 256KiB }",
      extra: ["stuck", "trickle"].map((name) => ({ name, channels: ["a"], group: "slow" })),
    },
    async play(world, long) {
      const [stuck, trickle] = ["stuck", "trickle"].map((wanted) => world.live.find(({ name }) => name === wanted));
      const resident = () => world.metric("sluicegate_process_resident_bytes");
      const before = await resident();
      world.fault("slow", "begin", { loses: "all", sessions: ["stuck", "trickle"] });
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const cut = () => stuck.codes.filter((code) => code === 1013).length;
        const had = cut();
        await eventually(() => stuck.socket?.readyState, (state) => state === WebSocket.OPEN);
        const held = stuck.socket;
        held.pause();
        world.record({ e: "stall", session: "stuck" });
        // 20 MB, which no socket holds.
        for (let nth = 0; nth < 600; nth += 1) {
          const mid = `bulk-${round}-${nth}`;
          await world.insist("a", mid, 32_000);
          trickle.socket?.pause();
          if (nth % 20 === 0) trickle.socket?.resume();
          if (nth % 100 === 99) {
            world.record({ e: "measure", what: "queued bytes", value: await world.metric("sluicegate_queued_bytes"), bound: 4 << 20 });
            world.record({ e: "measure", what: "resident growth", value: (await resident()) - before, bound: 96 << 20 });
          }
        }
        // Nothing is on its way when the fast ones have the last.
        await world.quietly(async () => {
          await world.insist("a", `bulk-${round}-last`);
          const fast = world.live.filter(({ group }) => group === "fast");
          const wanting = () => fast.filter(({ got }) => got.at(-1)[1] !== `bulk-${round}-last`).length;
          await eventually(wanting, (count) => count === 0);
          world.record({ e: "unstall", session: "stuck" });
        });
        held.resume();
        trickle.socket?.resume();
        await eventually(cut, (count) => count > had);
      }
      world.fault("slow", "end");
    },
  },
  {
    name: "published again, with the same id",
    engines: BOTH,
    async play(world, long) {
      world.churn();
      world.fault("again", "begin");
      for (let nth = 0; nth < (long ? 400 : 60); nth += 1) {
        const channel = world.channels[nth % world.channels.length];
        // At once by both gateways, and again by each of them.
        await Promise.all([0, 1].map((at) => world.publish(channel, `again-${nth}`, at)));
        await world.publish(channel, `again-${nth}`, nth);
        await sleep(10);
      }
      world.fault("again", "end");
    },
  },
  {
    name: "scripts forgotten",
    engines: REDIS,
    async play(world, long) {
      world.churn();
      world.fault("scripts", "begin");
      for (let round = 0; round < (long ? 40 : 8); round += 1) {
        await world.redis.ask("SCRIPT", "FLUSH");
        await sleep(world.random.between(50, 250));
      }
      world.fault("scripts", "end");
    },
  },
  {
    name: "Redis out of memory",
    engines: REDIS,
    async play(world, long) {
      world.plainAt(0);
      world.churn();
      for (let round = 0; round < (long ? 6 : 1); round += 1) {
        await sleep(400);
        const before = refused(world);
        world.fault("oom", "begin");
        await world.redis.ask("CONFIG", "SET", "maxmemory", "1");
        await eventually(() => refused(world) - before, (count) => count > 3);
        await world.redis.ask("CONFIG", "SET", "maxmemory", "0");
        world.fault("oom", "end");
        await sleep(400);
      }
    },
  },
  ...REGION_CASES,
];
