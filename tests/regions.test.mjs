// Several regions through real gateways and Redis: what clients, operators and publishers see. tests/faults plays what
// happens to them under traffic.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";
import { eventually, gateway, shifted, total } from "./support.mjs";
import { REGIONS, RegionWorld } from "./faults/regions.mjs";

const DISTANCE = 60;
const [EU, US, AP] = [0, 1, 2];

const readiness = async (gate) => {
  const response = await fetch(`${gate.admin}/readyz`);
  return { code: response.status, ...(await response.json()) };
};

const shows = (gate, region, up) => gate.metric("sluicegate_region_up", { region: REGIONS[region] }, up ? 1 : 0);

/** A client that leaves the places to its application: it asks to begin behind the message `from`. */
function reader(gate, channel, from = null) {
  const socket = new WebSocket(`${gate.ws}/s?ask=${encodeURIComponent(JSON.stringify([[channel, from]]))}`);
  const got = [];
  socket.on("message", (data) => got.push(JSON.parse(String(data))));
  return { socket, got, mids: () => got.map(({ mid, gap }) => (gap === undefined ? mid : "gap")) };
}

describe("several regions", () => {
  let world;
  before(async () => {
    // The clock of one gateway is five minutes ahead, that of another as much behind.
    world = await RegionWorld.start({
      engine: "regions", title: "regions", seed: 1, sessions: 3, channels: ["a"], distance: DISTANCE,
      env: { [US]: await shifted("+300s"), [AP]: await shifted("-300s") },
    });
  });
  after(() => world?.stop());

  test("a message comes once to the clients of each region, in order, with the place that it has", async () => {
    for (let nth = 0; nth < 30; nth += 1) assert.equal(await world.publish("a", `m${nth}`, nth), "ok");
    const of = ({ got }) => got.filter(([, mid]) => /^m\d/.test(mid)).map(([, mid]) => mid);
    await eventually(() => world.live.map((session) => of(session).length), (counts) => counts.every((count) => count >= 30));
    for (const session of world.live) {
      const mids = of(session);
      assert.deepEqual([...new Set(mids)].length, mids.length, "none twice");
      for (const region of [EU, US, AP]) {
        const own = mids.filter((mid) => Number(mid.slice(1)) % 3 === region);
        assert.deepEqual(own, Array.from({ length: 10 }, (_, nth) => `m${3 * nth + region}`), `those of ${REGIONS[region]} in order`);
      }
      assert.deepEqual([...session.places.get("a").keys()].sort(), [...REGIONS].sort(), "a place in each region");
    }
  });

  test("how late a region is, is measured by its own clock, also by gateways whose clocks are minutes away", async () => {
    for (const gate of world.gates) {
      const text = await eventually(() => gate.metrics(), (text) => REGIONS.every((region) =>
        total(text, "sluicegate_replication_lag_last_seconds", { region }) < 30));
      for (const [at, region] of REGIONS.entries()) {
        const count = total(text, "sluicegate_replication_lag_seconds_count", { region });
        const mean = total(text, "sluicegate_replication_lag_seconds_sum", { region }) / count;
        const far = world.gates.indexOf(gate) !== at;
        assert.ok(count >= 10, `${count} of ${region} were measured`);
        assert.ok(mean < 30, `${mean} s is no lag but a clock's difference`);
        // Half of a round trip is what is not known; a stall of the machine's can hide the rest once, not on the average.
        if (far) assert.ok(mean >= DISTANCE / 2_000, `${region} is ${DISTANCE} ms away, and not ${mean} s`);
        assert.ok(total(text, "sluicegate_broker_watchdog_age_seconds", { region }) < 30);
      }
    }
  });

  test("a client that comes back to another region gets what it missed of each", async () => {
    const [session] = world.live;
    await session.leave();
    for (let nth = 0; nth < 9; nth += 1) await world.publish("a", `away${nth}`, nth);
    session.at = AP;
    const before = session.got.length;
    session.comeBack();
    await eventually(() => session.got.length - before, (count) => count >= 9);
    const mids = session.got.slice(before).map(([, mid]) => mid).sort();
    assert.deepEqual(mids, Array.from({ length: 9 }, (_, nth) => `away${nth}`));
    assert.equal(world.records.some(({ e }) => e === "gap"), false);
  });

  test("an application's own last id is a place in its region, and a time in the others", async () => {
    for (const at of [EU, US, AP]) await world.publish("p", `old-${REGIONS[at]}`, at);
    // What is a time is one to five seconds.
    await sleep(5_500);
    for (const at of [EU, US, AP]) await world.publish("p", `mid-${REGIONS[at]}`, at);
    for (const at of [EU, US, AP]) await world.publish("p", `new-${REGIONS[at]}`, at);
    const client = reader(world.gates[AP], "p", "mid-eu");
    const wanted = ["new-eu", "new-us", "new-ap"];
    const mids = await eventually(client.mids, (mids) => wanted.every((mid) => mids.includes(mid)));
    client.socket.terminate();
    assert.ok(!mids.includes("mid-eu") && !mids.some((mid) => mid.startsWith("old")) && !mids.includes("gap"), `${mids}`);
    assert.ok(["mid-us", "mid-ap"].every((mid) => mids.includes(mid)), `what may have been missed comes: ${mids}`);
    const unknown = reader(world.gates[AP], "p", "never");
    await eventually(unknown.mids, (mids) => mids.includes("gap"));
    unknown.socket.terminate();
  });

  test("an engine that answers and pushes nothing makes its gateway unready, until it pushes", async () => {
    const wire = world.links[EU][EU];
    const gate = world.gates[EU];
    let over = false;
    // Whatever the gateway connects anew to be pushed to.
    const deafening = (async () => {
      const done = new Set();
      while (!over) {
        const list = await world.redises[EU].ask("CLIENT", "LIST", "TYPE", "pubsub").catch(() => "");
        for (const [, port] of list.matchAll(/ addr=127\.0\.0\.1:(\d+) /g)) {
          if (done.has(port)) continue;
          done.add(port);
          // It may have gone meanwhile, or be another gateway's.
          try { wire.deafen(Number(port)); } catch { continue; }
        }
        await sleep(5);
      }
    })();
    try {
      const answer = await eventually(() => readiness(gate), ({ code }) => code === 503);
      assert.equal(answer.status, "unready");
      assert.match(answer.reasons.join("; "), /engine of region eu is down: the engine answers, and what is published there does not arrive/);
      for (const other of [US, AP]) assert.equal((await readiness(world.gates[other])).code, 200);
    } finally {
      over = true;
      await deafening;
    }
    await eventually(() => readiness(gate), ({ code, status }) => code === 200 && status === "ready");
  });

  test("clients hear that a region is gone and is back, and publishers whether anybody has it", async () => {
    const told = (state) => world.records.filter((of) => of.e === "region" && of.region === "us" && of.state === state).length;
    const stale = told("stale");
    await world.redises[US].kill();
    await Promise.all(world.gates.map((gate) => shows(gate, US, false)));
    await eventually(() => told("stale"), (count) => count > stale);
    const { status, degraded } = await readiness(world.gates[US]);
    assert.deepEqual([status, degraded], ["degraded", ["region:us"]]);
    assert.equal(await world.publish("a", "elsewhere", US), "ok", "another region takes it");
    await eventually(() => world.live.filter(({ got }) => got.some(([, mid]) => mid === "elsewhere")).length, (count) => count === 3);
    await Promise.all([EU, AP].map((at) => world.redises[at].kill()));
    await Promise.all(world.gates.flatMap((gate) => [EU, AP].map((at) => shows(gate, at, false))));
    assert.equal(await world.publish("a", "nobody", US), "fail", "nobody has it");
    assert.equal(world.records.findLast(({ e }) => e === "answer").status, 503);
    const plain = await fetch(`${world.gates[US].ws.replace("ws:", "http:")}/plain`);
    assert.equal(plain.status, 200, "what needs no engine is served");
    await Promise.all([EU, US, AP].map((at) => world.redises[at].up()));
    const ok = told("ok");
    await Promise.all(world.gates.flatMap((gate) => [EU, US, AP].map((at) => shows(gate, at, true))));
    await eventually(() => told("ok") >= ok && world.records.some((of) => of.e === "region" && of.state === "ok"), Boolean);
  });

  test("where the engine is required the gateway is unready without it", async () => {
    const text = world.configuration(EU).replace("  region:", "  required_for_readiness: true\n  region:");
    const gate = await gateway(text);
    try {
      await shows(gate, EU, true);
      assert.equal((await readiness(gate)).code, 200);
      await world.redises[EU].kill();
      await eventually(() => readiness(gate), ({ code, status }) => code === 503 && status === "unready");
      assert.equal((await readiness(world.gates[EU])).code, 200, "one that does not require it is degraded");
    } finally {
      await gate.stop();
    }
  });
});
