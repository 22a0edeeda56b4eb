// A run in three regions: of each a gateway and a Redis, links between them that are slow and break, publishers that try
// one region after the other, and sessions that keep a place in each region and come back anywhere.

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";
import { eventually, gateway } from "../support.mjs";
import { link } from "../links.mjs";
import { Redis, backend } from "./servers.mjs";
import { World, configuration } from "./world.mjs";

export const REGIONS = ["eu", "us", "ap"];

/** From one region to another, in milliseconds each way. */
export const DISTANCE = 40;

/** How the subprotocol sluicegate.v1 says where a session was, one place of each region, and how it reads what it gets. */
export const bySubprotocol = {
  open(base, places, options) {
    const ask = [...places.keys()].map((channel) => [channel, null]);
    const socket = new WebSocket(`${base}/s?ask=${encodeURIComponent(JSON.stringify(ask))}`, ["sluicegate.v1"], options);
    socket.once("open", () => {
      const known = [...places].filter(([, regions]) => regions?.size > 0).map(([channel, regions]) => [channel, [...regions.values()]]);
      socket.send(`${JSON.stringify(known.length > 0 ? { t: "resume", ch: Object.fromEntries(known) } : { t: "new" })}\n`);
    });
    return socket;
  },

  read(text, places) {
    const end = text.indexOf("\n");
    if (end === 0) return undefined;
    const line = JSON.parse(text.slice(0, end));
    const at = (channel) => places.get(channel) ?? places.set(channel, new Map()).get(channel);
    const keep = (channel, position) => at(channel).set(position.split(".")[0], position);
    switch (line.t) {
      case undefined: {
        keep(line.c, line.p);
        const [region, , n] = line.p.split(".");
        return { e: "deliver", channel: line.c, mid: line.i, region, n: Number(n), position: line.p };
      }
      case "sub":
        if (line.s === "pending") return undefined;
        if (line.n === 0) for (const head of line.h) keep(line.c, head);
        return { e: "sub", channel: line.c, region: line.h[0].split(".")[0], state: line.s };
      case "gap":
        if (line.to) keep(line.c, line.to);
        else at(line.c).delete(line.r);
        return { e: "gap", channel: line.c, region: line.r, why: line.why };
      case "pos":
        return void keep(line.c, line.p);
      case "region":
        return { e: "region", region: line.r, state: line.s };
      default:
        return undefined;
    }
  },
};

export class RegionWorld extends World {
  async open() {
    this.way = bySubprotocol;
    this.app = await backend();
    this.cleanup.push(() => this.app.stop());
    this.redises = [];
    this.cleanup.push(() => Promise.all(this.redises.map((redis) => redis.stop())));
    for (let at = 0; at < REGIONS.length; at += 1) this.redises.push(await Redis.start(...this.redisArgs));
    // From the gateway of a region to the Redis of another.
    this.links = [];
    this.cleanup.push(() => Promise.all(this.links.flat().map((wire) => wire.stop())));
    for (let from = 0; from < REGIONS.length; from += 1) {
      this.links.push([]);
      for (let to = 0; to < REGIONS.length; to += 1) {
        const delay = { delay: this.distance ?? DISTANCE };
        this.links[from].push(await link(this.redises[to].port, from === to ? {} : { there: delay, back: delay }));
      }
    }
    this.gates = [];
    this.cleanup.push(() => Promise.all(this.gates.map((gate) => gate.kill())));
    for (let at = 0; at < REGIONS.length; at += 1) this.gates.push(await this.gate(at));
    for (let at = 0; at < this.sessions; at += 1) {
      const channels = this.channels.filter((_, nth) => nth !== at % this.channels.length || this.channels.length === 1);
      this.begin({ name: `s${at}`, channels, group: "fast", gate: at });
    }
    for (const extra of this.extra) this.begin(extra);
    await this.primed();
    // From here on each is owed what is published in any region.
    const owing = () => this.live.flatMap(({ name, channels }) => channels.flatMap((channel) => REGIONS.filter((region) =>
      !this.records.some((of) => of.e === "sub" && of.session === name && of.channel === channel && of.region === region))));
    await eventually(() => owing().length, (count) => count === 0);
    this.record({ e: "owed" });
  }

  /** The configuration of one region's gateway. */
  configuration(at) {
    const engine = (to) => `{ redis: { url: "redis://127.0.0.1:${this.links[at][to].port}" } }`;
    const others = REGIONS.map((_, to) => to).filter((to) => to !== at);
    const text = configuration(this.app.port, engine(at), this);
    return text.replace("  publish:", `  region: ${REGIONS[at]}
  regions: { ${others.map((to) => `${REGIONS[to]}: ${engine(to)}`).join(", ")} }
  publish_failover: [${others.map((to) => REGIONS[to]).join(", ")}]
  publish:`);
  }

  async gate(at) {
    const gate = await gateway(this.configuration(at), {}, this.env?.[at]);
    const kill = async () => {
      gate.child.kill("SIGCONT");
      gate.child.kill("SIGKILL");
      await gate.stop();
    };
    const { address } = await gate.line({ event: "listening", listener: "publish" });
    const ready = gate.metric("sluicegate_region_up", { region: REGIONS[at] }, 1);
    await ready.catch(async (error) => {
      await kill();
      throw new Error(`the gateway does not reach its Redis: ${JSON.stringify(gate.log.slice(-3))}`, { cause: error });
    });
    return { ...gate, kill, port: Number(address.split(":").at(-1)), agent: new http.Agent({ keepAlive: true }) };
  }

  /** The last of each channel, in each region: a region's own say nothing of another's. */
  async publishEnds(channels) {
    for (const region of REGIONS) {
      const at = REGIONS.indexOf(region);
      await Promise.all([...channels].map(async (channel) => {
        while ((await this.publish(channel, `end-${region}`, at)) !== "ok") await sleep(50);
      }));
    }
    return REGIONS.map((region) => `end-${region}`);
  }

  /** The links of a region's engine from all others, and from the region to all others' engines. */
  around(at) {
    const others = REGIONS.map((_, other) => other).filter((other) => other !== at);
    return others.flatMap((other) => [this.links[other][at], this.links[at][other]]);
  }

  killAll() {
    for (const { child } of [...this.gates, ...this.redises]) child?.kill("SIGKILL");
  }
}
