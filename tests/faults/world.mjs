// A run: gateways on one engine, a backend, publishers that insist, sessions that come back, and the history of it all.

import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import http from "node:http";
import WebSocket from "ws";
import { eventually, gateway, total } from "../support.mjs";
import { Redis, backend, relay } from "./servers.mjs";

/** How long what was published may take to come to everyone, in milliseconds. */
const DEADLINE = 20_000;

/** Numbers that look random, and are the same for the same seed (mulberry32). */
export function randomness(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return { between: (low, high) => low + Math.floor(next() * (high - low + 1)) };
}

/**
 * How a session says where it was, and reads what it gets. Here the application does both: the session tells its backend
 * the ids of what it had last, and messages carry their ids.
 */
export const byApplication = {
  open: (base, places, options) => new WebSocket(`${base}/s?ask=${encodeURIComponent(JSON.stringify([...places]))}`, options),
  read(text, places) {
    const { gap, channel, mid } = JSON.parse(text);
    if (gap !== undefined) return { e: "gap", channel: gap };
    places.set(channel, mid);
    return { e: "deliver", channel, mid };
  },
};

export const configuration = (port, engine, { window, rule }) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
shutdown: { delay: 0s, drain: 4s, spread: 1s }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
backplane:
  engine: ${engine}
  publish: { bind: "127.0.0.1:0" }
  history: { max_messages: ${window}, max_bytes: 32MiB }
rules:
  - { name: plain, match: { path_prefix: /plain }, upstream: app }
  - { name: rooms, upstream: app, backplane: grip${rule} }
`;

export class World {
  /**
   * `engine` is `memory` or `redis`; `pause` what a publisher waits between two items, in milliseconds; `sessions` how
   * many there are, each of two channels but for those of `extra`, which have `{ name, channels, group, gate }`.
   */
  static async start(options) {
    const world = new this();
    const defaults = { sessions: 12, channels: ["a", "b", "c"], pause: [4, 16], redisArgs: [], extra: [], window: 5_000, rule: "", way: byApplication };
    Object.assign(world, { ...defaults, ...options }, { records: [], runners: [], live: [], plain: [], ops: 0, conns: 0, underway: 0, unanswered: new Set() });
    world.random = randomness(world.seed);
    world.record({ e: "run", dedupe_ms: 300_000, seed: world.seed, fault: world.title, engine: world.engine });
    world.cleanup = [];
    try {
      await world.open();
    } catch (error) {
      await world.stop();
      throw error;
    }
    return world;
  }

  async open() {
    this.app = await backend();
    this.cleanup.push(() => this.app.stop());
    if (this.engine === "redis") {
      this.redis = await Redis.start(...this.redisArgs);
      this.cleanup.push(() => this.redis.stop());
      this.way_in = await relay(this.redis.port);
      this.cleanup.push(() => this.way_in.stop());
    }
    this.gates = [];
    this.cleanup.push(() => Promise.all(this.gates.map((gate) => gate.kill())));
    for (let at = 0; at < (this.engine === "redis" ? 2 : 1); at += 1) this.gates.push(await this.gate());
    for (let at = 0; at < this.sessions; at += 1) {
      const channels = this.channels.filter((_, nth) => nth !== at % this.channels.length || this.channels.length === 1);
      this.begin({ name: `s${at}`, channels, group: "fast", gate: at, deflate: at % 4 === 3 });
    }
    for (const extra of this.extra) this.begin(extra);
    await this.primed();
  }

  /** A gateway, with where it takes publications. */
  async gate() {
    const engine = this.engine === "memory" ? "memory" : `{ redis: { url: "redis://127.0.0.1:${this.way_in.port}" } }`;
    const gate = await gateway(configuration(this.app.port, engine, this));
    const kill = async () => {
      gate.child.kill("SIGCONT");
      gate.child.kill("SIGKILL");
      // Also removes its folder.
      await gate.stop();
    };
    const { address } = await gate.line({ event: "listening", listener: "publish" });
    if (this.engine === "redis") {
      await gate.metric("sluicegate_region_up", {}, 1).catch(async (error) => {
        await kill();
        throw new Error(`the gateway does not reach Redis: ${JSON.stringify(gate.log.slice(-3))}`, { cause: error });
      });
    }
    return { ...gate, kill, port: Number(address.split(":").at(-1)), agent: new http.Agent({ keepAlive: true }) };
  }

  /** A session begins. */
  begin(session) {
    this.live.push(new Session(this, session));
  }

  record(entry) {
    this.records.push({ t: performance.now(), ...entry });
  }

  /** One try to publish. Answers what became of it: `ok`, `fail` or `info`. */
  publish(channel, mid, at, padding = 0) {
    const gate = this.gates[at % this.gates.length];
    const op = (this.ops += 1);
    this.unanswered.add(op);
    this.record({ e: "publish", op, channel, mid, via: at % this.gates.length });
    const content = JSON.stringify({ channel, mid, padding: "x".repeat(padding) });
    const body = JSON.stringify({ items: [{ channel, id: mid, formats: { "ws-message": { content } } }] });
    return new Promise((resolve) => {
      const settle = (outcome, status) => {
        this.record({ e: "answer", op, outcome, status });
        this.unanswered.delete(op);
        resolve(outcome);
      };
      const options = { port: gate.port, host: "127.0.0.1", path: "/publish", method: "POST", agent: gate.agent, timeout: 4_000 };
      const request = http.request(options, (response) => {
        response.resume();
        // A 503 says that it may be stored; whoever goes on with another item has given it up.
        response.once("end", () => settle(response.statusCode === 200 ? "ok" : "fail", response.statusCode));
        response.once("error", () => settle("info", 0));
      });
      request.once("timeout", () => request.destroy());
      request.once("error", () => settle("info", 0));
      request.end(body);
    });
  }

  /** Publishes until it is acknowledged, by one gateway and the other. */
  async insist(channel, mid, padding = 0, tries = 400) {
    for (let at = this.random.between(0, this.gates.length - 1), end = at + tries; at < end; at += 1) {
      if ((await this.publish(channel, mid, at, padding)) === "ok") return true;
      await sleep(50);
    }
    return false;
  }

  /** From now on every channel has a publisher; each gives an item up now and then, and goes on. */
  traffic() {
    this.running = true;
    for (const channel of this.channels) {
      this.runners.push((async () => {
        for (let nth = 0; this.running; nth += 1) {
          await this.held;
          this.underway += 1;
          const patient = this.random.between(0, 3) > 0;
          await this.insist(channel, `${channel}-${nth}`, this.random.between(0, 200), patient ? 400 : 2);
          this.underway -= 1;
          await sleep(this.random.between(...this.pause));
        }
      })());
    }
  }

  /** Waits for the answers to what is asked for now. */
  answered() {
    const asked = [...this.unanswered];
    return eventually(() => asked.filter((op) => this.unanswered.has(op)).length, (count) => count === 0);
  }

  /** Does something while nothing is being published. */
  async quietly(what) {
    let go;
    this.held = new Promise((resolve) => (go = resolve));
    await eventually(() => this.underway, (count) => count === 0);
    await what();
    go();
  }

  /** From now on sessions lose their connections now and then. */
  churn(every = [40, 160]) {
    this.runners.push((async () => {
      while (this.running) {
        await sleep(this.random.between(...every));
        const fast = this.live.filter(({ group, away }) => group === "fast" && !away);
        fast[this.random.between(0, fast.length - 1)].socket?.terminate();
      }
    })());
  }

  /** Connections of a rule without a backplane, which are asked all the time, at this gateway. */
  plainAt(at, count = 2) {
    for (let nth = 0; nth < count; nth += 1) {
      const conn = `p${at}-${nth}`;
      const socket = new WebSocket(`${this.gates[at].ws}/plain`);
      this.plain.push(socket);
      let id = 0;
      const next = () => {
        if (this.closing) return;
        this.record({ e: "ask", conn, id: (id += 1) });
        socket.send(String(id));
      };
      socket.on("open", next);
      socket.on("error", () => {});
      socket.on("message", (data) => {
        this.record({ e: "reply", conn, id: Number(data) });
        setTimeout(next, 50);
      });
      socket.on("close", () => this.over || this.record({ e: "cut", conn }));
    }
  }

  fault(name, phase, more = {}) {
    this.record({ e: "fault", name, phase, ...more });
  }

  /** Publishes until everyone has got something of each of their channels. */
  async primed(prefix = "first") {
    const wanting = () => this.live.filter(({ away }) => !away).flatMap((session) =>
      session.channels.filter((channel) => !session.got.some(([of, mid]) => of === channel && mid.startsWith(prefix))));
    const end = Date.now() + DEADLINE;
    for (let nth = 0; Date.now() < end; nth += 1) {
      const channels = new Set(wanting());
      if (channels.size === 0) return true;
      await Promise.all([...channels].map((channel) => this.insist(channel, `${prefix}-${nth}`)));
      await sleep(100);
    }
    return false;
  }

  /** Publishes the last of each channel, and answers what these are: behind them nothing is to come any more. */
  async publishEnds(channels) {
    await Promise.all([...channels].map((channel) => this.insist(channel, "end")));
    return ["end"];
  }

  /** Ends the traffic, lets everything come that is to come, and closes the history. */
  async settle() {
    this.running = false;
    await Promise.all(this.runners);
    await this.primed("last");
    const channels = new Set(this.live.flatMap((session) => session.channels));
    const ends = await this.publishEnds(channels);
    const waiting = () => this.live.some((session) => session.channels.some((channel) => ends.some((end) => !session.ends.has(`${channel} ${end}`))));
    this.closing = true;
    const asked = () => this.records.filter(({ e }) => e === "ask").length - this.records.filter(({ e }) => e === "reply").length;
    const end = Date.now() + DEADLINE;
    while (Date.now() < end && (waiting() || asked() > 0)) await sleep(20);
    this.record({ e: "settled" });
    this.over = true;
  }

  async stop() {
    [this.running, this.over, this.closing] = [false, true, true];
    await Promise.all(this.runners);
    for (const socket of this.plain) socket.terminate();
    for (const session of this.live) session.end();
    for (const clean of (this.cleanup ?? []).reverse()) await clean();
  }

  /** Ends all processes of the run, at once. */
  killAll() {
    for (const { child } of [...this.gates, this.redis ?? {}]) child?.kill("SIGKILL");
  }

  /** What the gateways counted, over those that live. */
  async metric(name, labels) {
    const texts = await Promise.all(this.gates.map((gate) => gate.metrics()));
    return texts.reduce((sum, text) => sum + total(text, name, labels), 0);
  }
}

/** A user: one connection after the other, each of which goes on where the last one was. */
export class Session {
  constructor(world, { name, channels, group, gate, deflate = false }) {
    Object.assign(this, { deflate, world, name, channels, group, at: gate ?? 0, got: [], codes: [], away: false, ended: false });
    this.places = new Map(channels.map((channel) => [channel, null]));
    this.ends = new Set();
    world.record({ e: "session", session: name, channels, group });
    this.connect();
  }

  connect() {
    const { world, name: session } = this;
    if (this.ended || this.away) return;
    const at = this.at % world.gates.length;
    const conn = (world.conns += 1);
    const socket = world.way.open(world.gates[at].ws, this.places, { perMessageDeflate: this.deflate });
    this.socket = socket;
    world.record({ e: "connect", session, conn, via: at });
    for (const [channel, cursor] of this.places) {
      world.record({ e: "resume", session, conn, channel, cursor: cursor instanceof Map ? [...cursor.values()].join(" ") : cursor });
    }
    socket.on("message", (data) => {
      // What was underway when the session went to another connection is not lost: it asks for it again.
      if (this.socket !== socket || world.over) return;
      const entry = world.way.read(String(data), this.places);
      if (!entry) return;
      world.record({ ...entry, session, conn });
      if (entry.e === "deliver") {
        this.got.push([entry.channel, entry.mid]);
        if (entry.mid.startsWith("end")) this.ends.add(`${entry.channel} ${entry.mid}`);
      }
    });
    socket.on("error", () => {});
    socket.once("close", (code) => {
      this.codes.push(code);
      if (!world.over) world.record({ e: "close", session, conn, code });
      if (this.socket !== socket) return;
      this.socket = undefined;
      this.at += 1;
      this.timer = setTimeout(() => this.connect(), world.random.between(10, 120));
    });
  }

  /** Loses its connection and stays away. */
  async leave() {
    this.away = true;
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = undefined;
    if (!socket) return;
    const closed = once(socket, "close");
    socket.terminate();
    await closed;
  }

  comeBack() {
    this.away = false;
    this.connect();
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket?.terminate();
  }
}
