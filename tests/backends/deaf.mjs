// A server that listens and never accepts: once its queue is full, who connects hears nothing.
//
//   node deaf.mjs [PORT]

import { createServer } from "node:net";
import { writeSync } from "node:fs";

const server = createServer();
server.listen({ port: Number(process.argv[2] ?? 0), host: "127.0.0.1", backlog: 1 }, () => {
  writeSync(1, `${JSON.stringify({ listening: server.address().port })}\n`);
  // Nothing is accepted while the event loop stands still; the parent kills it.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60_000);
  process.exit(0);
});
