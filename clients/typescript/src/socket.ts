// A WebSocket that comes back where it was.
//
//   CONNECTING --- a connection opens ---> OPEN
//       ^  |                                |
//       |  +-- it fails ---+    it is lost -+
//       |                  v                v
//       +---- a wait ---- is another worth it? -- no --> CLOSED
//
// `close()` of the application leads to CLOSED from everywhere.

import { DEFAULT_BACKOFF, isWorthRetrying, jittered, retryAfter, type Backoff } from "./backoff.js";
import { Positions, Recent, type Cursor } from "./cursor.js";
import {
  DisconnectEvent, GapEvent, SocketCloseEvent, SocketMessageEvent, SubscriptionEvent, type SluicegateSocketEventMap,
} from "./events.js";
import { agreed, offer, read, sizeOf, write, type Data, type Line } from "./lines.js";
import { watchPings, watchRefusals, type Refusal, type WebSocketConstructor, type WebSocketLike } from "./websocket.js";

/** Of a lost connection, for who decides whether another is worth it. */
export interface Loss {
  /** As a close event has it; 1006 for a connection that was never made. */
  code: number;
  reason: string;
  wasClean: boolean;
  /** The HTTP status that the server answered instead, where it can be seen. */
  status: number | undefined;
  /** How many tries have failed since a connection was last up for long; the first is 0. */
  attempt: number;
}

/** Settings, each with a default. */
export interface SluicegateSocketOptions {
  /** What makes connections. Default: the global `WebSocket`, which Node has from version 22 on; `ws` is another. */
  WebSocket?: WebSocketConstructor;
  /** Its third argument: for `ws`, headers and TLS. */
  webSocketOptions?: unknown;
  /**
   * Whether a lost connection is made anew. Default: after 1001, 1005, 1006 and 1011 to 1014, unless the server answered
   * with an HTTP status below 500 other than 408, 425 and 429. All other codes are for an end.
   */
  reconnect?: boolean | ((loss: Loss) => boolean);
  /** How long to wait before. */
  backoff?: Partial<Backoff>;
  /** How long a connection may take to open, in milliseconds. Default 15,000. 0 leaves that to the WebSocket. */
  connectTimeoutMs?: number;
  /** Messages that are sent while there is no connection wait, within these bounds. Default: `send` throws. */
  queue?: { maxMessages?: number; maxBytes?: number } | false;
  /** Positions to go on from, as {@link SluicegateSocket.exportCursor} gave them. */
  cursor?: Cursor;
  /** How many ids of messages are remembered, so that none is given twice. Default 1,024; 0 for none. */
  recentIds?: number;
  /** Without a subprotocol of the application: whether every second try goes without ours. Default true. */
  fallback?: boolean;
}

interface Queue {
  messages: Data[];
  bytes: number;
  maxMessages: number;
  maxBytes: number;
}

type Handler<K extends keyof SluicegateSocketEventMap> = ((event: SluicegateSocketEventMap[K]) => void) | null;

/** Statuses below 500 that say "later". */
const LATER = [408, 425, 429];

const QUEUE_MESSAGES = 100;
const QUEUE_BYTES = 1 << 20;
const CONNECT_TIMEOUT_MS = 15_000;
const RECENT_IDS = 1024;
/** How long a ping may be late. */
const PING_GRACE_MS = 5_000;

/** A WebSocket that is made anew when it is lost, and gets what it missed. The API is the WebSocket's, and more. */
export class SluicegateSocket extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSING = 2;
  readonly CLOSED = 3;

  /** How binary messages are given. */
  binaryType: "blob" | "arraybuffer" = "blob";

  readonly #address: string | URL | (() => string | URL);
  readonly #protocols: string[];
  readonly #options: SluicegateSocketOptions;
  readonly #backoff: Backoff;
  /** After how many milliseconds the gateway wants it back. */
  #moved: number | undefined;
  readonly #make: WebSocketConstructor;
  readonly #positions: Positions;
  readonly #recent: Recent;
  readonly #queue: Queue | undefined;
  readonly #handlers = new Map<string, EventListener>();
  #state: 0 | 1 | 2 | 3 = 0;
  #socket: WebSocketLike | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #url = "";
  #protocol = "";
  #resumable = false;
  #wasResumable = false;
  #connectionId: string | undefined;
  #attempt = 0;
  #failures = 0;
  #openedAt: number | undefined;
  #heardAt = 0;
  /** Whether the server's pings can be seen, so that silence means something. */
  #seesPings = false;
  #refusal: Refusal | undefined;
  /** Channels whose positions the gateway was not told. */
  #untold = new Set<string>();
  /** What the application has ended this with, or what is wrong with what came. */
  #ending: { code: number; reason: string } | undefined;

  /**
   * Connects. `url` may be a function, which is asked before each connection: for a token that runs out. `protocols` are
   * the application's.
   *
   * Throws where the WebSocket's constructor does, and when there is no WebSocket.
   */
  constructor(url: string | URL | (() => string | URL), protocols: string | string[] = [], options: SluicegateSocketOptions = {}) {
    super();
    const make = options.WebSocket ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
    if (!make) throw new TypeError("there is no global WebSocket: give one as options.WebSocket");
    this.#make = make;
    this.#address = url;
    this.#protocols = typeof protocols === "string" ? [protocols] : [...protocols];
    this.#options = options;
    this.#backoff = { ...DEFAULT_BACKOFF, ...options.backoff };
    this.#positions = new Positions(options.cursor);
    this.#recent = new Recent(options.recentIds ?? RECENT_IDS);
    if (options.queue) {
      const { maxMessages = QUEUE_MESSAGES, maxBytes = QUEUE_BYTES } = options.queue;
      this.#queue = { messages: [], bytes: 0, maxMessages, maxBytes };
    }
    this.#connect();
  }

  /** CONNECTING also while a lost connection is made anew. */
  get readyState(): 0 | 1 | 2 | 3 {
    return this.#state;
  }

  get url(): string {
    return this.#url;
  }

  /** The application's subprotocol, as the server accepted it. */
  get protocol(): string {
    return this.#protocol;
  }

  get extensions(): string {
    return this.#socket?.extensions ?? "";
  }

  /** What was not sent yet, in bytes, with what waits for a connection. */
  get bufferedAmount(): number {
    return (this.#socket?.bufferedAmount ?? 0) + (this.#queue?.bytes ?? 0);
  }

  /** Whether the connection can be resumed. `false` until the first is open, and behind a server without the subprotocol. */
  get resumable(): boolean {
    return this.#resumable;
  }

  /** The connection's id in the gateway's log, when it is resumable. */
  get connectionId(): string | undefined {
    return this.#connectionId;
  }

  /**
   * Sends a message. While there is no connection it waits where the option `queue` is set, or this throws
   * `InvalidStateError`; when the queue is full, `QuotaExceededError`. After `close()` it is dropped, as a WebSocket does.
   *
   * What was sent when a connection is lost may or may not have arrived; it is not sent again.
   */
  send(data: Data): void {
    if (this.#state === 1 && this.#socket?.readyState === 1) {
      this.#socket.send(this.#resumable ? write(data) : data);
      return;
    }
    if (this.#state >= 2) return;
    const queue = this.#queue;
    if (!queue) throw new DOMException("there is no connection", "InvalidStateError");
    const bytes = sizeOf(data);
    if (queue.messages.length >= queue.maxMessages || queue.bytes + bytes > queue.maxBytes) {
      throw new DOMException("too much waits for a connection", "QuotaExceededError");
    }
    queue.messages.push(data);
    queue.bytes += bytes;
  }

  /** Ends it: no other connection is made. Throws as a WebSocket's does, at a code that is none to send or a long reason. */
  close(code = 1000, reason = ""): void {
    if (code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException("a code to close with is 1000 or 3000 to 4999", "InvalidAccessError");
    }
    if (sizeOf(reason) > 123) throw new DOMException("the reason is over 123 bytes", "SyntaxError");
    this.#end(code, reason);
  }

  /** Where this client is, to be given to another as the option `cursor`: that of the next page, for one. */
  exportCursor(): Cursor {
    return this.#positions.export();
  }

  override addEventListener<K extends keyof SluicegateSocketEventMap>(
    type: K, listener: ((event: SluicegateSocketEventMap[K]) => void) | null, options?: boolean | AddEventListenerOptions): void;
  override addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  override addEventListener(type: string, listener: any, options?: boolean | AddEventListenerOptions): void {
    super.addEventListener(type, listener, options);
  }

  get onopen(): Handler<"open"> { return this.#handler("open"); }
  set onopen(handler: Handler<"open">) { this.#setHandler("open", handler); }
  get onmessage(): Handler<"message"> { return this.#handler("message"); }
  set onmessage(handler: Handler<"message">) { this.#setHandler("message", handler); }
  get onerror(): Handler<"error"> { return this.#handler("error"); }
  set onerror(handler: Handler<"error">) { this.#setHandler("error", handler); }
  get onclose(): Handler<"close"> { return this.#handler("close"); }
  set onclose(handler: Handler<"close">) { this.#setHandler("close", handler); }
  get ondisconnect(): Handler<"disconnect"> { return this.#handler("disconnect"); }
  set ondisconnect(handler: Handler<"disconnect">) { this.#setHandler("disconnect", handler); }
  get ongap(): Handler<"gap"> { return this.#handler("gap"); }
  set ongap(handler: Handler<"gap">) { this.#setHandler("gap", handler); }
  get onsubscription(): Handler<"subscription"> { return this.#handler("subscription"); }
  set onsubscription(handler: Handler<"subscription">) { this.#setHandler("subscription", handler); }

  #handler<K extends keyof SluicegateSocketEventMap>(type: K): Handler<K> {
    return (this.#handlers.get(type) as Handler<K> | undefined) ?? null;
  }

  #setHandler<K extends keyof SluicegateSocketEventMap>(type: K, handler: Handler<K>): void {
    const before = this.#handlers.get(type);
    if (before) super.removeEventListener(type, before);
    this.#handlers.delete(type);
    if (typeof handler !== "function") return;
    this.#handlers.set(type, handler as EventListener);
    super.addEventListener(type, handler as EventListener);
  }

  #connect(): void {
    const url = typeof this.#address === "function" ? this.#address() : this.#address;
    const socket = this.#open(url, this.#offer());
    // A relative one is made absolute there.
    this.#url = socket.url || String(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#refusal = undefined;
    this.#connectionId = undefined;
    this.#seesPings = watchPings(socket, () => (this.#heardAt = Date.now()));
    watchRefusals(socket, (refusal) => (this.#refusal = refusal));
    socket.onopen = () => this.#opened(socket);
    socket.onmessage = ({ data }: { data: string | ArrayBuffer }) => this.#received(data);
    socket.onerror = () => this.dispatchEvent(new Event("error"));
    socket.onclose = ({ code, reason, wasClean }: { code: number; reason: string; wasClean: boolean }) =>
      this.#lost({ code, reason: String(reason ?? ""), wasClean });
    const patience = this.#options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
    if (patience > 0) this.#timer = setTimeout(() => this.#giveUp(socket), patience);
  }

  #open(url: string | URL, protocols: string[]): WebSocketLike {
    const { webSocketOptions } = this.#options;
    if (webSocketOptions !== undefined) return new this.#make(url, protocols, webSocketOptions);
    return protocols.length > 0 ? new this.#make(url, protocols) : new this.#make(url);
  }

  /** A server without the subprotocol answers none, and then the WebSocket refuses what it answers, without saying so. */
  #offer(): string[] {
    const plainly = this.#protocols.length === 0 && this.#options.fallback !== false && !this.#wasResumable;
    return plainly && this.#failures % 2 === 1 ? [] : offer(this.#protocols);
  }

  #opened(socket: WebSocketLike): void {
    clearTimeout(this.#timer);
    this.#openedAt = Date.now();
    this.#failures = 0;
    const { protocol, resumable } = agreed(socket.protocol);
    this.#protocol = protocol;
    this.#resumable = resumable;
    if (resumable) {
      this.#wasResumable = true;
      const { sent, left } = this.#positions.resume();
      this.#untold = left;
      const first = Object.keys(sent).length === 0 ? { t: "new" } : { t: "resume", ch: sent };
      socket.send(`${JSON.stringify(first)}\n`);
    }
    this.#state = 1;
    const queue = this.#queue;
    if (queue) {
      for (const data of queue.messages) socket.send(resumable ? write(data) : data);
      queue.messages = [];
      queue.bytes = 0;
    }
    this.dispatchEvent(new Event("open"));
    if (!resumable) {
      // Nobody will say what was missed.
      for (const channel of this.#positions.channels()) {
        this.dispatchEvent(new GapEvent({ channel, why: "not_resumable" }));
      }
    }
  }

  #received(data: string | ArrayBuffer): void {
    if (this.#state !== 1) return;
    this.#heardAt = Date.now();
    if (!this.#resumable) return this.#give(data, {});
    try {
      const { line, payload } = read(data);
      if (line === undefined) this.#give(payload, {});
      else if (line.t === undefined) this.#delivered(line, payload);
      else this.#told(line);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      // A page may send no 1002.
      this.#end(4002, "the gateway broke the subprotocol");
    }
  }

  #give(payload: string | ArrayBuffer, of: ConstructorParameters<typeof SocketMessageEvent>[2]): void {
    const data = typeof payload !== "string" && this.binaryType === "blob" ? new Blob([payload]) : payload;
    this.dispatchEvent(new SocketMessageEvent(data, this.#origin(), of));
  }

  #origin(): string {
    try {
      return new URL(this.#url).origin;
    } catch {
      return "";
    }
  }

  #delivered({ c: channel, p: position, i: id, ts: storedAt }: Line, payload: string | ArrayBuffer): void {
    if (typeof channel !== "string" || typeof position !== "string") throw new SyntaxError("a header line without a position");
    if (this.#positions.has(channel, position)) return;
    if (id === undefined || this.#recent.add(`${channel}\n${id}`)) this.#give(payload, { channel, position, id, storedAt });
    // Behind the listeners: what they have not seen is asked for again.
    this.#positions.set(channel, position);
  }

  #told(line: Line): void {
    const channel = line.c ?? "";
    if (line.t === "hello") {
      this.#connectionId = line.cid;
      if (this.#seesPings && line.ping && this.#socket) this.#listen(this.#socket, 2 * line.ping + PING_GRACE_MS);
    } else if (line.t === "sub") {
      const told = !this.#untold.delete(channel);
      if (!told && line.s === "live") this.dispatchEvent(new GapEvent({ channel, why: "limit" }));
      if (line.n === 0) for (const head of line.h ?? []) this.#positions.set(channel, head);
      this.dispatchEvent(new SubscriptionEvent(channel, line.s ?? "", line.n ?? 0));
    } else if (line.t === "moved") {
      this.#moved = Math.min(Math.max(Number(line.after_ms) || 0, 0), this.#backoff.capMs);
    } else if (line.t === "pos") {
      this.#positions.set(channel, line.p ?? "");
    } else if (line.t === "gap") {
      const { r: region, from, to } = line;
      this.dispatchEvent(new GapEvent({ channel, region, why: line.why ?? "", from, to }));
      if (to !== undefined) this.#positions.set(channel, to);
      else this.#positions.forget(channel, region ?? "", from);
    }
  }

  /** Gives a connection up on which nothing comes for so long: the gateway would have pinged it. */
  #listen(socket: WebSocketLike, patienceMs: number): void {
    const silent = Date.now() - this.#heardAt;
    if (silent >= patienceMs) return this.#giveUp(socket);
    this.#timer = setTimeout(() => this.#listen(socket, patienceMs), patienceMs - silent);
  }

  /** It does not open, or is dead, and its close may not come either. */
  #giveUp(socket: WebSocketLike): void {
    this.#drop(socket);
    this.dispatchEvent(new Event("error"));
    this.#lost({ code: 1006, reason: "", wasClean: false });
  }

  #drop(socket: WebSocketLike): void {
    socket.onopen = socket.onmessage = socket.onclose = null;
    // `ws` throws what nobody listens for.
    socket.onerror = () => {};
    const { terminate } = socket as { terminate?: () => void };
    if (typeof terminate === "function") terminate.call(socket);
    else socket.close();
  }

  #lost(loss: { code: number; reason: string; wasClean: boolean }): void {
    clearTimeout(this.#timer);
    const now = Date.now();
    const refusal = this.#refusal;
    if (this.#openedAt !== undefined && now - this.#openedAt >= this.#backoff.resetAfterMs) this.#attempt = 0;
    // A refusal by HTTP says nothing of the subprotocol.
    if (this.#openedAt === undefined && !refusal) this.#failures += 1;
    this.#openedAt = undefined;
    this.#socket = undefined;
    const full = { ...loss, status: refusal?.status, attempt: this.#attempt };
    if (this.#ending || !this.#wantsAnother(full)) {
      this.#state = 2;
      this.dispatchEvent(new DisconnectEvent(full, undefined));
      return this.#closed(loss.code, loss.reason, loss.wasClean);
    }
    this.#state = 0;
    // A gateway that ends has said when to come back, by chance and for each client.
    const wait = this.#moved ?? (retryAfter(refusal?.retryAfter, now) ?? 0) + jittered(this.#backoff, this.#attempt, Math.random);
    this.#moved = undefined;
    this.#attempt += 1;
    // Before the event: a listener may close.
    this.#timer = setTimeout(() => this.#again(), wait);
    this.dispatchEvent(new DisconnectEvent(full, wait));
  }

  #again(): void {
    try {
      this.#connect();
    } catch {
      // What the first time was sound, such as an address from a function, is not any more.
      this.dispatchEvent(new Event("error"));
      this.#lost({ code: 1006, reason: "", wasClean: false });
    }
  }

  #wantsAnother(loss: Loss): boolean {
    const { reconnect = true } = this.#options;
    if (typeof reconnect === "function") return reconnect(loss);
    const { code, status } = loss;
    const refused = status !== undefined && status < 500 && !LATER.includes(status);
    return reconnect && isWorthRetrying(code) && !refused;
  }

  #end(code: number, reason: string): void {
    if (this.#state >= 2) return;
    this.#ending = { code, reason };
    const socket = this.#socket;
    const wasOpen = this.#state === 1;
    this.#state = 2;
    clearTimeout(this.#timer);
    if (socket && wasOpen) return socket.close(code, reason);
    if (socket) this.#drop(socket);
    this.#socket = undefined;
    // As a WebSocket that is closed before it is open, and later than the call.
    queueMicrotask(() => this.#closed(1006, "", false));
  }

  #closed(code: number, reason: string, wasClean: boolean): void {
    if (this.#state === 3) return;
    this.#state = 3;
    if (this.#queue) {
      this.#queue.messages = [];
      this.#queue.bytes = 0;
    }
    this.dispatchEvent(new SocketCloseEvent(code, reason, wasClean));
  }
}
