// Each fault once, for a few seconds, on each engine that it applies to. `make faults` plays them longer, by many seeds.
//
// FAULTS_SEED plays another run; the seed stands in what a failure says.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { CASES } from "./cases.mjs";
import { explain, pairs, play } from "./play.mjs";

const seed = Number(process.env.FAULTS_SEED ?? Date.now() % 1_000_000);

describe("the promises of the backplane under faults", { concurrency: 4 }, () => {
  for (const { fault, engine } of pairs(CASES).filter(({ fault: { onlyLong } }) => !onlyLong)) {
    test(`${fault.name}, ${engine}`, async () => {
      const result = await play({ fault, engine, seed, long: false });
      assert.deepEqual(result.violations, [], explain(result, seed));
      assert.ok(result.counts.delivered > 100, JSON.stringify(result.counts));
    });
  }
});
