// What happens to the regions, each as what is done to a world under traffic. A fault gets the regions that it may touch,
// in an order of chance, and has put all of it right when it returns. `unit` is a time in milliseconds that long ones are
// made of.

import { setTimeout as sleep } from "node:timers/promises";
import { all } from "../regions/world.mjs";

/** A region without any connection, in processes that live on. */
async function dark({ world, regions: [region], between, unit }) {
  const wires = world.around(region);
  for (const wire of wires) wire.cut("both");
  await sleep(between(2 * unit, 4 * unit));
  for (const wire of wires) wire.restore();
}

async function cutLink(world, [from, to], ways, milliseconds) {
  const wires = world.between(from, to);
  for (const [wire, way] of wires) wire.cut(ways === "both" ? "both" : way);
  await sleep(milliseconds);
  for (const [wire] of wires) wire.restore();
}

export const FAULTS = [
  {
    name: "gateway killed",
    async play({ world, regions: [region], between, unit }) {
      await world.endGate(region, "SIGKILL");
      await sleep(between(100, unit));
      await world.startGate(region);
    },
  },
  {
    name: "gateway drained",
    async play({ world, regions: [region] }) {
      await world.endGate(region, "SIGTERM");
      await world.startGate(region);
    },
  },
  {
    name: "backend killed",
    async play({ world, regions: [region], between, unit }) {
      await world.endBackend(region);
      await sleep(between(100, unit));
      await world.startBackend(region);
    },
  },
  {
    name: "Redis killed, back empty",
    async play({ world, regions: [region], between, unit }) {
      await world.endRedis(region);
      await sleep(between(100, 2 * unit));
      await world.startRedis(region);
    },
  },
  {
    name: "Redis stopped",
    async play({ world, regions: [region], between, unit }) {
      world.redis[region].signal("SIGSTOP");
      await sleep(between(unit, 3 * unit));
      world.redis[region].signal("SIGCONT");
    },
  },
  {
    name: "link cut one way",
    links: true,
    play: ({ world, regions, between, unit }) => cutLink(world, regions, "one", between(unit, 4 * unit)),
  },
  {
    name: "link cut both ways",
    links: true,
    play: ({ world, regions, between, unit }) => cutLink(world, regions, "both", between(unit, 4 * unit)),
  },
  {
    name: "link held",
    links: true,
    async play({ world, regions: [from, to], between, unit }) {
      const wires = world.between(from, to);
      for (const [wire] of wires) wire.hold("both");
      await sleep(between(unit, 2 * unit));
      for (const [wire] of wires) wire.restore();
    },
  },
  { name: "region dark", play: dark },
  {
    name: "region without power",
    async play({ world, regions: [region], between, unit }) {
      await all([world.endGate(region, "SIGKILL"), world.endBackend(region), world.endRedis(region)]);
      await sleep(between(unit, 3 * unit));
      await world.startRedis(region);
      await all([world.startBackend(region), world.startGate(region)]);
    },
  },
];
