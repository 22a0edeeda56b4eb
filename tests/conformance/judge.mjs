// What Autobahn|Testsuite is expected to say, and whether it did.
//
// `expected-DIRECTION.json` has an outcome for each case and run; `differences.json` says why the runs through the
// gateway differ from the direct one. Outcomes are written as `behavior, behavior at the close, close code`.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const file = (direction) => here(`./expected-${direction}.json`);

// { cases, directions, runs, why, race? }; what is a race may come out as in the direct run, too.
const differences = JSON.parse(readFileSync(here("./differences.json"), "utf8"));

export const outcome = ({ behavior, behaviorClose, code }) => `${behavior}, ${behaviorClose}, ${code ?? "none"}`;

/** { commit, date, runs: [names], cases: { id: [an outcome for each run] } } */
export const expectations = (direction) => JSON.parse(readFileSync(file(direction), "utf8"));

/** Why a case is not as in the direct run; nothing when it has to be as there. */
export const difference = (direction, run, id) =>
  differences.find(
    ({ cases, directions, runs }) => cases.includes(id) && directions.includes(direction) && runs.includes(run),
  );

/** Those of `ids` that did not come out of a run as expected, in words. */
export function faults(direction, run, table, ids) {
  const { runs, cases } = expectations(direction);
  const [column, direct] = [runs.indexOf(run), runs.indexOf("direct")];
  return ids.flatMap((id) => {
    const wanted = [cases[id]?.[column]];
    if (difference(direction, run, id)?.race) wanted.push(cases[id]?.[direct]);
    const found = table[id] && outcome(table[id]);
    if (found && wanted.includes(found)) return [];
    const where = found ? ` (${table[id].report})` : "";
    return [`${id}: ${found ?? "did not run"}; expected: ${wanted.join(" or ")}${where}`];
  });
}

/** Writes the expectations anew from what was measured, one case a line. A race that was lost changes nothing. */
export function rewrite(direction, about, tables) {
  const before = expectations(direction);
  const runs = Object.keys(tables);
  const expected = (run, id) => {
    const measured = tables[run][id] ? outcome(tables[run][id]) : "did not run";
    const lost = difference(direction, run, id)?.race && measured === outcome(tables.direct[id]);
    return lost ? before.cases[id][before.runs.indexOf(run)] : measured;
  };
  const cases = Object.keys(tables.direct).map((id) => {
    const outcomes = runs.map((run) => expected(run, id));
    return `    ${JSON.stringify(id)}: ${JSON.stringify(outcomes)}`;
  });
  const entry = ([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)},`;
  const head = Object.entries({ ...about, runs }).map(entry);
  writeFileSync(file(direction), `{\n${head.join("\n")}\n  "cases": {\n${cases.join(",\n")}\n  }\n}\n`);
}
