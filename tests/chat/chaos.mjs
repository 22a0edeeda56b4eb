// Plays one run of the chat in three regions at length, and prints the rest of docs/chaos.md. Progress goes to standard
// error. The exit code is 1 when a promise was broken.
//
//   node chaos.mjs [SEED] [FOR]     a seed that the clock gives, and 60s, of faults

import { setTimeout as sleep } from "node:timers/promises";
import { DELAY, REGIONS, explain, play } from "./play.mjs";

const seed = process.argv[2] ? Number(process.argv[2]) : Date.now() % 1_000_000;
const [, count, unit] = /^(\d+)(s|m)?$/.exec(process.argv[3] || "60s") ?? [];
if (!Number.isSafeInteger(seed) || !count) {
  console.error("usage: node chaos.mjs [SEED] [FOR, such as 60s or 5m]");
  process.exit(2);
}
const seconds = Number(count) * (unit === "m" ? 60 : 1);

/** How long the processes of a run that is interrupted may take to end, in milliseconds. */
const LAST = 5_000;
let world, interrupted;
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, async () => {
    if (interrupted) return;
    interrupted = true;
    world?.killAll();
    await Promise.race([world?.stop(), sleep(LAST)]);
    world?.killAll();
    process.exit(130);
  });
}
// An error that nobody caught ends this too.
process.on("exit", () => world?.killAll());

const result = await play({ seed, seconds, onWorld: (made) => (world = made), onFault: (text) => console.error(text) }).catch(async (error) => {
  // The end comes from there.
  if (interrupted) await sleep(2 * LAST);
  console.log(`\nFailed: ${error.message}`);
  process.exit(1);
});
const { counts, violations, faults, users, messages } = result;
const ms = (value) => (value === null ? "-" : `${value.toFixed(0)} ms`);
const played = new Map();
for (const { name, lasted } of faults) played.set(name, [...(played.get(name) ?? []), lasted]);

console.log(`
\`examples/chat\` in ${REGIONS.length} regions on one machine: of each a gateway, a Redis and a backend, and one PostgreSQL; ${users} users
who talk all the time in ${messages.rooms} rooms. Each way between two regions takes ${DELAY} ms, by a fault proxy on every connection; the
database is as near to all. For ${seconds} s, by the seed ${seed}, processes are killed and stopped, and links cut; then all is put
right. A checker that knows nothing but the history (\`tests/chat/checker.mjs\`) judges it.

| fault | times | lasted |
| --- | ---: | --- |`);
for (const [name, times] of played) console.log(`| ${name} | ${times.length} | ${times.map((time) => `${(time / 1_000).toFixed(1)} s`).join(", ")} |`);
console.log(`
*Lost*: acknowledged, and not shown to a user who was there, and told nothing. *Told, and not fetched*: the same of one who
was told of a gap. *Dropped*: what came again and was held back, first by the library, which knows positions and ids, then by
the client, which knows the numbers of its room: most of that is in a history that it gets behind a gap.

| | |
| --- | ---: |
| said | ${counts.said} |
| acknowledged | ${counts.acknowledged} |
| delivered: messages x users | ${counts.live + counts.fetched} |
| of these told as a gap and fetched from PostgreSQL | ${counts.fetched} |
| gaps told | ${counts.gaps} |
| **lost** | **${counts.lost}** |
| told, and not fetched | ${counts.unfetched} |
| **shown twice** | **${counts.shown_twice}** |
| dropped by the library | ${counts.library_dropped} |
| dropped by the client | ${counts.client_dropped} |
| broken promises | ${violations.length} |

From saying to showing, in ${messages.quiet} s before the faults, and in ${messages.quiet} s that begin ${messages.rest} s after every gateway reads every region
again:

| | messages x users | p50 | p99 |
| --- | ---: | ---: | ---: |
| within a region | ${counts.within_count} | ${ms(counts.within_p50_ms)} | ${ms(counts.within_p99_ms)} |
| across regions | ${counts.across_count} | ${ms(counts.across_p50_ms)} | ${ms(counts.across_p99_ms)} |
| until it is acknowledged | ${counts.acknowledged_count} | ${ms(counts.acknowledged_p50_ms)} | ${ms(counts.acknowledged_p99_ms)} |`);
if (violations.length > 0) console.log(`\nBroken:\n\n${explain(result, seed).split("\n").map((line) => `- ${line}`).join("\n")}`);
process.exit(violations.length > 0 ? 1 : 0);
