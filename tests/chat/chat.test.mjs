// One run of the chat in three regions, of about 20 s: a region goes dark and comes back, and another one loses its power.
// `make chaos` plays more, for longer.
//
// CHAOS_SEED plays another run; the seed stands in what a failure says.

import assert from "node:assert/strict";
import { test } from "node:test";
import { explain, play } from "./play.mjs";

const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1_000_000);

test("what was acknowledged is shown once to everyone, though a region goes dark", async () => {
  const only = ["region dark", "region without power"];
  let world;
  process.on("exit", () => world?.killAll());
  const result = await play({ seed, seconds: 0, quietSeconds: 1, restSeconds: 0, users: 2, unit: 1_000, only, onWorld: (made) => (world = made) });
  assert.deepEqual(result.violations, [], explain(result, seed));
  const { counts } = result;
  assert.ok(counts.acknowledged > 50 && counts.live > 200 && counts.within_count > 0 && counts.across_count > 0, JSON.stringify(counts));
  assert.deepEqual(result.faults.map(({ name }) => name).sort(), only);
});
