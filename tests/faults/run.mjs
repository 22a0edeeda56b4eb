// Plays every fault at length, by many seeds, and prints the rest of docs/faults.md. Progress goes to standard error.
//
//   node run.mjs [SEEDS] [FIRST]     8 seeds by default, from one that the clock gives

import { CASES } from "./cases.mjs";
import { endWithMe, explain, pairs, play } from "./play.mjs";

const seeds = Number(process.argv[2] ?? 8);
const first = Number(process.argv[3] ?? Date.now() % 1_000_000);
/** How many runs go on at once, on two cores. */
const AT_ONCE = 3;

const sum = (runs, name) => runs.reduce((total, { counts }) => total + counts[name], 0);
const jobs = pairs(CASES).flatMap((pair) => Array.from({ length: seeds }, (_, nth) => ({ ...pair, seed: first + nth })));
const done = new Map();
const failures = [];

async function worker() {
  for (let job = jobs.shift(); job; job = jobs.shift()) {
    const name = `${job.fault.name} | ${job.engine}`;
    if (!done.has(name)) done.set(name, []);
    try {
      const result = await play({ ...job, long: true });
      done.get(name).push(result);
      if (result.violations.length > 0) failures.push(`${name}: ${explain(result, job.seed)}`);
    } catch (error) {
      failures.push(`${name}: ${error.message}`);
    }
    console.error(`${name}, seed ${job.seed}: ${failures.length} failures so far, ${jobs.length} runs left`);
  }
}

endWithMe();
const order = pairs(CASES).map(({ fault, engine }) => `${fault.name} | ${engine}`);
await Promise.all(Array.from({ length: AT_ONCE }, worker));

const last = first + seeds - 1;
console.log(`
Real processes: gateways (two on Redis, one on its own memory), a Redis, a backend that subscribes its clients, publishers
that publish again until they are answered with 200, and clients that come back with the id of what they had last. In the rows
of *regions* there are three of these, each with a gateway and a Redis, 40 ms from each other; publishers try one after the
other, and clients speak \`sluicegate.v1\` and come back in any. Of
each run there is a history, and a checker that knows nothing else (\`tests/faults/checker.mjs\`): no item that nobody
published, none twice, order, no hole that no gap covers, no gap that no fault explains, bounded queues, and rules without
a backplane that notice nothing. Seeds ${first} to ${last}, each fault several times a run.

*Gaps*: how often a client was told that items may be missing. *Lost, told*: acknowledged items that a client did not get
and a gap covers, of a fault that loses them (the engine's memory was emptied, only a master had them when it died, the
client was away for longer than the history or did not read). *Twice*: the same item again within a session, without a gap
between. *p99*: milliseconds from the first try to publish to the delivery, outages and absences included.

| fault | engine | runs | acknowledged | delivered | came back | gaps | lost, told | twice | broken promises | p50 | p99 |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |`);
const middle = (runs, name) => runs.map(({ counts }) => counts[name]).sort((a, b) => a - b)[runs.length >> 1]?.toFixed(0) ?? "-";
for (const name of order) {
  const runs = done.get(name);
  const counted = ["acknowledged", "delivered", "resumes", "gaps", "lost", "duplicated"].map((of) => sum(runs, of));
  const broken = runs.reduce((total, { violations }) => total + violations.length, 0);
  const delays = ["fast_p50_ms", "fast_p99_ms"].map((of) => middle(runs, of));
  console.log(`| ${[name, runs.length, ...counted, broken, ...delays].join(" | ")} |`);
}
if (failures.length > 0) console.log(`\nFailed:\n\n${failures.map((text) => `- ${text.replaceAll("\n", "; ")}`).join("\n")}`);
// Whatever a run that failed has left behind.
process.exit(failures.length > 0 ? 1 : 0);
