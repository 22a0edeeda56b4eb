// MQTT over WebSocket in front of a broker on TCP: mosquitto as Debian builds it has no WebSockets of its own.
//
//   BROKER=PORT node mqtt_bridge.mjs [PORT]
//
// Takes the subprotocols that brokers take, `mqtt` and `mqttv3.1`, and no session without one. GET /seen: every session
// so far, with its subprotocol, and how its WebSocket ended.

import http from "node:http";
import net from "node:net";
import { createWebSocketStream, WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const sessions = [];
const server = http.createServer((_request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(sessions));
});

new WebSocketServer({
  server,
  handleProtocols: (offered) => ["mqtt", "mqttv3.1"].find((name) => offered.has(name)) ?? false,
}).on("connection", (peer) => {
  const session = { protocol: peer.protocol, code: null };
  sessions.push(session);
  peer.on("close", (code) => (session.code = code));
  if (!peer.protocol) return peer.close(1002, "no MQTT");
  const client = createWebSocketStream(peer);
  const broker = net.connect({ port: Number(process.env.BROKER), host: "127.0.0.1", noDelay: true });
  client.pipe(broker).pipe(client);
  // Either end takes the other with it.
  for (const stream of [client, broker]) {
    stream.on("error", () => {});
    stream.on("close", () => {
      client.destroy();
      broker.destroy();
    });
  }
});

listen(server);
