// Regions on one machine: of each a gateway, a Redis, a backend, and between all of them links that are as slow as the sea
// is wide, and break. One PostgreSQL for all backends.
//
// Every connection between two processes has a link of its own, so that a process may come back on another port, and
// whatever belongs to a region can be cut off:
//
//   links.redis[eu][us]     from the gateway of eu to the Redis of us
//   links.client[eu][us]    from clients in eu to the gateway of us
//   links.publish[eu], links.app[eu], links.database[eu]     within eu: backend to gateway, gateway to backend; the database
//
// What is here can be used by any test that wants regions: give it configurations with addresses of its own.

import { spawn } from "node:child_process";
import { firstLine, gateway, total } from "../support.mjs";
import { Redis } from "../faults/servers.mjs";
import { link } from "../links.mjs";
import { Postgres } from "./postgres.mjs";

/** The last lines of a backend that are kept, for a failure. */
const KEPT_LINES = 40;

/** Waits for all, also when one fails: nothing is started any more when the world is stopped. Throws the first failure. */
export async function all(promises) {
  for (const { status, reason } of await Promise.allSettled(promises)) if (status === "rejected") throw reason;
}

export class Regions {
  /**
   * Starts the regions of `configurations`: { NAME: YAML }, in which each address is one of `addresses`: { PUBLIC, ADMIN,
   * PUBLISH, APP, REDIS: { NAME: "127.0.0.1:1" } }. `delay` is that of each way between two regions, in milliseconds.
   * `backend` is a script that prints {"listening": PORT} and is told of DATABASE and PUBLISH. `onWorld` is given the
   * world before its first process starts, so that {@link killAll} can end them.
   */
  static async start({ configurations, addresses, delay = 90, backend, random = Math.random, onWorld = () => {} }) {
    const world = new Regions();
    onWorld(world);
    Object.assign(world, { configurations, addresses, delay, script: backend, random });
    Object.assign(world, { names: Object.keys(configurations), redis: {}, gates: {}, backends: {}, links: {}, complaints: [], children: new Set(), starting: new Set() });
    try {
      await world.open();
    } catch (error) {
      await world.stop();
      throw error;
    }
    return world;
  }

  async open() {
    const { names, random } = this;
    await this.begin(async () => (this.postgres = await Postgres.start()));
    const far = (from, to) => (from === to ? {} : { there: { delay: this.delay }, back: { delay: this.delay }, random });
    for (const kind of ["redis", "client"]) {
      this.links[kind] = {};
      for (const from of names) {
        this.links[kind][from] = {};
        for (const to of names) this.links[kind][from][to] = await link(1, far(from, to));
      }
    }
    for (const kind of ["publish", "app", "database"]) {
      this.links[kind] = {};
      for (const name of names) this.links[kind][name] = await link(kind === "database" ? this.postgres.port : 1);
    }
    await all(names.map((name) => this.startRedis(name)));
    await all(names.map((name) => this.startBackend(name)));
    await all(names.map((name) => this.startGate(name)));
    for (const name of names) await this.gates[name].metric("sluicegate_region_up", {}, names.length);
  }

  /** The addresses at which clients of a region reach the gateways, their own first. */
  gatewaysFor(region) {
    const at = this.names.indexOf(region);
    const order = [...this.names.slice(at), ...this.names.slice(0, at)];
    return order.map((to) => ({ region: to, url: `ws://127.0.0.1:${this.links.client[region][to].port}` }));
  }

  /** A Redis that keeps nothing on disk: killed and started again it is empty. */
  startRedis(name) {
    return this.begin(() => this.redisOf(name));
  }

  startGate(name) {
    return this.begin(() => this.gateOf(name));
  }

  startBackend(name) {
    return this.begin(() => this.backendOf(name));
  }

  /** Starts something, unless all is being stopped; that waits until it is there, to stop it too. */
  async begin(start) {
    if (this.stopping) throw new Error("the world is being stopped");
    const promise = start();
    this.starting.add(promise);
    try {
      return await promise;
    } finally {
      this.starting.delete(promise);
    }
  }

  async redisOf(name) {
    this.redis[name] = await Redis.start();
    this.children.add(this.redis[name].child);
    for (const from of this.names) this.links.redis[from][name].to(this.redis[name].port);
  }

  async gateOf(name) {
    const gate = await gateway(this.configuration(name));
    this.children.add(gate.child);
    this.gates[name] = gate;
    const port = async (listener) => Number((await gate.line({ event: "listening", listener })).address.split(":").at(-1));
    this.links.publish[name].to(await port("publish"));
    for (const from of this.names) this.links.client[from][name].to(gate.port);
  }

  /** What is shipped, with the addresses of this run in the place of its own. */
  configuration(name) {
    const { PUBLIC, ADMIN, PUBLISH, APP, REDIS } = this.addresses;
    const places = new Map([PUBLIC, ADMIN, PUBLISH].map((kind) => [kind[name], "127.0.0.1:0"]));
    places.set(APP[name], `127.0.0.1:${this.links.app[name].port}`);
    for (const to of this.names) places.set(REDIS[to], `127.0.0.1:${this.links.redis[name][to].port}`);
    const used = new Set();
    const text = this.configurations[name].replace(/127\.0\.0\.1:\d+/g, (address) => {
      if (!places.has(address)) throw new Error(`${name}: ${address} is nobody's address`);
      used.add(address);
      return places.get(address);
    });
    if (used.size !== places.size) throw new Error(`${name}: not all addresses are used: ${[...places.keys()]}`);
    return text;
  }

  async backendOf(name) {
    const env = {
      ...process.env,
      PORT: "0",
      DATABASE: `postgres://chat@127.0.0.1:${this.links.database[name].port}/chat`,
      PUBLISH: `http://127.0.0.1:${this.links.publish[name].port}/publish`,
    };
    const child = spawn(process.execPath, [this.script], { env, stdio: ["ignore", "pipe", "pipe"] });
    this.children.add(child);
    const exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
    child.stderr.on("data", (text) => (this.complaints = [...this.complaints, `${name}: ${text}`].slice(-KEPT_LINES)));
    this.backends[name] = { child, exited };
    const { listening } = JSON.parse(await firstLine(child).catch((error) => {
      throw new Error(`${error.message}: ${this.complaints.join("")}`);
    }));
    this.links.app[name].to(listening);
  }

  /** The regions whose gateways do not reach the engines of all regions. */
  async unread() {
    const up = await Promise.all(this.names.map(async (name) => total(await this.gates[name].metrics(), "sluicegate_region_up")));
    return this.names.filter((_, at) => up[at] < this.names.length);
  }

  /** Ends a gateway and waits until it has ended. SIGTERM drains it. */
  async endGate(name, signal) {
    const { child, exited } = this.gates[name];
    child.kill(signal);
    await exited;
    // Also removes its folder.
    await this.gates[name].stop();
    this.children.delete(child);
  }

  async endBackend(name) {
    const { child, exited } = this.backends[name];
    child.kill("SIGKILL");
    await exited;
    this.children.delete(child);
  }

  async endRedis(name) {
    await this.redis[name].stop();
    this.children.delete(this.redis[name].child);
  }

  /** The links between two regions, each with the way in it that leads from the one to the other. */
  between(from, to) {
    const { redis, client } = this.links;
    return [redis, client].flatMap((kind) => [[kind[from][to], "there"], [kind[to][from], "back"]]);
  }

  /** What leads into a region and out of it, and from its clients to its gateway. */
  around(name) {
    const others = this.names.filter((other) => other !== name);
    const far = others.flatMap((other) => this.between(name, other).map(([wire]) => wire));
    return [...far, this.links.client[name][name], this.links.database[name]];
  }

  /** Ends all faults of the network. */
  restoreLinks() {
    for (const wire of this.allLinks()) wire.restore();
  }

  allLinks() {
    const { redis = {}, client = {}, ...flat } = this.links;
    return [...[redis, client].flatMap((kind) => Object.values(kind).flatMap(Object.values)), ...Object.values(flat).flatMap(Object.values)];
  }

  /** Ends all processes at once. What else there is of them {@link stop} removes. */
  killAll() {
    for (const child of this.children) {
      child.kill("SIGCONT");
      child.kill("SIGKILL");
    }
    this.postgres?.kill();
  }

  async stop() {
    const ended = (each) => Promise.allSettled(each);
    this.stopping = true;
    await ended(this.starting);
    const gates = Object.values(this.gates);
    for (const { child } of gates) child.kill("SIGKILL");
    await ended(gates.map((gate) => gate.stop()));
    await ended(Object.keys(this.backends).map((name) => this.endBackend(name)));
    await ended(Object.values(this.redis).map((redis) => redis.stop()));
    await ended(this.allLinks().map((wire) => wire.stop()));
    await this.postgres?.stop();
  }
}
