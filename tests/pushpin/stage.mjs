// Plays a case through one proxy: a scripted backend behind it, scripted clients before it, and what each of them saw.

import { once } from "node:events";
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { KEY } from "./proxies.mjs";
import { acceptKey, closing, decoder, encode, readable, reader } from "./wire.mjs";
import { verify } from "./signature.mjs";

/** The header that says which case a request belongs to: what comes late of one is not taken for the next one's. */
const CASE = "x-case";

/** How long something awaited may take, in milliseconds. */
const DEADLINE = 12_000;

/** Values that differ from run to run, or by the name of a product; what they must be like is checked where they are made. */
const NORMAL = {
  host: () => "HOST", "user-agent": () => "AGENT", "sec-websocket-key": () => "KEY", "connection-id": () => "ID",
  "grip-feature": () => "FEATURES", "grip-sig": (value) => verify(value, KEY),
};

/** What a backend saw of a request, in a form that does not depend on who sent it. */
function normalised({ first, headers, body }) {
  const lines = headers.filter(([name]) => name.toLowerCase() !== CASE).map(([name, value]) => {
    const key = name.toLowerCase();
    return `${key}: ${NORMAL[key]?.(value) ?? value}`;
  });
  return { request: first, headers: lines.sort(), ...(body.length > 0 ? { body: body.toString("latin1") } : {}) };
}

async function until(what, holds) {
  for (const end = Date.now() + DEADLINE; Date.now() < end; await sleep(5)) {
    const found = await holds();
    if (found) return found;
  }
  throw new Error(`not within ${DEADLINE} ms: ${what()}`);
}

/** A backend for both proxies: each connection is given to the case that is played. */
export async function scriptedBackend() {
  const stage = { current: undefined, take: undefined };
  const sockets = new Set();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    let frames;
    const read = reader((request) => {
      const current = request.header(CASE) === stage.current;
      frames = current ? stage.take(socket, request) : undefined;
      // Of a case that is over: the proxy is told that all is well.
      if (!current) {
        socket.write("HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\nContent-Length: 0\r\n\r\n");
      }
      const rest = request.rest();
      if (frames && rest.length > 0) frames(rest);
    });
    socket.on("data", (bytes) => (frames ?? read)(bytes));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    stage,
    port: server.address().port,
    stop() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** One end of a WebSocket, and what it was sent. */
class End {
  constructor(socket, masked, ignored) {
    Object.assign(this, { socket, masked, got: [], ended: false, closed: false });
    socket.on("close", () => (this.ended = true));
    this.frames = decoder((message) => {
      const seen = readable(message);
      if (!ignored(seen)) this.got.push(seen);
      if (message[0] === "close") this.closed = true;
    });
  }

  /** Sends frames as they are given; a string is a text message. */
  send(...frames) {
    for (const frame of frames) {
      this.socket.write(encode({ masked: this.masked, ...(typeof frame === "string" ? { opcode: "text", payload: frame } : frame) }));
    }
  }

  close(code, reason) {
    this.send({ opcode: "close", payload: code === undefined ? "" : closing(code, reason) });
  }

  /** Ends the connection as it is. */
  drop() {
    this.socket.destroy();
  }

  has(count) {
    return until(() => `${count} messages, but ${JSON.stringify(this.got)}`, () => this.got.length >= count);
  }

  isOver() {
    return until(() => `an end, but ${JSON.stringify(this.got)}`, () => this.closed || this.ended);
  }
}

/** What stands between probes and fences and the messages of a case. */
const aside = (seen) => typeof seen === "string" && /^~(probe|fence)/.test(seen);

let cases = 0;

/** Plays a case; what it calls `unstable` differs from run to run of one proxy, and is not compared. Answers `{ requests, backend, client, control }`, or `{ failed }` with what it waited for in vain. */
export async function play(proxy, backend, each) {
  const seen = { requests: [], backend: [], client: [], control: [] };
  const clients = [];
  const ends = [];
  let probes = 0;
  const number = String((cases += 1));
  const t = {
    proxy: proxy.name,
    clients,
    requests: seen.requests,
    /** The backend's ends, one for each WebSocket, in the order in which they were opened. */
    ends,
    async client({ path = each.path ?? "/case", headers = {} } = {}) {
      const socket = connect(proxy.port, "127.0.0.1");
      const lines = Object.entries({
        Host: "app.test", Upgrade: "websocket", Connection: "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", [CASE]: number, ...headers,
      }).map(([name, value]) => `${name}: ${value}\r\n`);
      const client = new End(socket, true, aside);
      clients.push(client);
      socket.on("error", () => (client.ended = true));
      let opened = false;
      const read = reader((answer) => {
        client.answer = answer;
        opened = answer.first.startsWith("HTTP/1.1 101");
        const rest = answer.rest();
        if (opened && rest.length > 0) client.frames(rest);
      }, { bodiless: ({ first }) => first.startsWith("HTTP/1.1 101") });
      socket.on("data", (bytes) => (opened ? client.frames : read)(bytes));
      socket.write(`GET ${path} HTTP/1.1\r\n${lines.join("")}\r\n`);
      await until(() => "an answer to a handshake", () => client.answer || client.ended);
      return client;
    },
    /** A client and the backend's end of its connection. */
    async pair(options) {
      const count = ends.length;
      const client = await t.client(options);
      await until(() => "the backend's end", () => ends.length > count);
      return [client, ends[count]];
    },
    /** A plain request; answers when its head has come, and goes on reading. */
    async get(path, { method = "GET", headers = {}, body = "" } = {}) {
      const socket = connect(proxy.port, "127.0.0.1");
      const response = { text: "", ended: false };
      clients.push({ response, drop: () => socket.destroy() });
      socket.on("error", () => {});
      socket.on("data", (bytes) => (response.text += bytes.toString("latin1")));
      socket.on("close", () => (response.ended = true));
      const length = body ? { "Content-Length": Buffer.byteLength(body) } : {};
      const lines = Object.entries({ Host: "app.test", [CASE]: number, ...length, ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
      socket.write(`${method} ${path} HTTP/1.1\r\n${lines.join("")}\r\n${body}`);
      return { response, drop: () => socket.destroy(), has: (text) => until(() => `${text} in ${response.text}`, () => response.text.includes(text)) };
    },
    /** Asks the control port; what it answers is compared. */
    async control(body, { method = "POST", path = "/publish/", headers = {}, quiet = false } = {}) {
      const text = typeof body === "string" || body === undefined ? body : JSON.stringify(body);
      const options = { method, headers, ...(text === undefined ? {} : { body: text }) };
      const answer = await fetch(`http://127.0.0.1:${proxy.publish}${path}`, options);
      const got = { status: answer.status, type: answer.headers.get("content-type"), body: await answer.text() };
      if (!quiet) seen.control.push(got);
      return got;
    },
    publish: (channel, format, more = {}) => t.control({ items: [{ channel, formats: { "ws-message": format }, ...more }] }),
    /** Publishes to a channel until this client gets it: then what was asked of the proxy before is in force. */
    async subscribed(client, ...channels) {
      for (const channel of channels) {
        const text = `~probe ${(probes += 1)}`;
        let came = false;
        const watch = decoder((message) => (came ||= message[0] === "text" && message[1].toString() === text));
        client.socket.on("data", watch);
        await until(() => `a subscription of ${channel}`, async () => {
          await t.control({ items: [{ channel, formats: { "ws-message": { content: text } } }] }, { quiet: true });
          for (let waited = 0; waited < 10 && !came; waited += 1) await sleep(10);
          return came;
        });
        client.socket.off("data", watch);
      }
    },
    /** When a client has got this, it has got all that was published to the channel before. */
    fence: (client, ...channels) => t.subscribed(client, ...channels),
    sleep,
    until,
  };
  backend.stage.current = number;
  backend.stage.take = (socket, request) => {
    seen.requests.push(normalised(request));
    if (each.respond) {
      Promise.resolve(each.respond(request)).then(({ status = "200 OK", headers = {}, body = "" }) => {
        const bytes = Buffer.from(body, "latin1");
        const lines = Object.entries({ "Content-Length": bytes.length, ...headers })
          .flatMap(([name, values]) => [values].flat().map((value) => `${name}: ${value}\r\n`));
        socket.write(`HTTP/1.1 ${status}\r\n${lines.join("")}\r\n`);
        socket.write(bytes);
      });
      return undefined;
    }
    const extensions = each.extension === undefined ? "grip" : each.extension;
    const headers = { ...(extensions === null ? {} : { "Sec-WebSocket-Extensions": extensions }), ...each.headers };
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    const accept = acceptKey(request.header("sec-websocket-key"));
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n${lines.join("")}\r\n`);
    const end = new End(socket, false, () => false);
    ends.push(end);
    return (bytes) => end.frames(bytes);
  };
  try {
    await each.play(t);
  } catch (error) {
    seen.failed = error.message.replaceAll(/~\w+ \d+/g, "~");
  } finally {
    backend.stage.current = undefined;
    for (const client of clients) client.drop();
    for (const end of ends) end.drop();
  }
  for (const client of clients) {
    seen.client.push(client.response ? answerOf(client.response.text) : {
      answer: client.answer?.first, headers: handshake(client.answer), got: client.got, ended: client.closed ? "closed" : each.ends ? client.ended : undefined,
    });
  }
  seen.backend = ends.map(({ got }) => got);
  return JSON.parse(JSON.stringify(seen));
}

/** What a client is told in a handshake, but for what belongs to each connection. */
function handshake(answer) {
  const own = ["sec-websocket-accept", "date", "server", "connection", "upgrade", "transfer-encoding"];
  const lines = (answer?.headers ?? []).map(([name, value]) => [name.toLowerCase(), value]).filter(([name]) => !own.includes(name));
  return lines.map((line) => line.join(": ")).sort();
}

/** A plain answer: its status line, its headers, and the body without the framing of chunks. */
function answerOf(text) {
  const at = text.indexOf("\r\n\r\n");
  const [first, ...lines] = text.slice(0, at).split("\r\n");
  const own = /^(date|server|connection|transfer-encoding|content-length|keep-alive):/i;
  const chunked = /transfer-encoding: *chunked/i.test(text.slice(0, at));
  const body = text.slice(at + 4);
  const content = chunked ? body.replaceAll(/(?:^|\r\n)[0-9a-f]+\r\n(?:\r\n$)?/gi, "") : body;
  return { answer: first, headers: lines.map((line) => line.replace(/^[^:]+/, (name) => name.toLowerCase())).filter((line) => !own.test(line)).sort(), body: content };
}
