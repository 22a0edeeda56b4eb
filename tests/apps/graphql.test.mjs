// GraphQL subscriptions with graphql-ws on both sides.

import assert from "node:assert/strict";
import { createClient } from "graphql-ws";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { backend, client, eventually, gateway } from "../support.mjs";

const configuration = (port) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: graphql, endpoints: ["127.0.0.1:${port}"] }]
rules:
  - name: graphql
    match: { path: /graphql }
    upstream: graphql
    websocket: require
    message: { max_size: 64KiB }
shutdown: { drain: 5s, spread: 0s }
`;

describe("graphql-ws behind the gateway", () => {
  let app, gate;
  const seen = async () => (await fetch(app.http)).json();
  before(async () => {
    app = await backend("backends/graphql.mjs");
    gate = await gateway(configuration(app.port));
  });
  after(() => Promise.all([gate?.stop(), app?.stop()]));

  const connect = (options = {}) =>
    createClient({ url: `${gate.ws}/graphql`, webSocketImpl: WebSocket, retryAttempts: 0, ...options });
  const values = async (running) => {
    const all = [];
    for await (const { data, errors } of running) all.push(errors ?? data);
    return all;
  };

  test("subscriptions count to their end, several at once on one connection", async () => {
    const graphql = connect();
    try {
      assert.deepEqual(await values(graphql.iterate({ query: "{ hello }" })), [{ hello: "world" }]);
      const counts = [1, 50, 200].map((to) => values(graphql.iterate({ query: `subscription { count(to: ${to}) }` })));
      for (const [nth, to] of [1, 50, 200].entries()) {
        assert.deepEqual(await counts[nth], Array.from({ length: to }, (_, i) => ({ count: i + 1 })));
      }
    } finally {
      await graphql.dispose();
    }
    // Without a running operation the client closes, so the query had a session of its own. Each way: init; for every
    // operation its beginning, and its values and end.
    for (const [nth, messagesIn, messagesOut] of [
      [1, 1 + 1, 1 + (1 + 1)],
      [2, 1 + 3, 1 + (1 + 1) + (50 + 1) + (200 + 1)],
    ]) {
      const line = await gate.line({ event: "session" }, nth);
      assert.deepEqual(
        [line.subprotocol, line.path, line.close_code, line.closed_by, line.messages_in, line.messages_out],
        ["graphql-transport-ws", "/graphql", 1000, "client", messagesIn, messagesOut],
      );
    }
  });

  test("a subscription that its client ends, ends at the server", async () => {
    const graphql = connect({ lazy: false });
    const before = await seen();
    const running = graphql.iterate({ query: "subscription { forever }" });
    assert.deepEqual((await running.next()).value.data, { forever: "began" });
    await running.return();
    await eventually(seen, ({ begun, ended }) => begun === before.begun + 1 && ended === begun);
    await graphql.dispose();
  });

  test("the server's own close codes arrive: 4403 forbidden, 4406 without its subprotocol", async () => {
    const graphql = connect({ connectionParams: { token: "wrong" } });
    const closed = new Promise((resolve) => graphql.on("closed", ({ code, reason }) => resolve([code, reason])));
    await assert.rejects(values(graphql.iterate({ query: "{ hello }" })));
    assert.deepEqual(await closed, [4403, "Forbidden"]);
    await gate.line({ event: "session", close_code: 4403, closed_by: "upstream" });

    const { close } = await client("clients/ws_client.mjs", `${gate.ws}/graphql`, [{ closed: true }]);
    assert.equal(close.code, 4406);
    const line = await gate.line({ event: "session", close_code: 4406, closed_by: "upstream" });
    assert.equal(line.subprotocol ?? null, null);
  });

  test("a query over the limit of the rule is 1009", async () => {
    const graphql = connect();
    const closed = new Promise((resolve) => graphql.on("closed", ({ code }) => resolve(code)));
    const query = `{ ${Array.from({ length: 5_000 }, (_, i) => `alias_${i}: hello`).join(" ")} }`;
    await assert.rejects(values(graphql.iterate({ query })));
    assert.equal(await closed, 1009);
    await gate.line({ event: "session", close_code: 1009, cause: "message_too_big" });
  });

  test("a client takes a drain for a reason to try again, and finds its subscription at the next gateway", async () => {
    const old = await gateway(configuration(app.port));
    let url = old.ws;
    const codes = [];
    const graphql = connect({ url: () => `${url}/graphql`, retryAttempts: 5, retryWait: async () => {} });
    graphql.on("closed", ({ code }) => codes.push(code));
    const running = graphql.iterate({ query: "subscription { forever }" });
    assert.equal((await running.next()).value.data.forever, "began");
    url = gate.ws;
    const stopped = old.stop();
    assert.equal((await running.next()).value.data.forever, "began");
    assert.deepEqual(codes, [1012]);
    assert.equal((await stopped).code, 0);
    await running.return();
    await graphql.dispose();
  });
});
