// A run of the chat of examples/chat in three regions: users who talk all the time, faults by a seed, and the history of it
// all, which checker.mjs judges.
//
//   quiet -> faults, one after the other and some at once -> all put right -> quiet -> nobody talks, until all is there

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { Chat } from "../../examples/chat/client.mjs";
import { randomness } from "../faults/world.mjs";
import { Regions, all } from "../regions/world.mjs";
import { PROMISES, check, parse } from "./checker.mjs";
import { FAULTS } from "./faults.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const FOLDER = here("../../target/chat/");
export const REGIONS = ["eu", "us", "ap"];
const ROOMS = ["lobby", "garden"];
/** One way between two regions, in milliseconds. */
export const DELAY = 90;
/** How long users may take to come in, to come home, and to have everything, in milliseconds. */
const DEADLINE = 60_000;
/** What a user waits between two messages, in milliseconds, and how many may wait for an answer. */
const PAUSE = [200, 600];
const MAX_UNANSWERED = 100;
/** Whether the history has the header lines of what clients were sent too: `line`, which no checker reads. */
const WIRE = Boolean(process.env.CHAOS_WIRE);
/** Faults of which the next begins at once, of so many. */
const AT_ONCE_OF = 4;

/** The addresses of the shipped configurations. */
const addresses = (base) => Object.fromEntries(REGIONS.map((name, at) => [name, `127.0.0.1:${base + at}`]));
const SHIPPED = { PUBLIC: addresses(8080), ADMIN: addresses(9901), PUBLISH: addresses(5561), APP: addresses(9001), REDIS: addresses(6379) };

/**
 * Answers `{ counts, violations, file, faults, … }`. `seconds` is how long faults happen, each once at least; `only` names
 * those that do, all by default; `unit` is a time in milliseconds that their lengths are made of. `quietSeconds` are
 * measured before them and after them, then with `restSeconds` between. `onWorld` is given the processes, to end them when
 * this one is ended; `onFault` a line for each fault.
 */
export async function play({
  seed, seconds, quietSeconds = 5, restSeconds = 5, users = 4, unit = 1_500, only, onWorld = () => {}, onFault = () => {},
}) {
  const run = new Run({ seed, quietMs: quietSeconds * 1_000, unit, onFault });
  const configurations = Object.fromEntries(await Promise.all(
    REGIONS.map(async (name) => [name, await readFile(here(`../../examples/chat/${name}.yaml`), "utf8")])));
  const backend = here("../../examples/chat/backend.mjs");
  run.world = await Regions.start({ configurations, addresses: SHIPPED, delay: DELAY, backend, onWorld });
  try {
    for (const region of REGIONS) for (let nth = 0; nth < users; nth += 1) run.add(region, ROOMS[nth % ROOMS.length], nth);
    await run.until("everybody is in", () => run.users.filter(({ since }) => !since).map(({ name }) => name));
    run.talk();
    await run.quiet(1_000);
    await run.faults(FAULTS.filter(({ name }) => !only || only.includes(name)), performance.now() + seconds * 1_000);
    await run.until("everybody is home", () => run.users.filter(({ chat }) => !chat.isHome).map(({ name }) => name));
    await run.quiet(restSeconds * 1_000);
    await run.settle();
  } catch (error) {
    throw new Error(`seed ${seed}: ${error.message} (${await run.write()}) ${run.world.complaints.slice(-3).join("")}`, { cause: error });
  } finally {
    run.end();
    await run.world.stop();
  }
  const file = await run.write();
  const messages = { rooms: ROOMS.length, quiet: quietSeconds, rest: restSeconds };
  return { ...check(parse(await readFile(file, "utf8"))), file, faults: run.played, users: run.users.length, messages };
}

class Run {
  constructor({ seed, quietMs, unit, onFault }) {
    Object.assign(this, { seed, quietMs, unit, onFault, users: [], records: [], played: [], talking: true });
    // The faults are those of the seed, however often users talk.
    [this.random, this.chance] = [randomness(seed), randomness(seed + 1)];
    this.record({ e: "run", seed });
  }

  record(entry) {
    this.records.push({ t: performance.now(), ...entry });
  }

  add(region, room, nth) {
    const { world } = this;
    const user = { name: `${region}-${nth}`, room, region, published: 0, given: 0, since: false };
    this.users.push(user);
    const { name } = user;
    const note = (entry) => this.record(entry);
    this.record({ e: "user", user: name, room, region });
    /** Counts what is published to the connection that counts, before the library sees it. */
    class Counted extends WebSocket {
      constructor(...options) {
        super(...options);
        user.socket = this;
        this.on("message", (data) => {
          if (user.socket !== this) return;
          const line = lineOf(Buffer.from(data));
          if (line.p && !line.t) user.published += 1;
          if (WIRE && (line.p || line.t)) note({ e: "line", user: name, line });
        });
      }
    }
    const gateways = world.gatewaysFor(region).map(({ url }) => url);
    const chat = new Chat(name, room, gateways, { WebSocket: Counted });
    user.chat = chat;
    const on = (type, listener) => chat.addEventListener(type, ({ detail }) => listener(detail));
    on("message", ({ id, seq, live, position }) => {
      if (live) user.given += 1;
      this.record({ e: "show", user: name, id, seq, live, position, home: chat.isHome });
    });
    on("again", ({ id, live, position }) => {
      if (live) user.given += 1;
      // The beginning of a room is no message.
      this.record({ e: "again", user: name, id, position });
    });
    on("acknowledged", ({ id, seq }) => this.record({ e: "ack", user: name, id, seq }));
    on("gap", ({ region: of, why }) => this.record({ e: "gap", user: name, region: of, why }));
    on("connected", (at) => this.record({ e: "connected", user: name, to: world.gatewaysFor(region)[at].region }));
    on("history", ({ more }) => {
      user.since ||= !more;
      this.record({ e: "history", user: name, more });
    });
  }

  /** From now on everybody says something now and then. */
  talk() {
    for (const user of this.users) {
      const next = () => {
        if (!this.talking) return;
        const { chat, name } = user;
        if (chat.unacknowledged.size < MAX_UNANSWERED) {
          // In this order: it is said before anything can be heard of it.
          const id = crypto.randomUUID();
          this.record({ e: "say", user: name, id, home: chat.isHome });
          chat.say(`what ${name} says`, id);
        }
        user.timer = setTimeout(next, this.random.between(...PAUSE));
      };
      next();
    }
  }

  /** Time in which nothing fails, and nothing is left of what has: a log that was cut off is tried again after 4 s at most. */
  async quiet(after) {
    await this.until("every gateway reads every region", () => this.world.unread());
    await sleep(after);
    this.record({ e: "phase", quiet: true });
    await sleep(this.quietMs);
    this.record({ e: "phase", quiet: false });
  }

  /** Every fault once, in an order of chance, and again until the time is over. */
  async faults(kinds, end) {
    const { between } = this.chance;
    const shuffled = (list) => list.map((each) => [between(0, 1 << 30), each]).sort(([one], [other]) => one - other).map(([, each]) => each);
    for (let round = 0; round === 0 || performance.now() < end; round += 1) {
      const list = shuffled(kinds);
      while (list.length > 0 && (round === 0 || performance.now() < end)) {
        const regions = shuffled(REGIONS);
        const first = list.shift();
        // Two at once are of different regions, and one link leaves no other one free.
        const second = between(1, AT_ONCE_OF) === 1 && list.length > 0 && !first.links && !list[0].links ? list.shift() : undefined;
        await all([this.fault(first, regions), second && this.fault(second, regions.slice(1))]);
        await sleep(between(this.unit / 3, this.unit));
      }
    }
  }

  async fault({ name, play, links }, regions) {
    const touched = regions.slice(0, links ? 2 : 1);
    this.record({ e: "fault", name, phase: "begin", regions: touched });
    const begun = performance.now();
    this.onFault(`${((begun - this.records[0].t) / 1_000).toFixed(1)} s: ${name}: ${touched.join(", ")}`);
    await play({ world: this.world, regions, between: this.chance.between, unit: this.unit });
    this.record({ e: "fault", name, phase: "end", regions: touched });
    this.played.push({ name, regions: touched, begun: begun - this.records[0].t, lasted: performance.now() - begun });
  }

  /** Waits until nothing is missing: `missing` answers what is. */
  async until(what, missing) {
    const end = performance.now() + DEADLINE;
    for (let left = await missing(); left.length > 0; left = await missing()) {
      if (performance.now() > end) throw new Error(`not ${what} after ${DEADLINE / 1_000} s: ${JSON.stringify(left.slice(0, 5))}`);
      await sleep(100);
    }
  }

  /** Nobody talks. When all is acknowledged, or not within the deadline, everything that is stored has its time to come. */
  async settle() {
    this.talking = false;
    const late = (error) => this.record({ e: "late", error: error.message });
    await this.until("everything acknowledged", () => this.users.filter(({ chat }) => chat.unacknowledged.size > 0).map(({ name }) => name)).catch(late);
    const rows = await this.stored();
    const newest = new Map(rows.map(({ room, seq }) => [room, seq]));
    // Whether it is all there is for the checker to say.
    await this.until("everything shown", () => this.users.filter(({ chat, room }) => chat.shown < newest.get(room)).map(({ name }) => name)).catch(late);
    for (const { name, published, given } of this.users) this.record({ e: "wire", user: name, published, given });
    for (const row of await this.stored()) this.record({ e: "stored", ...row });
    this.record({ e: "settled" });
  }

  async stored() {
    const rows = await this.world.postgres.ask("select room, seq, id, published from messages order by room, seq");
    return rows.map(([room, seq, id, published]) => ({ room, seq: Number(seq), id, published: published === "t" }));
  }

  end() {
    this.talking = false;
    for (const { chat, timer } of this.users) {
      clearTimeout(timer);
      chat.close();
    }
  }

  async write() {
    await mkdir(FOLDER, { recursive: true });
    const file = `${FOLDER}${this.seed}.jsonl`;
    await writeFile(file, this.records.map((record) => `${JSON.stringify(record)}\n`).join(""));
    return file;
  }
}

/** The header line of a message of the subprotocol. */
const lineOf = (data) => JSON.parse(data.subarray(0, data.indexOf(10)).toString() || "{}");

/** What a broken promise is reported by. */
export const explain = ({ violations, file }, seed) =>
  [`seed ${seed}, ${file}, ${violations.length} in all`, ...violations.slice(0, 8).map(
    ({ promise, detail }) => `${promise} (${PROMISES[promise]}): ${detail}`)].join("\n");
