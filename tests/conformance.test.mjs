// Autobahn|Testsuite through the gateway with its defaults, both ways: what each case comes out as is known, and why it
// is not what it is without a gateway (docs/conformance.md). Not here are the large messages of category 9, and all but
// one case of each group on compression; `make conformance` runs everything.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { againstClients, againstServers } from "./conformance/autobahn.mjs";
import { expectations, faults } from "./conformance/judge.mjs";

const category = (id) => id.split(".")[0];
const CATEGORIES = ["1", "2", "3", "4", "5", "6", "7", "10", "12", "13"];
const MINUTES = 2;

for (const [direction, run, title] of [
  ["servers", againstServers, "the suite's client before a server"],
  ["clients", againstClients, "a client before the suite's server"],
]) {
  describe(title, () => {
    const expected = Object.keys(expectations(direction).cases);
    const ids = expected.filter((id) =>
      ["12", "13"].includes(category(id)) ? id.endsWith(".1") : CATEGORIES.includes(category(id)),
    );
    let tables;
    before(async () => {
      tables = await run(["defaults"], ids, MINUTES);
    });

    for (const wanted of CATEGORIES) {
      test(`category ${wanted} comes out as expected`, () => {
        const cases = ids.filter((id) => category(id) === wanted);
        assert.notEqual(cases.length, 0);
        assert.deepEqual(faults(direction, "defaults", tables.defaults, cases), []);
      });
    }
  });
}
