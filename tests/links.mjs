// A TCP link between two processes of a test, which can be slow, lose what passes, and break: a port that leads to another.
//
//   const wire = await link(6379, { there: { delay: 90 }, back: { delay: 90, jitter: 10 } });
//   wire.port                     connect here instead
//   wire.shape({ there: … })      milliseconds of delay, jitter on top of it (0 to so many), bytes a second; order is kept
//   wire.cut("back")              bytes of this way are swallowed, and connections stay open: what a network does that fails
//   wire.deafen(port)             what comes back is swallowed on the one connection that the far end sees from this port
//   wire.hold("both")             nothing passes, and nothing is lost: what TCP makes of a short outage
//   wire.refuse()                 new connections are reset
//   wire.reset()                  all connections are reset, now
//   wire.restore()                ends cut, hold and refuse; its shape stays
//   wire.to(port)                 where new connections lead from now on
//   wire.stop()
//
// The ways are `there`, from who connects to where the link leads, `back`, and `both`. A connection of which something was
// swallowed is reset by `restore`: its stream has a hole, and TCP gives nobody such a stream. While a way is cut a new
// connection is accepted, since the kernel does that, and leads nowhere; the end of a connection does not pass either.
//
// What differs from a real link: connecting takes no time, the bytes behind it do; and what is refused is accepted first.

import { once } from "node:events";
import { connect, createServer } from "node:net";

/** What waits in one way of a connection, in bytes with their bookkeeping. Over it its source is not read. */
export const MAX_WAITING_BYTES = 1 << 20;
/** What a piece counts beside its bytes, so that tiny ones are bounded too. */
const PIECE_BYTES = 64;
/** Connections over this many are reset. */
export const MAX_CONNECTIONS = 1_000;

const WAYS = { there: ["there"], back: ["back"], both: ["there", "back"] };
const UNSHAPED = { delay: 0, jitter: 0, rate: Infinity };

/** Opens a link to a port of this machine. `random` gives what jitter is made of, from 0 to 1. */
export async function link(port, { there = {}, back = {}, random = Math.random } = {}) {
  const made = new Link(port, { there, back }, random);
  made.server.listen(0, "127.0.0.1");
  await once(made.server, "listening");
  made.port = made.server.address().port;
  return made;
}

class Link {
  constructor(target, shape, random) {
    Object.assign(this, { target, random, refusing: false, pairs: new Set() });
    this.ways = { there: way(), back: way() };
    this.shape(shape);
    this.server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.accept(socket));
  }

  /** How each way is from now on. What is not given stays. What is on its way already comes when it would have come. */
  shape(shapes) {
    for (const [name, shape] of Object.entries(shapes)) Object.assign(this.ways[name].shape, shape);
  }

  cut(ways) {
    for (const name of WAYS[ways]) {
      this.ways[name].cut = true;
      for (const { [name]: stream } of this.pairs) stream.lose();
    }
  }

  deafen(port) {
    const pair = [...this.pairs].find(({ far }) => far?.localPort === port);
    if (!pair) throw new Error(`no connection comes from port ${port}`);
    pair.back.deaf = true;
    pair.back.lose();
  }

  hold(ways) {
    for (const name of WAYS[ways]) this.ways[name].held = true;
  }

  refuse() {
    this.refusing = true;
  }

  reset() {
    for (const pair of this.pairs) pair.reset();
  }

  restore() {
    this.refusing = false;
    for (const state of Object.values(this.ways)) state.cut = state.held = false;
    for (const pair of this.pairs) {
      if (pair.there.lost || pair.back.lost) pair.reset();
      else for (const stream of [pair.there, pair.back]) stream.pass();
    }
  }

  to(port) {
    this.target = port;
  }

  /** How many connections there are. */
  get connections() {
    return this.pairs.size;
  }

  /** The bytes that wait in it, with their bookkeeping. */
  get waiting() {
    return [...this.pairs].reduce((sum, { there, back }) => sum + there.bytes + back.bytes, 0);
  }

  async stop() {
    this.refusing = true;
    this.reset();
    const closed = once(this.server, "close");
    this.server.close();
    await closed;
  }

  accept(near) {
    near.on("error", () => {});
    if (this.refusing || this.pairs.size >= MAX_CONNECTIONS) return near.resetAndDestroy();
    const nowhere = this.ways.there.cut || this.ways.back.cut;
    const far = nowhere ? undefined : connect({ port: this.target, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    far?.on("error", () => {});
    const pair = {
      far,
      there: new Stream(this, this.ways.there, near, far),
      back: new Stream(this, this.ways.back, far, near),
      reset: () => {
        for (const socket of [near, far]) socket?.resetAndDestroy();
        for (const stream of [pair.there, pair.back]) stream.clear();
        this.pairs.delete(pair);
      },
    };
    pair.there.lost = pair.back.lost = nowhere;
    this.pairs.add(pair);
    for (const socket of [near, far]) {
      socket?.once("close", () => {
        if ((near.closed || near.destroyed) && (far === undefined || far.closed || far.destroyed)) pair.reset();
      });
    }
  }
}

const way = () => ({ cut: false, held: false, shape: { ...UNSHAPED } });

/** One way of one connection. Without a socket at an end, what comes from the other one is lost. */
class Stream {
  constructor(owner, state, from, to) {
    Object.assign(this, { owner, state, from, to, queue: [], bytes: 0, lost: false, latest: 0, free: 0, blocked: false });
    let ended = false;
    from?.on("data", (chunk) => this.take({ chunk }));
    from?.once("end", () => (ended = true) && this.take({ end: true }));
    // Without an end before it, it was reset.
    from?.once("close", () => ended || this.take({ reset: true }));
    to?.on("drain", () => {
      this.blocked = false;
      this.pass();
    });
    to?.once("close", () => {
      this.clear();
      this.blocked = false;
      // It goes on being read, so that its end is seen; who is gone gets nothing.
      from?.resume();
    });
  }

  take(piece) {
    if (this.to?.destroyed) return;
    if (this.state.cut || this.deaf || !this.to) return void (this.lost = true);
    const { delay, jitter, rate } = this.state.shape;
    const now = performance.now();
    const bytes = piece.chunk?.length ?? 0;
    this.free = Math.max(this.free, now) + (bytes * 1_000) / rate;
    this.latest = Math.max(this.latest, this.free + delay + jitter * this.owner.random());
    this.queue.push({ ...piece, at: this.latest, bytes: bytes + PIECE_BYTES });
    this.bytes += bytes + PIECE_BYTES;
    if (this.bytes >= MAX_WAITING_BYTES) this.from.pause();
    this.pass();
  }

  /** Hands on what has come to the other end. */
  pass() {
    clearTimeout(this.timer);
    while (this.queue.length > 0 && !this.state.held && !this.blocked) {
      const wait = this.queue[0].at - performance.now();
      if (wait > 0) return void (this.timer = setTimeout(() => this.pass(), Math.ceil(wait)));
      const { chunk, end, bytes } = this.queue.shift();
      this.bytes -= bytes;
      if (chunk) this.blocked = !this.to.write(chunk);
      else if (end) this.to.end();
      else this.to.resetAndDestroy();
      if (this.bytes < MAX_WAITING_BYTES / 2 && this.from.isPaused()) this.from.resume();
    }
  }

  /** The way is cut: what was on it is gone. */
  lose() {
    this.lost ||= this.queue.length > 0;
    this.clear();
    this.from?.resume();
  }

  clear() {
    clearTimeout(this.timer);
    [this.queue, this.bytes] = [[], 0];
  }
}
