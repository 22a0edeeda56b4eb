// A GraphQL server with subscriptions over WebSocket, as graphql-ws' guide has it, under /graphql.
//
//   node graphql.mjs [PORT]
//
//   query { hello }
//   subscription { count(to: N) }      counts from 1 to N
//   subscription { forever }           one value, and then none until the client ends it
// A `connection_init` whose payload has `{ "token": "wrong" }` is refused with 4403. GET /seen: how many subscriptions
// were begun, and how many ended.

import { buildSchema } from "graphql";
import { useServer } from "graphql-ws/use/ws";
import http from "node:http";
import { WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const schema = buildSchema(`
  type Query { hello: String! }
  type Subscription { count(to: Int!): Int!  forever: String! }
`);
const seen = { begun: 0, ended: 0 };

async function* counted(values) {
  seen.begun += 1;
  try {
    yield* values();
  } finally {
    seen.ended += 1;
  }
}

const roots = {
  query: { hello: "world" },
  subscription: {
    count: ({ to }) =>
      counted(async function* () {
        for (let count = 1; count <= to; count += 1) yield { count };
      }),
    forever() {
      let end;
      const ended = new Promise((resolve) => (end = resolve));
      const values = counted(async function* () {
        yield { forever: "began" };
        await ended;
      });
      // What waits cannot be returned from: it is woken first.
      const stop = values.return.bind(values);
      values.return = (value) => {
        end();
        return stop(value);
      };
      return values;
    },
  },
};

const server = http.createServer((_request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(seen));
});
useServer(
  { schema, roots, onConnect: ({ connectionParams }) => connectionParams?.token !== "wrong" },
  new WebSocketServer({ server, path: "/graphql" }),
);
listen(server);
