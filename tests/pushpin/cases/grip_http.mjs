// WebSocket-over-HTTP: the proxy holds the client's WebSocket, and tells the backend in POSTs of events.

const TYPE = "application/websocket-events";
const event = (type, content) => (content === undefined ? `${type}\r\n` : `${type} ${Buffer.byteLength(content, "latin1").toString(16)}\r\n${content}\r\n`);
const events = (...list) => ({ headers: { "Content-Type": TYPE }, body: list.map((each) => event(...[].concat(each))).join("") });
const c = (message) => ["TEXT", `c:${JSON.stringify(message)}`];
const code = (number, reason = "") => Buffer.from([number >> 8, number & 255]).toString("latin1") + reason;

/** An answer to the handshake, which opts in. */
const opened = (list = [], headers = {}) => {
  const answer = events("OPEN", ...list);
  return { ...answer, headers: { ...answer.headers, "Sec-WebSocket-Extensions": "grip", ...headers } };
};

/** A backend that answers the handshake, and what comes later by what is in it: `[[TEXT, ANSWER], …]`, else nothing. */
const backend = (first, ...later) => ({ body }) => {
  const text = body.toString();
  if (text.startsWith("OPEN")) return first;
  const found = later.find(([part]) => text.includes(part));
  return found ? found[1] : events();
};

/** Waits until the backend was asked so often. */
const asked = (t, count) => t.until(() => `${count} requests, but ${t.requests.length}`, () => t.requests.length >= count);

const cases = [
  {
    name: "http: a message, an answer and a close",
    respond: backend(opened([["TEXT", "m:hello"], ["TEXT", "no prefix"]]), ["ask", events(["TEXT", "m:answer"])], ["CLOSE", events(["CLOSE", code(4005, "cc")])]),
    async play(t) {
      const client = await t.client({ path: "/http/room?a=b", headers: { "X-Own": "kept", "Grip-Sig": "forged", Cookie: "a=b" } });
      await client.has(1);
      client.send("ask");
      await client.has(2);
      client.close(4005, "cc");
      await client.isOver();
      await asked(t, 3);
    },
  },
  {
    name: "http: binary, empty and large messages",
    respond: backend(opened()),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      for (const [at, frame] of [{ opcode: "binary", payload: Buffer.from([0, 1, 13, 10]) }, "", "x".repeat(5_000), "end"].entries()) {
        client.send(frame);
        await asked(t, at + 2);
      }
    },
  },
  {
    name: "http: a message in fragments is one event",
    respond: backend(opened()),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      client.send({ opcode: "text", payload: "in ", fin: false }, { opcode: "continuation", payload: "two" });
      await asked(t, 2);
    },
  },
  {
    name: "http: messages gather while a request is under way",
    respond: async ({ body }) => {
      if (body.toString().startsWith("OPEN")) return opened();
      if (body.toString().includes("first")) await new Promise((resolve) => setTimeout(resolve, 400));
      return events();
    },
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      client.send("first");
      await asked(t, 2);
      client.send("second", "third");
      await asked(t, 3);
    },
  },
  {
    name: "http: the client goes without a Close frame",
    respond: backend(opened()),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      client.send("one");
      await asked(t, 2);
      client.drop();
      await asked(t, 3);
    },
  },
  {
    name: "http: a close without a code",
    respond: backend(opened(), ["CLOSE", events("CLOSE")]),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      client.close();
      await asked(t, 2);
      await client.isOver();
    },
  },
  {
    name: "http: subscribe and publish",
    respond: backend(opened([c({ type: "subscribe", channel: "a" })])),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await t.subscribed(client, "a");
      await t.publish("a", { content: "published" });
      await t.fence(client, "a");
    },
  },
  {
    name: "http: a close that is published",
    respond: backend(opened([c({ type: "subscribe", channel: "a" })]), ["CLOSE", events("CLOSE")]),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await t.subscribed(client, "a");
      await t.publish("a", { action: "close", code: 4002, reason: "over" });
      await client.isOver();
      client.close(4002, "over");
      await asked(t, 2);
    },
  },
  {
    name: "http: unsubscribe in a later answer",
    respond: backend(opened([c({ type: "subscribe", channel: "a" }), c({ type: "subscribe", channel: "b" })]), ["leave", events(c({ type: "unsubscribe", channel: "a" }), ["TEXT", "m:left"])]),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await t.subscribed(client, "a", "b");
      client.send("leave");
      await client.has(1);
      await t.sleep(200);
      await t.publish("a", { content: "to a" });
      await t.publish("b", { content: "to b" });
      await t.fence(client, "b");
    },
  },
  {
    name: "http: metadata comes back",
    respond: backend(opened([], { "Set-Meta-User": "ann", "Set-Meta-Other": "x" }), ["one", { ...events(), headers: { "Content-Type": TYPE, "Set-Meta-Other": "" } }]),
    async play(t) {
      const client = await t.client({ path: "/http/room", headers: { "Meta-Forged": "x" } });
      for (const [at, text] of ["one", "two"].entries()) {
        client.send(text);
        await asked(t, at + 2);
      }
    },
  },
  {
    name: "http: no opt-in",
    respond: backend(events("OPEN", ["TEXT", "no prefix"], c({ type: "subscribe", channel: "a" }), ["BINARY", "bin"])),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await client.has(3);
    },
  },
  {
    name: "http: pings and pongs of the backend",
    respond: backend(opened([["PING", "p"], ["PONG", "q"], "PING", ["TEXT", "m:end"]])),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await client.has(4);
    },
  },
  {
    name: "http: headers of the answer to the handshake",
    respond: backend(opened([], { "Set-Cookie": "a=b", "X-Backend": "kept", "Sec-WebSocket-Protocol": "two" })),
    play: (t) => t.client({ path: "/http/room", headers: { "Sec-WebSocket-Protocol": "one, two" } }),
  },
  ...[
    ["a refusal", { status: "403 Forbidden", headers: { "Content-Type": "text/plain" }, body: "not you\n" }],
    ["another content type", { headers: { "Content-Type": "text/plain" }, body: "OPEN\r\n" }],
    ["no OPEN", events(["TEXT", "m:x"])],
    ["no events", events()],
    ["malformed events", { headers: { "Content-Type": TYPE }, body: "OPEN\r\nTEXT zz\r\nm:x\r\n" }],
  ].map(([name, answer]) => ({
    name: `http: the handshake is answered with ${name}`,
    respond: () => answer,
    play: (t) => t.client({ path: "/http/room" }),
  })),
  ...[
    ["a status that is none", { status: "500 Internal Server Error" }],
    ["another content type", { headers: { "Content-Type": "text/plain" }, body: "x" }],
    ["a close", events(["CLOSE", code(4007, "enough")])],
    ["a close without a code", events("CLOSE")],
    ["DISCONNECT", events("DISCONNECT")],
    ["a second OPEN", events("OPEN")],
    ["malformed events", { headers: { "Content-Type": TYPE }, body: "TEXT zz\r\nm:x\r\n" }],
  ].map(([name, answer]) => ({
    name: `http: a message is answered with ${name}`,
    ends: true,
    respond: backend(opened(), ["ask", answer]),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      client.send("ask");
      await client.isOver();
    },
  })),
  {
    name: "http: detach",
    respond: backend(opened([c({ type: "subscribe", channel: "a" })]), ["leave", events(c({ type: "detach" }))]),
    async play(t) {
      const client = await t.client({ path: "/http/room" });
      await t.subscribed(client, "a");
      client.send("leave");
      await asked(t, 2);
      await t.sleep(300);
      client.send("to nobody");
      await t.publish("a", { content: "still subscribed" });
      await t.fence(client, "a");
    },
  },
];

export default cases.map((each) => ({ mode: "grip_http", ...each }));
