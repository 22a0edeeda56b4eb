// Runs all of Autobahn|Testsuite, compares each outcome with the expected one, and writes docs/conformance.md.
//
//   node run.mjs                       fails when an outcome is not the expected one, or a difference has no reason
//   SLUICEGATE_UPDATE=1 node run.mjs   takes the outcomes as the expected ones
//
// The reports of every case, with the bytes on the wire, are in target/conformance.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { againstClients, againstServers, byNumber, SUITE } from "./autobahn.mjs";
import { difference, expectations, faults, outcome, rewrite } from "./judge.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const DIRECTIONS = {
  servers: { run: againstServers, suite: "client", title: "The suite's client, before a server on Node's `ws`" },
  clients: { run: againstClients, suite: "server", title: "A client on Node's `ws`, before the suite's server" },
};
const LIMITS = { opened: "off", defaults: "default" };
const RUNS = {
  direct: "direct",
  opened: "through Sluicegate, limits on messages off",
  defaults: "through Sluicegate, default limits",
};
const MINUTES = 10;

const ABOUT = `
Each case runs three times: without a gateway, through one with the limits on messages off, and through one with all
its defaults. The suite's client breaks the rules as a client can, its server as a backend can. The command fails when
an outcome is not the expected one of \`tests/conformance\`, or when it differs from the direct run without a reason
below. What was on the wire in each case is in \`target/conformance\` then.

OK, NON-STRICT and INFORMATIONAL conform to RFC 6455, as the suite defines them. UNIMPLEMENTED are the cases on
compression (12 and 13): \`ws\` does not offer or accept it in these runs, the direct one included.
`.trim();

const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
const { version: ws } = JSON.parse(readFileSync(here("../node_modules/ws/package.json"), "utf8"));
const about = { commit, date: new Date().toISOString().slice(0, 10), suite: SUITE, ws: `ws ${ws}` };

const problems = [];
const measured = {};
for (const [direction, { run, title }] of Object.entries(DIRECTIONS)) {
  const began = Date.now();
  const tables = await run(Object.keys(RUNS), ["*"], MINUTES);
  measured[direction] = tables;
  const ids = Object.keys(tables.direct);
  if (process.env.SLUICEGATE_UPDATE === "1") rewrite(direction, about, tables);
  const all = [...new Set([...ids, ...Object.keys(expectations(direction).cases)])];
  for (const [name, table] of Object.entries(tables)) {
    problems.push(...faults(direction, name, table, all).map((fault) => `${direction}, ${name}: ${fault}`));
  }
  const seconds = Math.round((Date.now() - began) / 1000);
  console.log(`${title}: ${all.length} cases, ${Object.keys(tables).length} times, ${seconds} s`);
}

/** The differences to the direct run, gathered by what they have in common. */
const rows = new Map();
for (const [direction, { direct, ...through }] of Object.entries(measured)) {
  for (const [run, table] of Object.entries(through)) {
    for (const id of Object.keys(direct)) {
      const [was, is] = [direct, table].map((of) => (of[id] ? outcome(of[id]) : "did not run"));
      const entry = difference(direction, run, id);
      if (entry) gather(direction, run, id, was, entry);
      else if (was !== is) {
        problems.push(`${direction}, ${run}: ${id}: ${is}, direct ${was}: no reason in differences.json`);
      }
    }
  }
}

function gather(direction, run, id, was, entry) {
  const { runs, cases } = expectations(direction);
  const is = cases[id][runs.indexOf(run)];
  if (was === is) {
    problems.push(`${direction}, ${run}: ${id}: as direct, and differences.json says: ${entry.why}`);
    return;
  }
  const key = JSON.stringify([was, is, entry.why]);
  const row = rows.get(key) ?? { was, is, entry, cases: new Set(), directions: new Set(), runs: new Set() };
  row.cases.add(id);
  row.directions.add(direction);
  row.runs.add(run);
  rows.set(key, row);
}

if (problems.length > 0) {
  for (const problem of problems) console.error(problem);
  console.error(`${problems.length} outcomes are not the expected ones`);
  process.exit(1);
}
writeFileSync(here("../../docs/conformance.md"), page());
console.log("every outcome is the expected one; docs/conformance.md is written");

function page() {
  const behaviors = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED"];
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const lines = [
    "# Conformance",
    "",
    `By \`make conformance\` on ${about.date} at commit ${about.commit}: all cases of Autobahn|Testsuite`,
    `(${about.suite}), with Node's ${about.ws} at the other end, both ways.`,
    "",
    ABOUT,
    "",
    "## Outcomes",
    "",
    line(["", ...behaviors]),
    line(["---", ...behaviors.map(() => "---:")]),
  ];
  for (const [direction, { title }] of Object.entries(DIRECTIONS)) {
    lines.push(line([`**${title}**`, ...behaviors.map(() => "")]));
    for (const [run, name] of Object.entries(RUNS)) {
      const table = Object.values(measured[direction][run]);
      lines.push(line([name, ...behaviors.map((behavior) => table.filter((of) => of.behavior === behavior).length)]));
    }
  }
  lines.push(
    "",
    "## Every difference to the direct run",
    "",
    "An outcome is the behaviour, the behaviour at the close, and the code of the Close frame that the suite received.",
    "",
    line(["cases", "the suite is the", "limits", "direct", "through Sluicegate", "why"]),
    line(Array(6).fill("---")),
  );
  for (const { was, is, entry, cases, directions, runs } of rows.values()) {
    lines.push(
      line([
        [...cases].sort(byNumber).join(", "),
        [...directions].map((direction) => DIRECTIONS[direction].suite).join(", "),
        [...runs].map((run) => LIMITS[run]).join(", "),
        was,
        entry.race ? `${is}; or as direct` : is,
        entry.why,
      ]),
    );
  }
  return `${lines.join("\n")}\n`;
}
