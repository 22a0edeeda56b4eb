// A client of the chat: in one room, by the gateway of its region while that is there, and by another one's while it is not.
//
//   node client.mjs USER ROOM GATEWAY…      what is typed is said; GATEWAY: ws://127.0.0.1:8080, the own region's first
//
// What it says it sends again, with the same id, until a backend has answered that it is stored and published. What is said
// in the room it shows once, whether it was published or comes from the history, and however often.

import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { SluicegateSocket } from "@sluicegate/client";
import WebSocket from "ws";

/** How many messages may wait to be acknowledged. */
const MAX_UNACKNOWLEDGED = 1_000;
/** After so many messages the backend is told how far the client is: a history then begins there. */
const TELL_EVERY = 200;
/** In milliseconds: how often the client looks at itself; how long it waits for an answer before it takes the next gateway,
 * and for a history that was promised before it asks for it; how often it looks whether its own region's is back. */
const [LOOK, PATIENCE, HOMESICK] = [500, 4_000, 3_000];
/** Close codes after which there is no other connection: it has ended itself, or sent what no chat is made of. */
const FINAL = [1000, 1002, 1003, 1007, 1008, 1009];

/**
 * `message`: { seq, id, user, text, live, position }, each once; in the order in which they came: sort by `seq`.
 * `gap`: something may be missing, until `history` has come. `acknowledged`: { id, seq }. `connected`: a gateway, by its
 * place in the list.
 */
export class Chat extends EventTarget {
  /** `options` are those of SluicegateSocket. */
  constructor(user, room, gateways, options = {}) {
    super();
    Object.assign(this, { user, room, gateways, options, at: 0, unacknowledged: new Map() });
    /** All messages up to `shown` were shown, and those of `ahead`; of `told` the backend was told. */
    Object.assign(this, { shown: undefined, ahead: new Set(), told: 0 });
    /** Since when a history is waited for. Until it is whole the place in what is published says nothing of what is before. */
    this.owed = Date.now();
    this.connect();
    this.timer = setInterval(() => this.look(), LOOK);
  }

  /** Says something. Returns the message's id; throws when too much waits. */
  say(text, id = randomUUID()) {
    if (this.unacknowledged.size >= MAX_UNACKNOWLEDGED) throw new Error("too much waits to be acknowledged");
    this.unacknowledged.set(id, text);
    this.send({ id, text });
    return id;
  }

  close() {
    clearInterval(this.timer);
    this.socket.close();
  }

  /** Whether it is connected, to its own region's gateway. */
  get isHome() {
    return this.at === 0 && this.socket.readyState === 1;
  }

  /** Connects: to go on from a place in what is published, or by the history alone. */
  connect(cursor = {}) {
    this.socket?.close();
    const address = () => {
      const asked = new URLSearchParams({ user: this.user });
      if (this.shown !== undefined) asked.set("after", this.shown);
      if (!this.owed && Object.keys(socket?.exportCursor() ?? cursor).length > 0) asked.set("place", 1);
      else this.owed ??= Date.now();
      return `${this.gateways[this.at]}/rooms/${this.room}?${asked}`;
    };
    const settings = { WebSocket, fallback: false, connectTimeoutMs: PATIENCE, backoff: { baseMs: 200, capMs: 2_000 } };
    let socket;
    const made = new SluicegateSocket(address, [], {
      ...settings, ...this.options, cursor, reconnect: ({ code }) => !FINAL.includes(code),
    });
    [socket, this.socket] = [made, made];
    /** What an earlier connection still says is nothing to this one. */
    const on = (type, listener) => made.addEventListener(type, (event) => this.socket === made && listener(event));
    on("open", () => {
      this.tell("connected", this.at);
      this.heard = Date.now();
      if (this.owed) this.owed = this.heard;
      for (const [id, text] of this.unacknowledged) this.send({ id, text });
    });
    on("disconnect", () => (this.at = (this.at + 1) % this.gateways.length));
    on("message", ({ data, channel, position }) => {
      const said = JSON.parse(data);
      if (channel) return this.show({ ...said, live: true, position });
      this.heard = Date.now();
      if (said.ack) return this.acknowledged(said);
      for (const message of said.history) this.show({ ...message, live: false });
      // A room in which nothing was said yet begins with 1.
      this.shown ??= 0;
      this.owed = said.more ? this.heard : undefined;
      this.tell("history", said);
    });
    on("gap", (event) => {
      this.owed = Date.now();
      this.tell("gap", event);
    });
  }

  /** Sends it now or not at all: what matters is sent again. A connection that is closing throws. */
  send(what) {
    try {
      if (this.socket.readyState === 1) this.socket.send(JSON.stringify(what));
    } catch (error) {
      if (error.name !== "InvalidStateError") throw error;
    }
  }

  acknowledged({ ack, seq }) {
    if (this.unacknowledged.delete(ack)) this.tell("acknowledged", { id: ack, seq });
  }

  /** Gives a message to the application, unless it has it. Numbers have no holes: what is missing is still to come. */
  show(message) {
    const { seq } = message;
    if (seq === 0 || seq <= this.shown || this.ahead.has(seq)) return this.tell("again", message);
    // The history that a newcomer gets begins where the room is for it.
    if (this.shown === undefined && !message.live) this.shown = seq - 1;
    this.ahead.add(seq);
    while (this.shown !== undefined && this.ahead.delete(this.shown + 1)) this.shown += 1;
    if (this.shown >= this.told + TELL_EVERY) this.send({ had: (this.told = this.shown) });
    this.tell("message", message);
  }

  /** What no event tells: that nothing comes. */
  look() {
    const now = Date.now();
    if (this.socket.readyState !== 1) return;
    if (now - this.owed > PATIENCE) return this.connect();
    if (this.unacknowledged.size === 0) this.heard = now;
    if (now - this.heard > PATIENCE) {
      this.at = (this.at + 1) % this.gateways.length;
      this.connect(this.socket.exportCursor());
    } else if (this.at !== 0 && !(now - this.looked < HOMESICK)) {
      this.looked = now;
      this.goHome();
    }
  }

  async goHome() {
    const home = this.gateways[0].replace(/^ws/, "http");
    const answer = await fetch(home, { signal: AbortSignal.timeout(PATIENCE) }).catch(() => undefined);
    await answer?.arrayBuffer().catch(() => {});
    if (!answer?.ok || this.at === 0 || this.socket.readyState !== 1) return;
    this.at = 0;
    this.connect(this.socket.exportCursor());
  }

  tell(type, detail) {
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [user, room, ...gateways] = process.argv.slice(2);
  if (gateways.length === 0) {
    console.error("usage: node client.mjs USER ROOM GATEWAY…");
    process.exit(2);
  }
  const chat = new Chat(user, room, gateways);
  chat.addEventListener("message", ({ detail: { seq, user: who, text } }) => console.log(`${seq} ${who}: ${text}`));
  chat.addEventListener("connected", ({ detail }) => console.error(`connected to ${gateways[detail]}`));
  chat.addEventListener("gap", () => console.error("something may be missing: it comes from the history"));
  createInterface({ input: process.stdin }).on("line", (line) => line && chat.say(line)).on("close", () => chat.close());
}
