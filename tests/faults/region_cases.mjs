// What is done to a run in three regions. As in cases.mjs: `loses` says which history a fault loses, here of one region's
// log, and no other gap may be told of any region.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { eventually } from "../support.mjs";
import { REGIONS } from "./regions.mjs";

const IN_REGIONS = ["regions"];
const DURABLE = ["--appendonly", "yes", "--appendfsync", "always"];

const ready = async (gate) => (await fetch(`${gate.admin}/readyz`)).json();

/** Waits until a gateway says that a region is reached, or not. */
const shows = (gate, region, up) => gate.metric("sluicegate_region_up", { region }, up ? 1 : 0);

const gapsOf = (world) => world.records.filter(({ e }) => e === "gap").length;

export const REGION_CASES = [
  {
    name: "regions far from each other, connections are lost",
    engines: IN_REGIONS,
    async play(world, long) {
      world.plainAt(0);
      world.fault("reset", "begin");
      world.churn([5, 60]);
      await sleep(long ? 8_000 : 1_500);
    },
  },
  {
    name: "published again in another region, with the same id",
    engines: IN_REGIONS,
    async play(world, long) {
      world.churn();
      world.fault("again", "begin");
      for (let nth = 0; nth < (long ? 300 : 50); nth += 1) {
        const channel = world.channels[nth % world.channels.length];
        // At once in two regions, and once more in the third.
        await Promise.all([nth, nth + 1].map((at) => world.publish(channel, `again-${nth}`, at)));
        if (nth % 3 === 0) await world.publish(channel, `again-${nth}`, nth + 2);
        await sleep(10);
      }
      world.fault("again", "end");
    },
  },
  ...["cut", "hold", "refuse"].map((how) => ({
    name: { cut: "links of a region swallow everything", hold: "links of a region stand still", refuse: "links of a region reset" }[how],
    engines: IN_REGIONS,
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const at = world.random.between(0, 2);
        await sleep(400);
        world.plainAt(at, 1);
        world.fault(how, "begin");
        for (const wire of world.around(at)) {
          if (how === "refuse") {
            wire.refuse();
            wire.reset();
          } else {
            wire[how]("both");
          }
        }
        const others = [0, 1, 2].filter((other) => other !== at);
        await Promise.all(others.flatMap((other) => [shows(world.gates[other], REGIONS[at], false), shows(world.gates[at], REGIONS[other], false)]));
        for (const other of others) {
          const { status, degraded } = await ready(world.gates[other]);
          assert.deepEqual([status, degraded], ["degraded", [`region:${REGIONS[at]}`]], "one region is gone, and that is told");
        }
        await sleep(long ? world.random.between(500, 4_000) : 500);
        for (const wire of world.around(at)) wire.restore();
        await Promise.all([0, 1, 2].flatMap((one) => REGIONS.map((region) => shows(world.gates[one], region, true))));
        world.fault(how, "end");
      }
      const told = (state) => world.records.filter((of) => of.e === "region" && of.state === state).length;
      assert.ok(told("stale") > 0, "clients hear that a region is gone");
      assert.ok(told("ok") > 0, "and that it is back");
    },
  })),
  {
    name: "a link of a region swallows what comes back",
    engines: IN_REGIONS,
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const from = world.random.between(0, 2);
        const to = (from + world.random.between(1, 2)) % 3;
        await sleep(400);
        world.fault("one way", "begin");
        world.links[from][to].cut("back");
        await shows(world.gates[from], REGIONS[to], false);
        await sleep(500);
        world.links[from][to].restore();
        await shows(world.gates[from], REGIONS[to], true);
        world.fault("one way", "end");
      }
    },
  },
  {
    name: "a region's Redis killed, restarted with its file",
    engines: IN_REGIONS,
    options: { redisArgs: DURABLE },
    async play(world, long) {
      world.plainAt(0);
      for (let round = 0; round < (long ? 4 : 1); round += 1) {
        const at = world.random.between(0, 2);
        await sleep(400);
        const before = await world.metric("sluicegate_publishes_total", { result: "failed_over" });
        world.fault("redis killed", "begin");
        await world.redises[at].kill();
        await eventually(() => world.metric("sluicegate_publishes_total", { result: "failed_over" }), (count) => count > before);
        await sleep(world.random.between(0, 1_000));
        await world.redises[at].up();
        await shows(world.gates[at], REGIONS[at], true);
        world.fault("redis killed", "end");
      }
      world.churn();
      await sleep(500);
    },
  },
  {
    name: "a region's Redis killed, restarted empty",
    engines: IN_REGIONS,
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const at = world.random.between(0, 2);
        await sleep(400);
        const gaps = gapsOf(world);
        world.fault("redis emptied", "begin", { loses: "all", region: REGIONS[at] });
        await world.redises[at].kill();
        await world.redises[at].empty();
        await world.redises[at].up();
        await Promise.all(world.gates.map((gate) => shows(gate, REGIONS[at], true)));
        const owed = world.live.reduce((sum, { channels }) => sum + channels.length, 0);
        await eventually(() => gapsOf(world) - gaps, (count) => count >= owed);
        world.fault("redis emptied", "end");
      }
    },
  },
  {
    name: "a region's Redis stopped for 5 s",
    engines: IN_REGIONS,
    async play(world, long) {
      for (let round = 0; round < (long ? 2 : 1); round += 1) {
        const at = world.random.between(0, 2);
        await sleep(400);
        world.fault("redis stopped", "begin");
        world.redises[at].signal("SIGSTOP");
        await sleep(5_000);
        world.redises[at].signal("SIGCONT");
        world.fault("redis stopped", "end");
        await Promise.all(world.gates.map((gate) => shows(gate, REGIONS[at], true)));
      }
    },
  },
  {
    name: "a region goes dark, and its users go elsewhere",
    engines: IN_REGIONS,
    options: { redisArgs: DURABLE },
    async play(world, long) {
      for (let round = 0; round < (long ? 3 : 1); round += 1) {
        const at = world.random.between(0, 2);
        await sleep(400);
        world.fault("dark", "begin");
        for (const wire of world.around(at)) {
          wire.refuse();
          wire.reset();
        }
        await Promise.all([world.gates[at].kill(), world.redises[at].kill()]);
        await sleep(long ? world.random.between(1_000, 4_000) : 1_000);
        await world.redises[at].up();
        for (const wire of world.around(at)) wire.restore();
        world.gates[at] = await world.gate(at);
        await Promise.all(world.gates.map((gate) => shows(gate, REGIONS[at], true)));
        world.fault("dark", "end");
      }
    },
  },
];
