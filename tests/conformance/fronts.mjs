// Categories 1 to 7 and 10 of Autobahn|Testsuite through the gateway's defaults, over HTTP/1.1 and HTTP/2, in the clear and
// under TLS, and without a gateway; writes docs/conformance-fronts.md. Fails when an outcome is not that which
// `make conformance` expects of the defaults, whatever the session came over.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { againstFronts, SUITE } from "./autobahn.mjs";
import { difference, expectations, faults, outcome } from "./judge.mjs";

const MINUTES = 15;
const CATEGORIES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"];
const BEHAVIORS = ["OK", "NON-STRICT", "INFORMATIONAL", "FAILED"];
const NAMES = {
  direct: "direct",
  http1: "HTTP/1.1",
  "http1-tls": "HTTP/1.1 over TLS 1.3",
  http2: "HTTP/2 in the clear (h2c)",
  "http2-tls": "HTTP/2 over TLS 1.3",
};

const haproxy = /version (\d+\.\d+\.\d+)/.exec(execFileSync("haproxy", ["-v"], { encoding: "utf8" }))[1];
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
const tables = await againstFronts(CATEGORIES, MINUTES);
const ids = Object.keys(tables.direct);
const problems = Object.keys(NAMES).flatMap((name) =>
  faults("servers", name === "direct" ? "direct" : "defaults", tables[name], ids).map((fault) => `${name}: ${fault}`));
// What the tables of `make conformance` expect of these categories must all have run.
const category = (id) => `${id.split(".")[0]}.*`;
const missing = Object.keys(expectations("servers").cases).filter((id) => CATEGORIES.includes(category(id)) && !ids.includes(id));
problems.push(...missing.map((id) => `${id} did not run`));
if (problems.length > 0) {
  for (const problem of problems) console.error(problem);
  console.error(`${problems.length} outcomes are not the expected ones`);
  process.exit(1);
}

const line = (cells) => `| ${cells.join(" | ")} |`;
const rows = Object.entries(NAMES).map(([name, title]) => {
  const table = Object.values(tables[name]);
  const counts = BEHAVIORS.map((behavior) => table.filter((of) => of.behavior === behavior).length);
  const other = ids.filter((id) => outcome(tables[name][id]) !== outcome(tables.direct[id]));
  return line([title, ...counts, other.length]);
});
const raced = ids.filter((id) => difference("servers", "defaults", id)?.race);
const page = `# Conformance over HTTP/1.1 and HTTP/2

By \`make conformance-fronts\` on ${new Date().toISOString().slice(0, 10)} at commit ${commit}: the ${ids.length} cases of categories 1 to 7 and
10 of Autobahn|Testsuite (${SUITE}), whose client breaks the rules as a client can, before a server on Node's
\`ws\`: without a gateway, and through one with its defaults. HAProxy ${haproxy} stands before the gateway where the suite's client
speaks neither HTTP/2 nor TLS 1.3; over HTTP/2 it makes an extended CONNECT (RFC 8441) of each handshake. The gateway's log says
that all sessions came so.

${line(["", ...BEHAVIORS, "not as direct"])}
${line(["---", ...BEHAVIORS.map(() => "---:"), "---:"])}
${rows.join("\n")}

The command fails unless each case comes out as [conformance.md](conformance.md) has it for the default limits over HTTP/1.1; the
reasons of all that is not as direct stand there. Of ${raced.length} cases that are a race between the gateway's close and the server's
answer, either outcome is taken, so the last column may differ by these.
`;
writeFileSync(fileURLToPath(new URL("../../docs/conformance-fronts.md", import.meta.url)), page);
console.log(`every outcome is the expected one; docs/conformance-fronts.md is written`);
