// Subscribes each WebSocket to the channel of its path by GRIP, and holds plain requests on it.
//
//   node grip_prices.mjs [PORT]
//
// WebSocket: /CHANNEL?mode=latest&filter=NAME subscribes to CHANNEL, with these fields, and then says `welcome`; what a
// client sends is repeated to it.
// Plain HTTP: GET /CHANNEL is held as a stream.

import http from "node:http";
import { createWebSocketControlMessage } from "@fanoutio/grip";
import { WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const channelOf = ({ url }) => new URL(url, "http://backend").pathname.slice(1);

const server = http.createServer((request, response) => {
  response.setHeader("content-type", "text/plain");
  response.setHeader("grip-hold", "stream");
  response.setHeader("grip-channel", channelOf(request));
  response.end("held\n");
});
const sockets = new WebSocketServer({ server });
sockets.on("headers", (headers, { headers: asked }) => {
  if (asked["sec-websocket-extensions"] === "grip") headers.push('Sec-WebSocket-Extensions: grip; message-prefix="m:"');
});
sockets.on("connection", (client, request) => {
  const { searchParams } = new URL(request.url, "http://backend");
  const [mode, filter] = ["mode", "filter"].map((name) => searchParams.get(name));
  const fields = { channel: channelOf(request), ...(mode && { mode }), ...(filter && { filters: [filter] }) };
  client.send(`c:${createWebSocketControlMessage("subscribe", fields)}`);
  client.send("m:welcome");
  client.on("message", (data) => client.send(`m:you said: ${data}`));
});

listen(server);
