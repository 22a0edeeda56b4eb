// An application over plain HTTP: what runs beside the WebSockets on the same host.
//
//   node http_app.mjs [PORT]
//
//   GET /events                 a stream of server-sent events; POST /events sends its body as one to every stream, and
//                               answers how many there are
//   GET /poll?hold=MS           a long poll: answers after MS, with the port of this server
//   POST /upload                reads the body; answers its bytes, its SHA-256, and how it was framed
//   GET /download?bytes=N       N bytes, chunked; with &length=1 by Content-Length. Their SHA-256 is in x-sha256
//   GET /status/418             that status
//   GET /moved                  a redirect to /there, with Server and X-Powered-By
//   GET /seen                   per path (without query) how many requests came, and how many were broken off; as
//                               `connections` how many connections there were
// Anything else answers what it saw, as JSON: port, method, url, headers (as pairs), body. A WebSocket echoes.

import { createHash } from "node:crypto";
import http from "node:http";
import { Readable } from "node:stream";
import { WebSocketServer } from "ws";
import { listen } from "./ready.mjs";

const streams = new Set();
const seen = { connections: 0, requests: {}, broken: {} };

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://backend");
  const json = (value) => {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(value));
  };
  if (pathname === "/seen") return json(seen);
  seen.requests[pathname] = (seen.requests[pathname] ?? 0) + 1;
  response.once("close", () => {
    if (!response.writableFinished) seen.broken[pathname] = (seen.broken[pathname] ?? 0) + 1;
  });

  if (pathname === "/events" && request.method === "GET") {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.write(": begun\n\n");
    streams.add(response);
    response.once("close", () => streams.delete(response));
  } else if (pathname === "/events") {
    const data = await text(request);
    for (const stream of streams) stream.write(`data: ${data}\n\n`);
    json(streams.size);
  } else if (pathname === "/poll") {
    const held = Number(searchParams.get("hold"));
    setTimeout(() => json({ held, port: server.address().port }), held);
  } else if (pathname === "/upload") {
    const hash = createHash("sha256");
    let bytes = 0;
    try {
      for await (const part of request) {
        bytes += part.length;
        hash.update(part);
      }
    } catch {
      return; // Broken off.
    }
    const { "content-length": length = null, "transfer-encoding": encoding = null } = request.headers;
    json({ bytes, sha256: hash.digest("hex"), length, encoding });
  } else if (pathname === "/download") {
    const bytes = Number(searchParams.get("bytes"));
    const hash = createHash("sha256");
    for (const part of content(bytes)) hash.update(part);
    response.setHeader("x-sha256", hash.digest("hex"));
    if (searchParams.has("length")) response.setHeader("content-length", bytes);
    Readable.from(content(bytes)).pipe(response);
  } else if (pathname.startsWith("/status/")) {
    response.statusCode = Number(pathname.slice("/status/".length));
    response.end("as asked\n");
  } else if (pathname === "/moved") {
    response.writeHead(302, { location: "/there", server: "app/1", "x-powered-by": "habit", vary: "Cookie" });
    response.end();
  } else {
    const headers = [];
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      headers.push([request.rawHeaders[i].toLowerCase(), request.rawHeaders[i + 1]]);
    }
    const { port } = server.address();
    json({ port, method: request.method, url: request.url, headers, body: await text(request) });
  }
});
new WebSocketServer({ server }).on("connection", (peer) => {
  peer.on("message", (data, binary) => peer.send(data, { binary }));
});
server.on("connection", () => (seen.connections += 1));
// Longer than any test, so that only the other side closes.
server.keepAliveTimeout = 60_000;

/** Bytes that no two places have alike, in parts. */
function* content(bytes) {
  const part = Buffer.alloc(65_536);
  for (let at = 0; at < bytes; at += part.length) {
    for (let i = 0; i < part.length; i += 4) part.writeUInt32LE((at + i) >>> 2, i);
    yield Buffer.from(part.subarray(0, Math.min(part.length, bytes - at)));
  }
}

async function text(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

listen(server);
