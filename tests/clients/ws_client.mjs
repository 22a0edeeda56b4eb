// A client on Node's `ws` that runs a script and prints what it saw.
//
//   node ws_client.mjs URL [STEPS [OPTIONS]]        both JSON
//
// Steps, one after another:
//   {"send": "text"}  {"send_binary": N}  {"send_text": N}   a text, N bytes of binary, N bytes of text
//   {"send_text_bytes": [255]}                               a text of these bytes, be they UTF-8 or not
//   {"send_records": N}  {"send_noise": N}  {"send_many": N} what ../messages.mjs makes: one text, one binary, N texts
//   {"echo_many": N}                                         the same N texts, each after the echo of the one before
//   {"fragments": ["a", "b"]}  {"fragments": [3, 5]}         one text message in as many frames; N is N bytes
//   {"ping": "x"}                                            a ping with a payload
//   {"receive": N}                                           waits until N messages more have come
//   {"receive_ping": N}  {"receive_pong": N}                 the same for control frames
//   {"pause": true}  {"resume": true}                        stops and goes on reading the socket
//   {"sleep": MS}
//   {"close": [CODE, "reason"]}  {"close": []}               starts the closing handshake
//   {"terminate": true}                                      ends the TCP connection
//   {"closed": true}                                         waits until the other side has closed
// Options: headers, origin, protocols, deflate (false; or what `ws` takes for perMessageDeflate), digest (false),
// auto_pong (true), timeout_ms (10000, of the whole script), host.
//
// The transcript is one JSON line: opened, status, headers and body (of a refused upgrade), protocol, extensions (as the
// server answered them), messages (type, bytes, and the text when short, or with `digest` its SHA-256), pings, pongs,
// close (code, reason), error, and done: whether the script came to its end. Exit code 0 when it did or when the upgrade
// was refused, 1 otherwise.

import WebSocket from "ws";
import { many, noise, records, sha256 } from "../messages.mjs";

const [url, steps = "[]", options = "{}"] = process.argv.slice(2);
const { headers, origin, protocols = [], deflate = false, digest = false, auto_pong = true, timeout_ms = 10_000, host } =
  JSON.parse(options);

const transcript = { opened: false, messages: [], pings: [], pongs: [], close: null, done: false };
const taken = { messages: 0, pings: 0, pongs: 0 };
let wake = () => {};

const socket = new WebSocket(url, protocols, {
  headers: host ? { ...headers, host } : headers,
  origin,
  perMessageDeflate: deflate,
  autoPong: auto_pong,
  maxPayload: 0,
});
socket.on("upgrade", (response) => {
  transcript.status = response.statusCode;
  transcript.headers = response.headers;
});
socket.on("open", () => {
  const extensions = transcript.headers["sec-websocket-extensions"] ?? "";
  Object.assign(transcript, { opened: true, protocol: socket.protocol, extensions });
  run().catch((error) => finish(String(error)));
});
socket.on("unexpected-response", async (_request, response) => {
  transcript.status = response.statusCode;
  transcript.headers = response.headers;
  const parts = [];
  for await (const part of response) parts.push(part);
  transcript.body = Buffer.concat(parts).toString();
  transcript.done = true;
  finish();
});
socket.on("message", (data, isBinary) => {
  const message = { type: isBinary ? "binary" : "text", bytes: data.length };
  if (digest) message.sha256 = sha256(data);
  else if (!isBinary && data.length <= 16_384) message.text = data.toString();
  transcript.messages.push(message);
  wake();
});
socket.on("ping", (data) => {
  transcript.pings.push(data.toString());
  wake();
});
socket.on("pong", (data) => {
  transcript.pongs.push(data.toString());
  wake();
});
socket.on("close", (code, reason) => {
  transcript.close = { code, reason: reason.toString() };
  wake();
  if (!transcript.opened) finish();
});
socket.on("error", (error) => {
  transcript.error = error.message;
  if (!transcript.opened) finish();
});
setTimeout(() => finish("the script took longer than timeout_ms"), timeout_ms);

async function run() {
  for (const step of JSON.parse(steps)) {
    const [name, value] = Object.entries(step)[0];
    if (!(name in actions)) throw new Error(`unknown step ${name}`);
    await actions[name](value);
  }
  transcript.done = true;
  finish();
}

const actions = {
  send: (text) => sent(text),
  send_binary: (bytes) => sent(Buffer.alloc(bytes, "b")),
  send_text: (bytes) => sent("t".repeat(bytes)),
  send_text_bytes: (bytes) => sent(Buffer.from(bytes), { binary: false }),
  send_records: (count) => sent(records(count)),
  send_noise: (bytes) => sent(noise(bytes)),
  send_many: (count) => Promise.all(many(count).map((text) => sent(text))),
  echo_many: async (count) => {
    for (const text of many(count)) {
      sent(text);
      await arrived("messages", 1);
    }
  },
  fragments: async (parts) => {
    for (const [i, part] of parts.entries()) {
      await sent(typeof part === "number" ? "t".repeat(part) : part, { fin: i === parts.length - 1 });
    }
  },
  ping: (payload) => socket.ping(payload),
  receive: (count) => arrived("messages", count),
  receive_ping: (count) => arrived("pings", count),
  receive_pong: (count) => arrived("pongs", count),
  pause: () => socket.pause(),
  resume: () => socket.resume(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  close: ([code, reason]) => socket.close(code, reason),
  terminate: () => socket.terminate(),
  closed: () => until(() => transcript.close !== null),
};

// A message that the closing connection swallows is no fault of the script's.
function sent(data, options = {}) {
  return new Promise((resolve) => socket.send(data, options, () => resolve()));
}

async function arrived(kind, count) {
  taken[kind] += count;
  await until(() => transcript[kind].length >= taken[kind] || transcript.close !== null);
  if (transcript[kind].length < taken[kind]) {
    throw new Error(`closed after ${transcript[kind].length} of ${taken[kind]} ${kind}`);
  }
}

async function until(holds) {
  while (!holds()) await new Promise((resolve) => (wake = resolve));
}

let finished = false;
function finish(error) {
  // An error before the upgrade is followed by a close.
  if (finished) return;
  finished = true;
  if (error) transcript.error = error;
  process.stdout.write(`${JSON.stringify(transcript)}\n`, () => process.exit(transcript.done ? 0 : 1));
}
