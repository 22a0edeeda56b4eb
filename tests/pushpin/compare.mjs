// Compares what a case came to through two proxies, and holds the differences to the list.

import { isDeepStrictEqual } from "node:util";
import { DIFFERENCES, EVERYWHERE } from "./differences.mjs";

const named = (line, names) => names.some((name) => line.startsWith(`${name}:`));

/** The parts of a transcript that are compared; `added` is what its proxy alone adds to requests. */
function parts({ requests, backend, client, control, failed }, added) {
  const own = [...added.flatMap(({ headers }) => headers), "content-length"];
  return {
    requests: requests.map(({ request, headers }) => ({ request, headers: headers.filter((line) => !named(line, own)) })),
    events: requests.map(({ body }) => body),
    backend,
    client: client.map(({ got, body }) => got ?? body),
    answer: client.map(({ answer }) => answer),
    headers: client.map(({ headers }) => headers),
    ended: client.map(({ ended }) => ended ?? null),
    control,
    failed,
  };
}

/** What is wrong between the two transcripts of a case: a line each. */
export function compare(each, pushpin, ours) {
  const added = (by) => EVERYWHERE.filter(({ modes, by: whose }) => whose === by && modes.includes(each.mode));
  const [theirs, own] = [parts(pushpin, added("pushpin")), parts(ours, added("ours"))];
  const wrong = [];
  const name = `${each.mode}, ${each.name}`;
  for (const [by, { requests }] of [["pushpin", pushpin], ["ours", ours]]) {
    for (const header of added(by).flatMap(({ headers }) => headers)) {
      const all = requests.every(({ headers }) => headers.some((line) => named(line, [header])));
      if (!all) wrong.push(`${name}: ${by} sends no ${header}, though the list of differences says so`);
    }
  }
  for (const part of Object.keys(theirs)) {
    if (each.unstable?.includes(part)) continue;
    const known = DIFFERENCES.filter((difference) => difference.case === each.name && difference.part === part && (difference.mode ?? each.mode) === each.mode);
    const equal = isDeepStrictEqual(theirs[part], own[part]);
    const show = () => `\n  pushpin    ${JSON.stringify(theirs[part])}\n  sluicegate ${JSON.stringify(own[part])}`;
    if (equal && known.length > 0) wrong.push(`${name}: ${part} is the same, though the list of differences has it${show()}`);
    if (!equal && known.length === 0) wrong.push(`${name}: ${part} differs${show()}`);
    for (const { pushpin: wanted, ours: mine, nth } of equal ? [] : known) {
      const of = (value) => (part === "control" ? [(value.at(nth ?? -1))?.status, value.at(nth ?? -1)?.body] : value);
      const fits = isDeepStrictEqual(of(theirs[part]), wanted) && isDeepStrictEqual(of(own[part]), mine);
      // Of several answers the others are alike.
      const others = part !== "control" || theirs.control.every((answer, at) => at === (nth ?? theirs.control.length - 1) || isDeepStrictEqual(answer, own.control[at]));
      if (!fits || !others) wrong.push(`${name}: ${part} differs in another way than the list says${show()}`);
    }
  }
  return wrong;
}

/** Differences of the list that no case has. */
export function unused(cases) {
  return DIFFERENCES.filter((difference) => !cases.some(({ name, mode }) => name === difference.case && (difference.mode ?? mode) === mode))
    .map(({ case: name, part }) => `no case has the difference ${name}, ${part}`);
}
