// The faults of a link, between a client and a server of TCP alone.

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { after, before, test } from "node:test";
import { MAX_CONNECTIONS, MAX_WAITING_BYTES, link } from "./links.mjs";
import { eventually } from "./support.mjs";

/** Keeps what each connection has sent, and says nothing itself. */
let server, accepted, port;
before(async () => {
  server = createServer({ allowHalfOpen: true }, (socket) => accepted.push(followed(socket)));
  accepted = [];
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  port = server.address().port;
});
after(() => server.close());

/** A socket with what it has read, and how it ended. */
function followed(socket) {
  const end = { socket, text: "", ended: false, closed: false, error: undefined };
  socket.on("data", (data) => (end.text += data));
  socket.on("end", () => (end.ended = true));
  socket.on("close", () => (end.closed = true));
  socket.on("error", ({ code }) => (end.error = code));
  return end;
}

/** A link, and a connection through it: its near and its far end. */
async function bed(options) {
  accepted.length = 0;
  const wire = await link(port, options);
  const near = await join(wire);
  const far = await eventually(() => accepted.at(-1), Boolean);
  return { wire, near, far };
}

async function join(wire) {
  const near = followed(connect({ port: wire.port, host: "127.0.0.1", allowHalfOpen: true }));
  await once(near.socket, "connect");
  return near;
}

const has = (end, text) => eventually(() => end.text, (found) => found === text);

test("bytes pass both ways, with a delay of each way's own and in their order, however it jitters", async () => {
  const draws = [];
  const random = () => (draws.push(draws.length), draws.length % 2);
  const { wire, near, far } = await bed({ there: { delay: 60, jitter: 40 }, random });
  try {
    const sent = performance.now();
    near.socket.write("1");
    await has(far, "1");
    // The first draw is 1: 100 ms. A timer may be early by the part of a millisecond that clocks round away.
    assert.ok(performance.now() - sent >= 99, "it came before its delay");
    for (let nth = 2; nth < 10; nth += 1) {
      near.socket.write(String(nth));
      await new Promise(setImmediate);
    }
    far.socket.write("back");
    await has(near, "back");
    await has(far, "123456789");
    assert.ok(draws.length > 3, `${draws.length} pieces`);
  } finally {
    await wire.stop();
  }
});

test("a shape holds for what comes from then on, and nothing passes what came before", async () => {
  const { wire, near, far } = await bed({ there: { delay: 80 } });
  try {
    near.socket.write("slow");
    await eventually(() => wire.waiting, Boolean);
    wire.shape({ there: { delay: 0 } });
    near.socket.write("fast");
    await has(far, "slowfast");
  } finally {
    await wire.stop();
  }
});

test("a rate has bytes wait for those before them", async () => {
  const { wire, near, far } = await bed({ there: { rate: 100_000 } });
  try {
    const sent = performance.now();
    near.socket.write("x".repeat(20_000));
    await eventually(() => far.text.length, (count) => count === 20_000);
    assert.ok(performance.now() - sent >= 199, "it came faster than its rate");
  } finally {
    await wire.stop();
  }
});

for (const way of ["there", "back"]) {
  test(`cut ${way}, that way swallows what is sent and the other goes on`, async () => {
    const { wire, near, far } = await bed();
    try {
      const [from, to] = way === "there" ? [near, far] : [far, near];
      from.socket.write("before");
      await has(to, "before");
      wire.cut(way);
      from.socket.write("lost");
      to.socket.write("other way");
      await has(from, "other way");
      assert.equal(to.text, "before");
      assert.deepEqual([near.closed, far.closed], [false, false]);
      // The end does not pass either.
      from.socket.end();
      from.socket.destroy();
      to.socket.write("still there");
      const late = await join(wire);
      late.socket.write("leads nowhere");
      assert.deepEqual([to.closed, accepted.length], [false, 1]);
      wire.restore();
      await eventually(() => [to.closed, late.closed], ([one, other]) => one && other);
      assert.equal(to.text, "before", "what was swallowed came");
      const fresh = await join(wire);
      fresh.socket.write("hello");
      await eventually(() => accepted.at(-1).text, (text) => text === "hello");
    } finally {
      await wire.stop();
    }
  });
}

test("cut both ways, what was under way is lost; a connection that lost nothing goes on after it", async () => {
  const { wire, near, far } = await bed({ there: { delay: 10_000 } });
  try {
    const idle = await join(wire);
    const [, idleFar] = await eventually(() => accepted, ({ length }) => length === 2);
    near.socket.write("under way");
    await eventually(() => wire.waiting, Boolean);
    wire.cut("both");
    assert.equal(wire.waiting, 0);
    wire.shape({ there: { delay: 0 } });
    wire.restore();
    await eventually(() => [near.closed, far.closed], ([one, other]) => one && other);
    assert.equal(far.text, "");
    idle.socket.write("nothing was lost");
    await has(idleFar, "nothing was lost");
  } finally {
    await wire.stop();
  }
});

test("held, nothing passes and nothing is lost", async () => {
  const { wire, near, far } = await bed();
  try {
    wire.hold("both");
    near.socket.write("there");
    far.socket.end("back");
    await eventually(() => wire.waiting, (bytes) => bytes > "there".length + "back".length);
    assert.deepEqual([near.text, far.text], ["", ""]);
    wire.restore();
    await has(far, "there");
    await has(near, "back");
    await eventually(() => near.ended, Boolean);
    near.socket.end(" and on");
    await has(far, "there and on");
    await eventually(() => wire.connections, (count) => count === 0);
  } finally {
    await wire.stop();
  }
});

test("what waits is bounded: a source that is not taken from is not read", async () => {
  const { wire, near, far } = await bed({ there: { delay: 50 } });
  try {
    wire.hold("there");
    const ALL = 24 << 20;
    let taken = 0;
    const piece = Buffer.alloc(256 << 10, "x");
    for (let sent = 0; sent < ALL; sent += piece.length) near.socket.write(piece, () => (taken += piece.length));
    await eventually(() => wire.waiting, (bytes) => bytes >= MAX_WAITING_BYTES);
    // One piece more than that: it was read before the source was stopped.
    assert.ok(wire.waiting < MAX_WAITING_BYTES + (128 << 10), `${wire.waiting} bytes`);
    assert.ok(taken < ALL, "sockets between took everything");
    far.socket.removeAllListeners("data");
    let read = 0;
    far.socket.on("data", ({ length }) => (read += length));
    wire.restore();
    await eventually(() => read, (bytes) => bytes === ALL);
  } finally {
    await wire.stop();
  }
});

test("what is refused is reset, and what is there goes on; a reset ends everything at once", async () => {
  const { wire, near, far } = await bed();
  try {
    wire.refuse();
    const late = followed(connect(wire.port, "127.0.0.1"));
    await eventually(() => late.closed, Boolean);
    near.socket.write("still");
    await has(far, "still");
    wire.restore();
    const next = await join(wire);
    await eventually(() => accepted, ({ length }) => length === 2);
    wire.reset();
    await eventually(() => [near, far, next].filter(({ closed }) => closed).length, (count) => count === 3);
    assert.deepEqual([near.error, far.error], ["ECONNRESET", "ECONNRESET"]);
    assert.equal(wire.connections, 0);
  } finally {
    await wire.stop();
  }
});

test("a reset of one end comes to the other, and a target that is not there resets who comes", async () => {
  const { wire, near, far } = await bed({ there: { delay: 20 } });
  try {
    near.socket.write("last words");
    await eventually(() => wire.waiting, Boolean);
    near.socket.resetAndDestroy();
    await eventually(() => far.closed, Boolean);
    assert.deepEqual([far.text, far.error], ["last words", "ECONNRESET"]);
    const gone = createServer().listen(0, "127.0.0.1");
    await once(gone, "listening");
    wire.to(gone.address().port);
    gone.close();
    await once(gone, "close");
    const late = followed(connect(wire.port, "127.0.0.1"));
    await eventually(() => late.closed, Boolean);
    wire.to(port);
    const again = await join(wire);
    again.socket.write("back");
    await eventually(() => accepted.at(-1).text, (text) => text === "back");
  } finally {
    await wire.stop();
  }
});

test("connections over the most are reset", async () => {
  const { wire, near, far } = await bed();
  try {
    wire.pairs = new Set([...wire.pairs, ...Array.from({ length: MAX_CONNECTIONS }, () => ({ reset() {} }))]);
    const late = followed(connect(wire.port, "127.0.0.1"));
    await eventually(() => late.closed, Boolean);
    near.socket.write("unharmed");
    await has(far, "unharmed");
  } finally {
    await wire.stop();
  }
});
