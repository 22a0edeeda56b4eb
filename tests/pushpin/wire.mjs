// HTTP/1.1 and WebSocket frames by hand: what peers of these tests send and get is exactly what the case says.

import { createHash, randomBytes } from "node:crypto";

export const OPCODES = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };
const NAMES = Object.fromEntries(Object.entries(OPCODES).map(([name, code]) => [code, name]));

export const acceptKey = (key) => createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");

/** A frame; one of a client is masked. RFC 6455 §5.2. */
export function encode({ opcode, payload = "", fin = true, masked = false }) {
  const data = Buffer.from(payload);
  const head = [(fin ? 0x80 : 0) | OPCODES[opcode]];
  const mask = masked ? 0x80 : 0;
  if (data.length < 126) head.push(mask | data.length);
  else if (data.length < 65_536) head.push(mask | 126, data.length >> 8, data.length & 255);
  else head.push(mask | 127, 0, 0, 0, 0, (data.length >>> 24) & 255, (data.length >> 16) & 255, (data.length >> 8) & 255, data.length & 255);
  if (!masked) return Buffer.concat([Buffer.from(head), data]);
  const key = randomBytes(4);
  return Buffer.concat([Buffer.from(head), key, data.map((byte, at) => byte ^ key[at % 4])]);
}

/** The payload of a Close frame. */
export const closing = (code, reason = "") => Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)]);

/** Takes bytes, and calls `each` with every whole message or control frame: `[name, payload]`. */
export function decoder(each) {
  let buffer = Buffer.alloc(0);
  let kind;
  let parts = [];
  return (bytes) => {
    buffer = Buffer.concat([buffer, bytes]);
    for (;;) {
      if (buffer.length < 2) return;
      let [length, at] = [buffer[1] & 127, 2];
      if (length === 126) [length, at] = [buffer.length < 4 ? Infinity : buffer.readUInt16BE(2), 4];
      else if (length === 127) [length, at] = [buffer.length < 10 ? Infinity : Number(buffer.readBigUInt64BE(2)), 10];
      const masked = (buffer[1] & 128) !== 0;
      const from = at + (masked ? 4 : 0);
      if (buffer.length < from + length) return;
      const key = buffer.subarray(at, from);
      const payload = buffer.subarray(from, from + length).map((byte, nth) => (masked ? byte ^ key[nth % 4] : byte));
      const [fin, name] = [(buffer[0] & 0x80) !== 0, NAMES[buffer[0] & 15]];
      buffer = buffer.subarray(from + length);
      if ((OPCODES[name] ?? 0) >= 8) {
        each([name, payload]);
        continue;
      }
      if (name !== "continuation") [kind, parts] = [name, []];
      parts.push(payload);
      if (fin) each([kind, Buffer.concat(parts)]);
    }
  };
}

/** What a transcript has of a message: text as it is, bytes in hexadecimal, a Close frame as its code and reason. */
export function readable([name, payload]) {
  if (name === "text") return payload.toString();
  if (name !== "close") return { [name]: payload.toString("hex") };
  return { close: payload.length < 2 ? [] : [payload.readUInt16BE(0), payload.subarray(2).toString()] };
}

/** The first line and the headers of a head, in their order and spelling. */
export function parseHead(text) {
  const [first, ...lines] = text.split("\r\n");
  const headers = lines.filter(Boolean).map((line) => {
    const at = line.indexOf(":");
    return [line.slice(0, at), line.slice(at + 1).trim()];
  });
  const header = (name) => headers.find(([found]) => found.toLowerCase() === name)?.[1];
  return { first, headers, header };
}

/** Takes bytes of HTTP/1.1 messages, and calls `each` with every whole one: its head, its body, and what is behind. */
export function reader(each, { bodiless = () => false, untilEnd = false } = {}) {
  let buffer = Buffer.alloc(0);
  const push = (bytes) => {
    buffer = Buffer.concat([buffer, bytes]);
    for (;;) {
      const end = buffer.indexOf("\r\n\r\n");
      if (end < 0) return;
      const head = parseHead(buffer.subarray(0, end).toString("latin1"));
      const rest = buffer.subarray(end + 4);
      let body, used;
      if (bodiless(head)) [body, used] = [Buffer.alloc(0), 0];
      else if (/chunked/i.test(head.header("transfer-encoding") ?? "")) [body, used] = dechunk(rest) ?? [];
      else if (head.header("content-length") !== undefined || !untilEnd) {
        used = Number(head.header("content-length") ?? 0);
        body = rest.length < used ? undefined : rest.subarray(0, used);
      }
      if (body === undefined) return;
      buffer = rest.subarray(used);
      each({ ...head, body, rest: () => { const left = buffer; buffer = Buffer.alloc(0); return left; } });
    }
  };
  /** What there is of a message that has not ended. */
  push.partial = () => buffer;
  return push;
}

/** The body of chunks and how many bytes it took, or nothing if it is not whole. */
function dechunk(bytes) {
  const parts = [];
  for (let at = 0; ;) {
    const line = bytes.indexOf("\r\n", at);
    if (line < 0) return undefined;
    const size = parseInt(bytes.subarray(at, line).toString(), 16);
    const next = line + 2 + size + 2;
    if (bytes.length < next) return undefined;
    if (size === 0) return [Buffer.concat(parts), next];
    parts.push(bytes.subarray(line + 2, line + 2 + size));
    at = next;
  }
}
