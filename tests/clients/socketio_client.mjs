// A Socket.IO client that checks acknowledgements.
//
//   node socketio_client.mjs URL [TRANSPORTS [COUNT [LENGTH]]]
//
// TRANSPORTS: polling | websocket | polling,websocket (default). Sends COUNT (10) values with a text of LENGTH (0) more
// characters each and compares each acknowledgement; with both transports it first waits for the upgrade from polling to
// WebSocket, which offers compression. Prints one JSON line: connected, first and last transport, acknowledged, error. Exit code 0
// when every value came back.

import { io } from "socket.io-client";

const [url, transports = "polling,websocket", count = "10", length = "0"] = process.argv.slice(2);
const result = { connected: false, first: null, last: null, acknowledged: 0 };

const socket = io(url, { transports: transports.split(","), reconnection: false, timeout: 5_000 });
const engine = socket.io.engine;
engine.once("handshake", () => (result.first = engine.transport.name));
const upgraded = transports.includes(",") ? new Promise((resolve) => engine.once("upgrade", resolve)) : null;
setTimeout(() => finish("took longer than 10 s"), 10_000);

socket.on("connect_error", (error) => finish(`${error.message}${error.description ? `: ${error.description}` : ""}`));
socket.on("connect", async () => {
  result.connected = true;
  await upgraded;
  try {
    for (let i = 0; i < Number(count); i += 1) {
      const value = { number: i, text: `grüße${"x".repeat(length)}`, bytes: Buffer.from([0, 255, i]) };
      const answer = await socket.timeout(5_000).emitWithAck("echo", value);
      if (answer.number !== i || answer.text !== value.text || !value.bytes.equals(Buffer.from(answer.bytes))) {
        return finish(`acknowledgement ${i} differs: ${JSON.stringify(answer)}`);
      }
      result.acknowledged += 1;
    }
    result.last = await socket.timeout(5_000).emitWithAck("transport");
    finish();
  } catch (error) {
    finish(String(error));
  }
});

function finish(error) {
  if (error) result.error = error;
  socket.disconnect();
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(error ? 1 : 0));
}
