// Plays all cases, measures what is lost under load, and prints the rest of docs/pushpin.md. Progress goes to standard
// error.

import { setTimeout as sleep } from "node:timers/promises";
import { CASES } from "./cases/index.mjs";
import { compare, unused } from "./compare.mjs";
import { DIFFERENCES, EVERYWHERE } from "./differences.mjs";
import { ours, pushpin } from "./proxies.mjs";
import { play, scriptedBackend } from "./stage.mjs";

/** What is published to one subscriber: so many items of so many bytes, so many in a request, so many requests a second. */
const LOADS = [
  { items: 300, bytes: 200, together: 1, rate: 100 },
  { items: 1_000, bytes: 200, together: 1 },
  { items: 1_000, bytes: 200, together: 50 },
  { items: 300, bytes: 4_000, together: 1, rate: 100 },
  { items: 300, bytes: 10_000, together: 1, rate: 100 },
  { items: 1_500, bytes: 10_000, together: 50 },
  { items: 1_500, bytes: 10_000, together: 50, paused_ms: 3_000 },
];

/** How much of a load arrives, and how the connection ended if it did. */
async function load(proxy, backend, { items, bytes, together, rate, paused_ms }) {
  const got = { stored: 0, came: 0, end: "" };
  // Of its own, so that no id is known already.
  const channel = `load-${items}-${bytes}-${together}-${rate}-${paused_ms}`;
  const result = await play(proxy, backend, {
    name: "load",
    async play(t) {
      const [client, end] = await t.pair();
      end.send(`c:${JSON.stringify({ type: "subscribe", channel })}`);
      await t.subscribed(client, channel);
      const before = client.got.length;
      if (paused_ms) {
        client.socket.pause();
        setTimeout(() => client.socket.resume(), paused_ms);
      }
      for (let at = 0; at < items; at += together) {
        const next = performance.now() + (rate ? 1_000 / rate : 0);
        const part = Array.from({ length: together }, (_, nth) => ({ channel, id: `${at + nth}`, formats: { "ws-message": { content: `${at + nth} `.padEnd(bytes, "x") } } }));
        const { status } = await t.control({ items: part }, { quiet: true });
        if (status === 200) got.stored += together;
        await sleep(Math.max(0, next - performance.now()));
      }
      // Until all has come, or nothing more does.
      for (let [last, still] = [-1, 0]; still < 20 + (paused_ms ?? 0) / 100 && client.got.length - before < items; still = client.got.length === last ? still + 1 : 0) {
        last = client.got.length;
        await sleep(100);
      }
      got.came = client.got.filter((text) => typeof text === "string").length - before;
      got.end = client.got.filter((seen) => seen.close).map(({ close }) => close.join(" ")).join(", ");
    },
  });
  if (result.failed) throw new Error(`${proxy.name}: ${result.failed}`);
  return `${got.came} of ${got.stored}${got.end ? `, then ${got.end}` : ""}`;
}

const backends = await Promise.all(Array.from({ length: 3 }, scriptedBackend));
const proxies = [
  await pushpin(backends[0].port),
  await ours(backends[1].port),
  await ours(backends[2].port, "\n  history: { max_messages: 5000, max_bytes: 32MiB }"),
];
const counts = new Map();
const wrong = unused(CASES);
for (const each of CASES) {
  const [theirs, own] = await Promise.all([0, 1].map((at) => (proxies[at].modes.includes(each.mode) ? play(proxies[at], backends[at], each) : undefined)));
  const count = counts.get(each.mode) ?? counts.set(each.mode, { cases: 0, played: 0, differ: 0 }).get(each.mode);
  count.cases += 1;
  if (!own) continue;
  count.played += 1;
  const found = compare(each, theirs, own);
  wrong.push(...found);
  if (DIFFERENCES.some((difference) => difference.case === each.name)) count.differ += 1;
}
console.error(`${CASES.length} cases, ${wrong.length} unlisted differences`);
const rows = [];
for (const each of LOADS) {
  const results = [];
  for (const [at, proxy] of proxies.entries()) results.push(await load(proxy, backends[at], each));
  const { items, bytes, together, rate, paused_ms } = each;
  const pace = rate ? `${rate} requests/s` : "each when the one before is answered";
  rows.push([`${items} × ${bytes} B`, together, pace, paused_ms ? `pauses for ${paused_ms / 1_000} s` : "reads", ...results]);
  console.error(rows.at(-1).join(" | "));
}
await Promise.all(proxies.map((proxy) => proxy.stop()));
for (const backend of backends) backend.stop();

const NAMES = { grip: "GRIP over WebSocket", grip_http: "WebSocket-over-HTTP", hold: "HTTP holds", publish: "the control port" };
const code = (text) => (text.includes("`") ? text : `\`${text}\``);
const cell = (value) => code(JSON.stringify(value).replaceAll("|", "\\|").replaceAll(/x{40,}/g, "x…"));
console.log(`
The same scripted backend, clients and publishers, through Debian's \`pushpin\` 1.36.0 with its packaged configuration and
through Sluicegate: what the backend saw of each request and frame, what each client got, and what the control port
answered. \`tests/pushpin\` has the cases and the list of differences; a difference that is not on the list, and one that is
and does not occur, fails \`make test\`.

Not compared are the values of Host, User-Agent, keys and ids; \`Grip-Feature\`, since each lists what it has; where a proxy
cuts messages into frames. \`Grip-Sig\` is verified, and its claims are compared without the time.

| | cases | played by both | the same | differ as listed |
| --- | ---: | ---: | ---: | ---: |`);
for (const [mode, { cases, played, differ }] of counts) console.log(`| ${NAMES[mode]} | ${cases} | ${played} | ${played - differ} | ${differ} |`);
const missing = [...counts].filter(([, { played }]) => played === 0).map(([mode]) => NAMES[mode]);
if (missing.length > 0) console.log(`\nOnly Pushpin played: ${missing.join(", ")}.`);
console.log(`
## Differences

| case | of | Pushpin 1.36.0 | Sluicegate | why |
| --- | --- | --- | --- | --- |`);
for (const { modes, by, headers, why } of EVERYWHERE) {
  const has = headers.map((name) => `\`${name}\``).join(", ");
  console.log(`| every request (${modes.map((mode) => NAMES[mode]).join(", ")}) | headers | ${by === "pushpin" ? has : "–"} | ${by === "ours" ? has : "–"} | ${why} |`);
}
let why;
for (const difference of DIFFERENCES) {
  const { case: name, part, pushpin: theirs, ours: own } = difference;
  if (difference.why !== "The same.") why = difference.why;
  console.log(`| ${name.replaceAll("|", "\\|")} | ${part} | ${cell(theirs)} | ${cell(own)} | ${why} |`);
}
console.log(`
## What is lost under load

One subscriber, one publisher, the memory engine; what arrived of what was answered with 200. Pushpin
drops a message when the client's window is full at that moment, and says nothing of it; its connection stays open.
Sluicegate keeps it in the channel's history until the client takes it; one that falls behind the history is closed with
1013, and comes back with the id that it had last. The history is 1 MiB by default; the last column has 32 MiB. How much
Pushpin loses differs from run to run, and with what else the machine does.

| published | items a request | pace | the client | Pushpin 1.36.0 | Sluicegate | Sluicegate, larger history |
| --- | ---: | --- | --- | ---: | ---: | ---: |`);
for (const row of rows) console.log(`| ${row.join(" | ")} |`);
if (wrong.length > 0) console.log(`\nUnlisted:\n\n${wrong.map((text) => `- ${text.replaceAll("\n", " ")}`).join("\n")}`);
process.exit(wrong.length > 0 ? 1 : 0);
