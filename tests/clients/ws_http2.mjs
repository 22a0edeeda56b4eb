// WebSockets on Node's `ws` over Node's own HTTP/2: a stream of an extended CONNECT in place of a socket (RFC 8441).

import { once } from "node:events";
import http2 from "node:http2";
import WebSocket from "ws";

/** Connects to `url`, `http:` by prior knowledge or `https:` by ALPN, and waits until extended CONNECT is known to be there. */
export async function connectHttp2(url, options = {}) {
  // In MB. By its default a client of Node's resets what it asks for while more than 10 wait to be sent.
  const session = http2.connect(url, { maxSessionMemory: 100, ...options });
  const [settings] = await once(session, "remoteSettings");
  if (!settings.enableConnectProtocol) throw new Error("no extended CONNECT");
  return session;
}

/** Opens a WebSocket on a session. Answers the socket, and the headers of the answer. */
export async function openWebSocket(session, path, headers = {}) {
  const stream = session.request({
    ":method": "CONNECT",
    ":protocol": "websocket",
    ":path": path,
    "sec-websocket-version": "13",
    ...headers,
  });
  const [answer] = await once(stream, "response");
  if (answer[":status"] !== 200) {
    let body = "";
    for await (const part of stream.setEncoding("utf8")) body += part;
    return { answer, body };
  }
  const socket = new WebSocket(null, undefined, { autoPong: true, closeTimeout: 10_000 });
  // Made without an address it would speak as a server does.
  socket._isServer = false;
  socket.setSocket(stream, Buffer.alloc(0), { allowSynchronousEvents: true, maxPayload: 0, maxFragments: 0, maxBufferedChunks: 0 });
  return { answer, socket, stream };
}

/** Asks for a plain answer: its status, headers and body. */
export async function ask(session, headers, body) {
  const stream = session.request(headers, { endStream: body === undefined });
  if (body !== undefined) stream.end(body);
  const [answer] = await once(stream, "response");
  const parts = [];
  for await (const part of stream) parts.push(part);
  return { status: answer[":status"], headers: answer, body: Buffer.concat(parts) };
}
