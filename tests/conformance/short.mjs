// A part of Autobahn|Testsuite through the gateway with its defaults, both ways, and over HTTP/2, for CI: whether each case comes out as
// `make conformance` says that it does. Not here are the large messages of category 9, and of each group on compression
// (12.x and 13.x) all cases but the first.

import { againstClients, againstServers, againstServersOverHttp2 } from "./autobahn.mjs";
import { expectations, faults } from "./judge.mjs";

const RUN = "defaults";
const MINUTES = 3;
const DIRECTIONS = [
  { direction: "servers", run: againstServers, title: "the suite's client before a server" },
  { direction: "servers", run: againstServersOverHttp2, title: "the suite's client before a server, over HTTP/2" },
  { direction: "clients", run: againstClients, title: "a client before the suite's server" },
];

const category = (id) => id.split(".")[0];

/** Categories 1 to 7 and 10, and the first case of 12.1 to 12.5 and of 13.1 to 13.7. */
function isPart(id) {
  const which = category(id);
  if (which === "12" || which === "13") return id.endsWith(".1");
  return ["1", "2", "3", "4", "5", "6", "7", "10"].includes(which);
}

/** Plays a part in one direction; what comes out otherwise than expected, in words. */
async function play({ direction, run, title }) {
  const ids = Object.keys(expectations(direction).cases).filter(isPart);
  const began = Date.now();
  const first = await run([RUN], ids, MINUTES);
  const missed = ids.filter((id) => faults(direction, RUN, first[RUN], [id]).length > 0);
  let found = [];
  if (missed.length > 0) {
    // The suite waits a second for what must come, which a busy machine may take by itself: these are asked once more.
    console.log(`${title}: ${missed.join(", ")} again`);
    const again = await run([RUN], missed, MINUTES);
    found = faults(direction, RUN, again[RUN], missed);
  }
  console.log(`${title}: ${ids.length} cases, ${((Date.now() - began) / 1000).toFixed(1)} s`);
  for (const fault of found) console.error(`${title}: ${fault}`);
  return { passed: ids.length - found.length, failed: found.length };
}

const results = await Promise.all(DIRECTIONS.map(play));
const [passed, failed] = ["passed", "failed"].map((key) => results.reduce((sum, result) => sum + result[key], 0));
console.log(`conformance: ${passed} passed, ${failed} failed`);
// A run of nothing is no success either.
process.exit(failed === 0 && passed > 0 ? 0 : 1);
