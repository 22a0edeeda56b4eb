// @sluicegate/client over Node's own WebSocket: enters a room, says when it is subscribed, and ends when it has so many
// messages of it.
//
//   node sluicegate_native.mjs URL COUNT     answers {"ids": [...], "gaps": N, "resumable": true}

import { SluicegateSocket } from "../../clients/typescript/dist/index.js";

const [url, count] = process.argv.slice(2);
const ids = [];
let gaps = 0;
const socket = new SluicegateSocket(url, [], { backoff: { baseMs: 20, capMs: 200 } });
socket.ongap = () => (gaps += 1);
socket.addEventListener("subscription", () => console.log("subscribed"), { once: true });
socket.onmessage = ({ channel, id }) => {
  if (channel === undefined) return;
  ids.push(id);
  if (ids.length < Number(count)) return;
  console.log(JSON.stringify({ ids, gaps, resumable: socket.resumable }));
  socket.close();
};
