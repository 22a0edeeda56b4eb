// A chat with rooms that holds no list of its clients: it subscribes each to the room of its path, by the control
// messages of @fanoutio/grip, and repeats what a client sends to that client alone.
//
//   node grip_rooms.mjs [PORT]     GRIP_KEY=secret refuses a handshake without a Grip-Sig of this key
//
// WebSocket: /ROOM?prev=ID&user=NAME subscribes to ROOM, from the item with this id on, as this user. `close` closes.
// Plain HTTP: GET /headers answers the request's headers.

import http from "node:http";
import { createWebSocketControlMessage, validateSig } from "@fanoutio/grip";
import { WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const server = http.createServer((request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(request.headers));
});
const sockets = new WebSocketServer({ noServer: true });
sockets.on("headers", (headers, { headers: asked }) => {
  if (asked["sec-websocket-extensions"] === "grip") headers.push('Sec-WebSocket-Extensions: grip; message-prefix="m:"');
});

const control = (type, fields) => `c:${createWebSocketControlMessage(type, fields)}`;

server.on("upgrade", async (request, socket, head) => {
  const key = process.env.GRIP_KEY;
  if (key && !(await validateSig(request.headers["grip-sig"] ?? "", key, "sluicegate"))) {
    socket.end("HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    return;
  }
  sockets.handleUpgrade(request, socket, head, (client) => {
    const url = new URL(request.url, "http://backend");
    const [prev, user] = ["prev", "user"].map((name) => url.searchParams.get(name));
    if (user) client.send(control("set-meta", { name: "user", value: user }));
    const recover = { "on-gap": "send", content: "gap" };
    const channel = url.pathname.slice(1);
    client.send(control("subscribe", { channel, filters: ["skip-self"], ...(prev ? { "prev-id": prev, recover } : {}) }));
    client.send("this has no prefix and reaches nobody");
    client.send("m:welcome");
    client.on("message", (data) => {
      if (String(data) === "close") client.close(4001, "asked for");
      else client.send(`m:you said: ${data}`);
    });
  });
});

listen(server);
