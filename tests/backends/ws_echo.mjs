// A backend on Node's `ws`, as an application would write it.
//
//   node ws_echo.mjs [PORT]        PERMESSAGE_DEFLATE=1 accepts compression
//
// WebSocket, by the last segment of the path: anything else echoes text and binary verbatim
//   /close?code=4001&reason=bye    closes at once (without `code`: an empty Close frame)
//   /terminate                     ends the TCP connection at once, without a Close frame
//   /flood?bytes=N&messages=M      sends M (1) binary messages of N bytes, then echoes
//   /headers                       sends the request's headers as a JSON text: [[name, value], …] as they came
//   /nopong                        never answers a ping; echoes
//   /ping?payload=x                sends a ping, then echoes
//   /silent                        sends nothing, ever
//   /refuse?status=401             answers the upgrade with plain HTTP
// Plain HTTP: GET /plain, POST /plain (echoes the body), GET /healthz, and GET /seen: every session so far, as JSON, with
// the extensions that it was offered and those that it answered.

import http from "node:http";
import { WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const sessions = [];

const server = http.createServer(async (request, response) => {
  const { pathname } = new URL(request.url, "http://backend");
  if (pathname === "/seen") {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(sessions));
  } else if (pathname === "/plain" && request.method === "POST") {
    response.setHeader("content-type", "application/octet-stream");
    request.pipe(response);
  } else if (pathname === "/plain" || pathname === "/healthz") {
    response.setHeader("content-type", "text/plain");
    response.end("plain\n");
  } else if (pathname === "/headers") {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(headers(request)));
  } else {
    response.statusCode = 404;
    response.end("not found\n");
  }
});

const options = {
  noServer: true,
  maxPayload: 2 ** 31 - 1,
  maxFragments: 0,
  maxBufferedChunks: 0,
  perMessageDeflate: process.env.PERMESSAGE_DEFLATE === "1",
  handleProtocols: (offered) => (offered.has("chat") ? "chat" : false),
};
const endpoint = new WebSocketServer(options);
const endpointWithoutPongs = new WebSocketServer({ ...options, autoPong: false });
for (const each of [endpoint, endpointWithoutPongs]) {
  each.on("headers", (lines, request) => {
    const line = lines.find((line) => line.startsWith("Sec-WebSocket-Extensions: "));
    request.answered = line?.slice("Sec-WebSocket-Extensions: ".length) ?? "";
  });
}

server.on("upgrade", (request, socket, head) => {
  const url = new URL(request.url, "http://backend");
  url.pathname = `/${url.pathname.split("/").at(-1)}`;
  if (url.pathname === "/refuse") {
    const status = Number(url.searchParams.get("status") ?? 401);
    socket.end(
      `HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\nx-backend: refused\r\n` +
        "content-type: text/plain\r\ncontent-length: 8\r\nconnection: close\r\n\r\nrefused\n",
    );
    return;
  }
  const wss = url.pathname === "/nopong" ? endpointWithoutPongs : endpoint;
  wss.handleUpgrade(request, socket, head, (peer) => serve(peer, url, request));
});

function serve(peer, { pathname, searchParams }, request) {
  const session = {
    path: request.url,
    protocol: peer.protocol,
    offered: request.headers["sec-websocket-extensions"] ?? "",
    answered: request.answered,
    messages: 0,
    bytes: 0,
    pings: 0,
    pongs: 0,
    open: true,
    code: null,
    reason: null,
  };
  sessions.push(session);
  peer.on("error", (error) => (session.error = error.message));
  peer.on("ping", () => (session.pings += 1));
  peer.on("pong", () => (session.pongs += 1));
  peer.on("close", (code, reason) => Object.assign(session, { open: false, code, reason: reason.toString() }));
  peer.on("message", (data, isBinary) => {
    session.messages += 1;
    session.bytes += data.length;
    if (pathname !== "/silent") peer.send(data, { binary: isBinary });
  });

  const number = (name, otherwise) => Number(searchParams.get(name) ?? otherwise);
  if (pathname === "/close") {
    if (searchParams.has("code")) peer.close(number("code"), searchParams.get("reason") ?? "");
    else peer.close();
  } else if (pathname === "/terminate") {
    peer.terminate();
  } else if (pathname === "/flood") {
    const message = Buffer.alloc(number("bytes", 1024), "f");
    for (let i = 0; i < number("messages", 1); i += 1) peer.send(message);
  } else if (pathname === "/headers") {
    peer.send(JSON.stringify(headers(request)));
  } else if (pathname === "/ping") {
    peer.ping(searchParams.get("payload") ?? "");
  }
}

function headers({ rawHeaders }) {
  const pairs = [];
  for (let i = 0; i < rawHeaders.length; i += 2) pairs.push([rawHeaders[i], rawHeaders[i + 1]]);
  return pairs;
}

listen(server);
