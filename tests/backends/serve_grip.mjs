// A chat with rooms whose backend holds no connection: the middleware @fanoutio/serve-grip as npm serves it, with
// WebSocket-over-HTTP, and HTTP holds for streams and long polls.
//
//   node serve_grip.mjs [PORT]     GRIP_KEY=secret: requests without a Grip-Sig of this key are not proxied ones
//
// WebSocket: /ROOM?prev=ID subscribes to ROOM, from the item with this id on; what a client sends is repeated to it.
//   `close` closes with 4001, `detach` detaches, `count` answers how many messages the connection has sent, as it was kept
//   in its metadata; `fail` answers 500. /refused refuses with 403.
// GET /stream/ROOM holds a stream, GET /poll/ROOM a response; GET /since/ROOM is the history that a link asks for.
// GET /asked answers the requests of WebSockets so far: method, URL, headers and the events of each.

import http from "node:http";
import { encodeWebSocketEvents, WebSocketEvent } from "@fanoutio/grip";
import { ServeGrip } from "@fanoutio/serve-grip";
import { listen } from "./ready.mjs";

const asked = [];
const key = process.env.GRIP_KEY;
const grip = new ServeGrip({ grip: { control_uri: "http://127.0.0.1:1/", verify_iss: "sluicegate", verify_key: key } });
const subscription = (fields) => JSON.stringify({ type: "subscribe", ...fields });

const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, "http://backend");
  const [, first, second] = url.pathname.split("/");
  if (first === "asked") return response.end(JSON.stringify(asked));
  if (first === "since") {
    asked.push({ method: request.method, url: request.url, headers: request.headers, events: [] });
    response.setHeader("content-type", "application/websocket-events");
    const newest = `c:${subscription({ channel: second, "prev-id": url.searchParams.get("to") })}`;
    const events = ["m:from the database", newest].map((text) => new WebSocketEvent("TEXT", text));
    return response.end(encodeWebSocketEvents(events));
  }
  if (first === "refused") {
    response.statusCode = 403;
    return response.end("not for you\n");
  }
  if (!(await grip.run(request, response))) return;
  const socket = request.grip.wsContext;
  if (!request.grip.isProxied || (first !== "stream" && first !== "poll" && !socket)) {
    response.statusCode = request.grip.isProxied ? 404 : 401;
    return response.end();
  }
  if (!socket) {
    const instruct = response.grip.startInstruct();
    instruct.addChannel(second);
    if (first === "stream") instruct.setHoldStream();
    else instruct.setHoldLongPoll(url.searchParams.get("timeout") ?? 20);
    response.setHeader("content-type", "text/plain");
    return response.end(first === "stream" ? "open\n" : "nothing yet\n");
  }
  const events = socket._inEvents.map(({ type, content }) => [type, content === null ? null : Buffer.from(content).toString()]);
  asked.push({ method: request.method, url: request.url, headers: request.headers, events });
  if (socket.isOpening()) {
    socket.accept();
    const prev = url.searchParams.get("prev");
    const link = `/since/${first}?to=${url.searchParams.get("to") ?? ""}`;
    if (prev) socket.sendControl(subscription({ channel: first, "prev-id": prev, recover: { link } }));
    else socket.subscribe(first);
    socket.send("welcome");
  }
  while (socket.canRecv() && !events.some(([type]) => type === "DISCONNECT")) {
    const message = socket.recv();
    if (message === null) {
      socket.close(1000);
      break;
    }
    const sent = Number(socket.meta.sent ?? 0) + 1;
    socket.meta.sent = String(sent);
    if (message === "close") socket.close(4001);
    else if (message === "detach") socket.detach();
    else if (message === "count") socket.send(String(sent));
    else if (message === "fail") response.statusCode = 500;
    else if (message.length > 0) socket.send(`you said: ${message}`);
  }
  response.end();
});
listen(server);
