// A market of 500 symbols whose prices walk at random, 1,000 changes a second; and the backend of those who watch it.
//
//   node feed.mjs
//
// Publishes every change over POST /publish, in batches, and answers the gateway's requests over HTTP: each client that
// opens a WebSocket is subscribed to all prices, and a browser gets the page. It holds no connection of any client, and
// its work does not grow with their number. Variables of the environment:
//
//   PORT     where the gateway asks, 3000
//   PUBLISH  where the gateway takes publications, http://127.0.0.1:5561/publish
//   TOKEN    the token that publishers bear, where `backplane.publish.token_file` is set
//   RATE     changes a second, 1000
//   LAST     a file that gets the last price of each symbol, and counts, when SIGTERM or SIGINT ends this

import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { setTimeout as pause } from "node:timers/promises";

const { PORT = "3000", PUBLISH = "http://127.0.0.1:5561/publish", TOKEN, RATE = "1000", LAST } = process.env;
const CHANNEL = "prices";
const BATCH_MS = 20;
const MOST_OF_A_BATCH = 1_000;
/** How long a gateway may take to answer, and the pause before a batch that it did not store is published again. */
const TIMEOUT_MS = 5_000;
const AGAIN_MS = 500;

const symbols = Array.from({ length: 500 }, (_, at) => ({ name: `S${String(at).padStart(3, "0")}`, cents: 10_000 + 37 * at }));
const last = new Map();
let [published, requests, again] = [0, 0, 0];

/** The next change of a symbol: `["S042",115.54,1817,1795489098605]`: price, number of the change, time in ms. */
function walk(symbol) {
  symbol.cents = Math.max(1, symbol.cents + Math.round((Math.random() - 0.5) * 20));
  published += 1;
  const value = [symbol.name, symbol.cents / 100, published, Date.now()];
  last.set(symbol.name, value);
  return {
    channel: CHANNEL,
    id: `t-${process.pid}-${published}`,
    meta: { "conflate-key": symbol.name },
    formats: { "ws-message": { content: JSON.stringify(value) } },
  };
}

/** Publishes until the gateway has stored it. An item that it has already is stored once, by its id. */
async function publish(items) {
  const body = JSON.stringify({ items });
  const headers = { "content-type": "application/json", ...(TOKEN && { authorization: `Bearer ${TOKEN}` }) };
  for (; ; again += 1) {
    try {
      requests += 1;
      const answer = await fetch(PUBLISH, { method: "POST", headers, body, signal: AbortSignal.timeout(TIMEOUT_MS) });
      const text = await answer.text();
      if (answer.ok) return;
      // What is refused for good would be refused for ever.
      if (answer.status < 500) throw new Error(`publishing was refused: ${answer.status} ${text}`, { cause: "refused" });
    } catch (error) {
      if (error.cause === "refused") throw error;
    }
    if (stopping) throw new Error("the last batch was not stored");
    await pause(AGAIN_MS);
  }
}

/** WebSocket-over-HTTP: opens each client's WebSocket with a subscription, and says nothing to what it does later. */
function events(body) {
  if (!body.startsWith("OPEN\r\n")) return "";
  const subscribe = `c:${JSON.stringify({ type: "subscribe", channel: CHANNEL, mode: "latest" })}`;
  return `OPEN\r\nTEXT ${Buffer.byteLength(subscribe).toString(16)}\r\n${subscribe}\r\n`;
}

const MOST_OF_A_BODY = 1 << 20;
const page = await readFile(new URL("page.html", import.meta.url));
const server = createServer(async (request, response) => {
  let body = "";
  for await (const part of request) {
    body += part;
    if (body.length > MOST_OF_A_BODY) return request.destroy();
  }
  if (request.headers["content-type"] === "application/websocket-events") {
    response.setHeader("content-type", "application/websocket-events");
    response.setHeader("sec-websocket-extensions", "grip");
    response.end(events(body));
  } else if (request.url === "/") {
    response.setHeader("content-type", "text/html; charset=utf-8");
    response.end(page);
  } else {
    response.writeHead(404, { "content-type": "text/plain" });
    response.end("Not found\n");
  }
});
// The gateway keeps connections for as long as it has use for them.
server.keepAliveTimeout = 0;
server.listen(Number(PORT), "127.0.0.1");

let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => (stopping = true));

// A price for every symbol, then changes; after a pause of the gateway's, at most one batch makes up for it.
await publish(symbols.map(walk));
console.log(`${symbols.length} symbols, ${RATE} changes a second to ${PUBLISH}; backend on port ${PORT}`);
for (let due = 0, before = Date.now(); !stopping; await pause(BATCH_MS)) {
  const now = Date.now();
  due = Math.min(MOST_OF_A_BATCH, due + ((now - before) * Number(RATE)) / 1_000);
  before = now;
  const count = Math.floor(due);
  due -= count;
  if (count > 0) await publish(Array.from({ length: count }, () => walk(symbols[Math.floor(Math.random() * symbols.length)])));
}
if (LAST) await writeFile(LAST, JSON.stringify({ published, requests, again, last: [...last.values()] }));
console.log(`published ${published} changes in ${requests} requests`);
process.exit();
