// Messages of the subprotocol sluicegate.v1: a header line, which is JSON or empty, a line feed, and the payload.

/** The subprotocol without one of the application. */
export const SUBPROTOCOL = "sluicegate.v1";

/** What is sent to a WebSocket. */
export type Data = string | ArrayBufferLike | ArrayBufferView | Blob;

/** A header line, as far as it is known here. */
export interface Line {
  t?: string;
  c?: string;
  p?: string;
  i?: string;
  ts?: number;
  cid?: string;
  ping?: number;
  h?: string[];
  s?: string;
  n?: number;
  r?: string;
  why?: string;
  from?: string;
  to?: string;
  after_ms?: number;
}

/** A message as its line, `undefined` for an empty one, and its payload. */
export interface Message {
  line: Line | undefined;
  payload: string | ArrayBuffer;
}

/** Reads a message of the server's. Throws at what is none of the subprotocol. */
export function read(data: string | ArrayBuffer): Message {
  if (typeof data === "string") {
    const end = data.indexOf("\n");
    if (end < 0) throw new SyntaxError("a message without a header line");
    return { line: end === 0 ? undefined : parse(data.slice(0, end)), payload: data.slice(end + 1) };
  }
  const bytes = new Uint8Array(data);
  const end = bytes.indexOf(10);
  if (end < 0) throw new SyntaxError("a message without a header line");
  const line = end === 0 ? undefined : parse(new TextDecoder().decode(bytes.subarray(0, end)));
  return { line, payload: data.slice(end + 1) };
}

function parse(text: string): Line {
  const line: unknown = JSON.parse(text);
  if (typeof line !== "object" || line === null || Array.isArray(line)) throw new SyntaxError("a header line that is no object");
  return line;
}

/** A message of the application with the empty line in front. */
export function write(data: Data): Data {
  if (typeof data === "string") return `\n${data}`;
  if (typeof Blob !== "undefined" && data instanceof Blob) return new Blob(["\n", data]);
  const bytes = ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data as ArrayBufferLike);
  const message = new Uint8Array(bytes.length + 1);
  message[0] = 10;
  message.set(bytes, 1);
  return message;
}

/** How many bytes of payload a message has. */
export function sizeOf(data: Data): number {
  if (typeof data === "string") return new TextEncoder().encode(data).length;
  if (typeof Blob !== "undefined" && data instanceof Blob) return data.size;
  return (data as ArrayBufferLike | ArrayBufferView).byteLength;
}

/** The subprotocols to offer for those of the application: each within ours, then each by itself for a server without it. */
export function offer(protocols: string[]): string[] {
  return protocols.length === 0 ? [SUBPROTOCOL] : [...protocols.map((name) => `${SUBPROTOCOL}.${name}`), ...protocols];
}

/** What the server has agreed to: the application's subprotocol, and whether it is within ours. */
export function agreed(protocol: string): { protocol: string; resumable: boolean } {
  if (protocol === SUBPROTOCOL) return { protocol: "", resumable: true };
  const within = `${SUBPROTOCOL}.`;
  return protocol.startsWith(within)
    ? { protocol: protocol.slice(within.length), resumable: true }
    : { protocol, resumable: false };
}
