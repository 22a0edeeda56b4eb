// A TCP relay between a client and one of several servers, which a test can point elsewhere, cut and freeze.

import { connect, createServer } from "node:net";

/** Listens on a port of its own, and sends each new connection to the port that `to` names at that time. */
export async function relay(to) {
  const pairs = new Set();
  let target = to;
  const server = createServer((client) => {
    const upstream = connect(target, "127.0.0.1");
    const pair = [client, upstream];
    pairs.add(pair);
    for (const [one, other] of [pair, [upstream, client]]) {
      one.on("error", () => {});
      one.on("close", () => {
        other.destroy();
        pairs.delete(pair);
      });
      one.pipe(other);
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy();
  };
  return {
    ws: `ws://127.0.0.1:${server.address().port}`,
    /** Ends all connections as a network does that fails. */
    cut,
    /** Lets nothing through any more on the present connections, and says so to nobody. */
    freeze() {
      for (const [client, upstream] of pairs) {
        for (const [one, other] of [[client, upstream], [upstream, client]]) one.unpipe(other).pause();
      }
    },
    pointTo(port) {
      target = port;
    },
    stop() {
      cut();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}
