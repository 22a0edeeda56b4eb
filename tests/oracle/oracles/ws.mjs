// Reads WebSocket streams of clients with ws' Receiver, and writes what it made of each.
//
//   node ws.mjs MAX_PAYLOAD_BYTES
//
// Input: for each stream its length in 4 bytes and then the stream. Output: for each stream, records of a letter and
// its fields. A length of 4 bytes and the payload behind `t` (text), `b` (binary), `p` (Ping) and `q` (Pong); then one
// that says how it ended: `o` (no rule is broken so far), `c` and 2 bytes (closed with this code, 1005 for none), `l`
// (the limit), `r` with a length and ws' code of the error (refused).

import { Receiver } from "ws";

const maxPayload = Number(process.argv[2]);
const LIMITS = ["WS_ERR_UNSUPPORTED_MESSAGE_LENGTH", "WS_ERR_UNSUPPORTED_DATA_PAYLOAD_LENGTH"];

function counted(letter, bytes) {
  const head = Buffer.alloc(5, letter);
  head.writeUInt32BE(bytes.length, 1);
  return [head, bytes];
}

// What becomes of a stream is known when the event loop has turned, since an error is reported by then.
function begin(stream) {
  const reading = { records: [], end: [Buffer.from("o")] };
  const receiver = new Receiver({ isServer: true, maxPayload, skipUTF8Validation: false });
  receiver.on("message", (data, isBinary) => reading.records.push(...counted(isBinary ? "b" : "t", data)));
  receiver.on("ping", (data) => reading.records.push(...counted("p", data)));
  receiver.on("pong", (data) => reading.records.push(...counted("q", data)));
  receiver.on("conclude", (code) => {
    const end = Buffer.alloc(3, "c");
    end.writeUInt16BE(code, 1);
    reading.end = [end];
  });
  receiver.on("error", (error) => {
    if (!error.code?.startsWith("WS_ERR_")) throw error;
    reading.end = LIMITS.includes(error.code) ? [Buffer.from("l")] : counted("r", Buffer.from(error.code));
  });
  receiver.write(stream);
  return reading;
}

let input = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  input = Buffer.concat([input, chunk]);
  const readings = [];
  while (input.length >= 4 && input.length >= 4 + input.readUInt32BE(0)) {
    const end = 4 + input.readUInt32BE(0);
    readings.push(begin(input.subarray(4, end)));
    input = input.subarray(end);
  }
  await new Promise((resolve) => setImmediate(resolve));
  process.stdout.write(Buffer.concat(readings.flatMap(({ records, end }) => [...records, ...end])));
}
if (input.length > 0) throw new Error("the input ends inside of a stream");
