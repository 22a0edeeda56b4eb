// What every Node backend here does alike: listen on a free port (or on the one that the first argument names), say so
// in one JSON line, and end with its parent.

import { fstatSync } from "node:fs";

export function listen(server) {
  server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
    console.log(JSON.stringify({ listening: server.address().port }));
  });
  process.on("SIGTERM", () => process.exit(0));
  // A pipe that closes means that the test is gone; a terminal or /dev/null means nothing.
  const stdin = fstatSync(0);
  if (stdin.isFIFO() || stdin.isSocket()) {
    process.stdin.on("end", () => process.exit(0));
    process.stdin.on("error", () => process.exit(0));
    process.stdin.resume();
  }
}
