// Every case through Debian's pushpin 1.36 and through the gateway: the same, but for the list in differences.mjs.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { CASES } from "./cases/index.mjs";
import { compare, unused } from "./compare.mjs";
import { ours, pushpin } from "./proxies.mjs";
import { play, scriptedBackend } from "./stage.mjs";

describe("GRIP as Pushpin speaks it", () => {
  // Each proxy has a backend of its own, so that they can play at once.
  let proxies, backends;
  before(async () => {
    backends = await Promise.all([scriptedBackend(), scriptedBackend()]);
    proxies = await Promise.all([pushpin(backends[0].port), ours(backends[1].port)]);
  });
  after(async () => {
    await Promise.all((proxies ?? []).map((proxy) => proxy.stop()));
    for (const backend of backends) backend.stop();
  });

  for (const each of CASES) {
    test(`${each.mode}: ${each.name}`, async () => {
      const [theirs, own] = await Promise.all(proxies.map((proxy, at) => (proxy.modes.includes(each.mode) ? play(proxy, backends[at], each) : undefined)));
      assert.equal(theirs.failed, undefined, JSON.stringify(theirs));
      // A mode that the gateway does not have is held to be one that the cases can play.
      if (own) assert.equal(compare(each, theirs, own).join("\n"), "");
    });
  }

  test("the list of differences has nothing but differences", () => {
    assert.deepEqual(unused(CASES), []);
  });
});
