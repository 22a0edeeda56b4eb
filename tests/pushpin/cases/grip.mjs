// GRIP over plain WebSocket: the backend opts in, subscribes its clients by control messages, and prefixes what is theirs.

const c = (message) => `c:${typeof message === "string" ? message : JSON.stringify(message)}`;
const subscribe = (channel, more = {}) => c({ type: "subscribe", channel, ...more });
const meta = (name, value) => c({ type: "set-meta", name, value });

/** A pair whose client is subscribed to these channels. */
async function subscribed(t, channels, messages = []) {
  const [client, end] = await t.pair();
  end.send(...messages, ...channels.map((channel) => subscribe(channel)));
  await t.subscribed(client, ...channels);
  return [client, end];
}

/** A case in which the backend sends these, and then something that the client gets in each case. */
const sends = (name, frames, more = {}) => ({
  name,
  async play(t) {
    const [client, end] = await t.pair();
    end.send(...frames, `${more.prefix ?? "m:"}the end`);
    await t.until(() => `the end of ${JSON.stringify(client.got)}`, () => client.got.includes("the end"));
  },
  ...more,
});

/** A case in which control messages are passed over: the connection lives, and the channel `b` works. */
const passedOver = (name, ...messages) => ({
  name,
  async play(t) {
    const [client, end] = await t.pair();
    end.send(...messages, subscribe("b"), "m:alive");
    await t.subscribed(client, "b");
    await t.publish("a", { content: "to a" });
    await t.publish("b", { content: "to b" });
    await t.fence(client, "b");
  },
});

/** A case in which items are published to channel `a`, whose subscriber gets what is to come of them. */
const publishes = (name, items, { filters, metas = [], channels = [] } = {}) => ({
  name,
  async play(t) {
    const [client, end] = await t.pair();
    end.send(...metas.map((pair) => meta(...pair)), subscribe("a", filters ? { filters } : {}), ...channels.map((channel) => subscribe(channel)));
    await t.subscribed(client, "a", ...channels);
    for (const item of items) await t.control({ items: [].concat(item) });
    await t.fence(client, "a");
  },
});

const item = (format, more = {}) => ({ channel: "a", formats: { "ws-message": format }, ...more });
const text = (content, more) => item({ content }, more);

const cases = [
  {
    name: "opt-in, both ways, and a close by the client",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      end.send("m:hello", "no prefix");
      await client.has(1);
      await t.publish("a", { content: "published" });
      await t.fence(client, "a");
      client.send("from the client");
      await end.has(1);
      client.close(4000, "bye");
      await end.isOver();
    },
  },
  {
    name: "request headers of a client, forged ones of GRIP among them",
    async play(t) {
      await t.pair({
        path: "/case?x=1&y=%2F", headers: {
          "Grip-Sig": "forged", "Grip-Last": "a; last-id=1", "Grip-Anything": "x", Cookie: "a=b", Origin: "http://app.test",
          "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits", "X-Own": "kept", Authorization: "Basic eDp5",
        },
      });
    },
  },
  {
    name: "response headers and the subprotocol",
    headers: { "Sec-WebSocket-Protocol": "two", "Set-Cookie": "a=b; Path=/", "X-Backend": "kept" },
    play: (t) => t.pair({ headers: { "Sec-WebSocket-Protocol": "one, two" } }),
  },
  {
    name: "a backend that refuses the handshake",
    respond: () => ({ status: "403 Forbidden", headers: { "Content-Type": "text/plain", "X-Why": "no" }, body: "not you\n" }),
    play: (t) => t.client(),
  },
  sends("the default prefix", ["m:one", "other", "m", "mm:two", "m:"]),
  sends("a prefix of its own", ["to:one", "m:two"], { extension: 'grip; message-prefix="to:"', prefix: "to:" }),
  sends("a prefix that is a token", ["xx1", "m:2"], { extension: "grip; message-prefix=xx", prefix: "xx" }),
  sends("a parameter that nobody knows", ["m:one"], { extension: "grip; other=1" }),
  {
    name: "an empty prefix",
    extension: 'grip; message-prefix=""',
    async play(t) {
      const [client, end] = await t.pair();
      end.send("one", "m:two");
      await Promise.race([client.has(2), client.isOver()]);
    },
  },
  {
    name: "no opt-in",
    extension: null,
    async play(t) {
      const [client, end] = await t.pair();
      end.send("m:one", "other", subscribe("a"), { opcode: "binary", payload: "bin" });
      await client.has(4);
      client.send("back");
      await end.has(1);
      end.close(1000, "done");
      await client.isOver();
    },
  },
  sends("text in fragments", [
    { opcode: "text", payload: "m:in ", fin: false }, { opcode: "continuation", payload: "two, ", fin: false },
    { opcode: "continuation", payload: "three" }]),
  sends("a prefix that is split over frames", [
    { opcode: "text", payload: "m", fin: false }, { opcode: "continuation", payload: ":split" }, "m:after"]),
  sends("a control message in fragments", [
    { opcode: "text", payload: 'c:{"type":"subs', fin: false }, { opcode: "continuation", payload: 'cribe","channel":"a"}' }, "m:after"]),
  sends("binary messages", [
    { opcode: "binary", payload: Buffer.from([109, 58, 0, 255]) }, { opcode: "binary", payload: Buffer.from([0, 1]) },
    { opcode: "binary", payload: c({ type: "subscribe", channel: "a" }) }]),
  sends("empty messages", ["", { opcode: "binary", payload: "" }]),
  {
    name: "pings and pongs of the backend",
    async play(t) {
      const [client, end] = await t.pair();
      end.send({ opcode: "ping", payload: "of the backend" }, { opcode: "pong", payload: "unasked" }, "m:end");
      await client.has(3);
    },
  },
  {
    name: "pings and pongs of the client",
    async play(t) {
      const [client, end] = await t.pair();
      client.send({ opcode: "ping", payload: "of the client" }, { opcode: "pong", payload: "unasked" }, "end");
      await end.has(3);
    },
  },
  ...[[1000, ""], [1001, "away"], [1011, "broken"], [4999, "own"], [3000, "registered"]].flatMap(([code, reason]) => ["backend", "client"].map((side) => ({
    name: `close ${code} by the ${side}`,
    async play(t) {
      const [client, end] = await t.pair();
      const [from, to] = side === "client" ? [client, end] : [end, client];
      from.close(code, reason);
      await to.isOver();
      to.close(code, reason);
      await from.isOver();
    },
  }))),
  ...["backend", "client"].map((side) => ({
    name: `close without a code by the ${side}`,
    async play(t) {
      const [client, end] = await t.pair();
      const [from, to] = side === "client" ? [client, end] : [end, client];
      from.close();
      await to.isOver();
      to.close();
      await from.isOver();
    },
  })),
  {
    name: "a backend that drops the connection",
    ends: true,
    async play(t) {
      const [client, end] = await t.pair();
      end.send("m:one");
      await client.has(1);
      end.drop();
      await client.isOver();
    },
  },
  {
    name: "a client that drops the connection",
    async play(t) {
      const [client, end] = await t.pair();
      client.send("one");
      await end.has(1);
      client.drop();
      await end.isOver();
      await t.sleep(50);
    },
  },
  {
    name: "unsubscribe",
    async play(t) {
      const [client, end] = await subscribed(t, ["a", "b"]);
      await t.publish("a", { content: "first" });
      await t.fence(client, "a");
      end.send(c({ type: "unsubscribe", channel: "a" }), subscribe("d"));
      await t.subscribed(client, "d");
      await t.publish("a", { content: "second" });
      await t.publish("b", { content: "third" });
      await t.fence(client, "b", "d");
    },
  },
  {
    name: "detach",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      end.send(c({ type: "detach" }));
      await end.isOver();
      client.send("to nobody");
      await t.publish("a", { content: "still subscribed" });
      await t.fence(client, "a");
      client.close(1000, "");
      await client.isOver();
    },
  },
  {
    name: "a close that is published",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      await t.publish("a", { action: "close", code: 4002, reason: "over" });
      await client.isOver();
      client.close(4002, "over");
      await end.isOver();
    },
  },
  {
    name: "a close that is published without a code",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      await t.publish("a", { action: "close" });
      await client.isOver();
      client.close();
      await end.isOver();
    },
  },
  {
    name: "a published message waits for the end of the backend's own",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      end.send({ opcode: "text", payload: "m:first ", fin: false });
      await t.sleep(100);
      await t.publish("a", { content: "published" });
      await t.sleep(100);
      end.send({ opcode: "continuation", payload: "half" });
      await client.has(1);
      end.send("m:behind it");
      await t.sleep(500);
      await t.publish("a", { content: "later" });
      await t.sleep(300);
    },
  },
  {
    name: "more than 20 subscriptions",
    async play(t) {
      const names = Array.from({ length: 22 }, (_, at) => `many-${at}`);
      const [client, end] = await t.pair();
      end.send(...names.map((name) => subscribe(name)));
      await t.subscribed(client, "many-19");
      for (const name of ["many-0", "many-20", "many-21", "many-1"]) await t.publish(name, { content: name });
      await t.fence(client, "many-1", "many-0");
    },
  },
  {
    name: "more than 5 filters",
    async play(t) {
      const [client, end] = await t.pair();
      await t.sleep(100);
      end.send(subscribe("a", { filters: ["skip-self", "skip-users", "require-sub", "build-id", "var-subst", "skip-self"] }));
      // For as long as it takes where nothing comes of it.
      await t.sleep(500);
      await t.publish("a", { content: "to a" });
      await t.sleep(200);
      client.got.sort();
    },
  },
  passedOver("a type that nobody knows", c({ type: "unknown", channel: "a" })),
  passedOver("control messages that are not JSON", "c:", "c:{", "c:nonsense", 'c:{"type":"subscribe",}', "c:null", "c:[]", 'c:"x"', "c:1"),
  passedOver("control messages without what they need", c({}), c({ type: "subscribe" }), c({ type: "unsubscribe" }), c({ type: "set-meta" }), c({ type: "keep-alive", content: 1 })),
  passedOver("control messages with other types", c({ type: 1 }), c({ type: "subscribe", channel: 1 }), c({ type: "subscribe", channel: ["a"] }), c({ type: "subscribe", channel: null })),
  passedOver("an empty channel", c({ type: "subscribe", channel: "" })),
  passedOver("filters that are no list", c({ type: "subscribe", channel: "a", filters: "skip-self" })),
  passedOver("filters that are no text", c({ type: "subscribe", channel: "a", filters: [1] })),
  passedOver("a filter that nobody knows", c({ type: "subscribe", channel: "a", filters: ["unheard-of"] })),
  passedOver("a session and its end", c({ type: "session", id: "s1" }), c({ type: "session" })),
  passedOver("unsubscribing from what is not subscribed", c({ type: "unsubscribe", channel: "a" })),
  passedOver("fields that nobody knows", c({ type: "subscribe", channel: "a", other: { deep: [1] } })),
  passedOver("a prev-id", c({ type: "subscribe", channel: "a", "prev-id": "nobody published this" })),
  passedOver("white space about JSON", 'c: {"type":"subscribe","channel":"a"} '),
  passedOver("a member twice", 'c:{"type":"subscribe","channel":"x","channel":"a"}'),
  passedOver("a channel of any characters", c({ type: "subscribe", channel: "ä b/\n\u0000" })),
  publishes("skip-self", [text("own", { meta: { sender: "u1" } }), text("other's", { meta: { sender: "u2" } }), text("nobody's")],
    { filters: ["skip-self"], metas: [["user", "u1"]] }),
  publishes("skip-self without a user", [text("any", { meta: { sender: "u1" } })], { filters: ["skip-self"] }),
  publishes("skip-users", [text("not for u1", { meta: { skip_users: "u0, u1" } }), text("not for others", { meta: { skip_users: "u0,u2" } })],
    { filters: ["skip-users"], metas: [["user", "u1"]] }),
  publishes("require-sub", [text("with b", { meta: { require_sub: "b" } }), text("with d", { meta: { require_sub: "d" } })],
    { filters: ["require-sub"], channels: ["b"] }),
  publishes("var-subst", [text("%(name)s and %%"), text("%(missing)s"), text("100%")],
    { filters: ["var-subst"], metas: [["name", "Ann"]] }),
  publishes("build-id", [text("id %I", { id: "i1" }), text("id %(i2)I", { id: "i2" })],
    { filters: ["build-id"], metas: [["id_format", "%(a)s"]] }),
  publishes("filters after each other", [text("%(name)s", { meta: { sender: "u2" } }), text("own", { meta: { sender: "u1" } })],
    { filters: ["skip-self", "var-subst"], metas: [["user", "u1"], ["name", "Ann"]] }),
  publishes("metadata that is taken back", [text("own", { meta: { sender: "u1" } })],
    { filters: ["skip-self"], metas: [["user", "u1"], ["user", undefined]] }),
  publishes("metadata without a filter", [text("own", { meta: { sender: "u1" } })], { metas: [["user", "u1"]] }),
  publishes("content filters that the subscriber does not have", [
    item({ content: "with", "content-filters": ["var-subst"] }), item({ content: "without", "content-filters": [] })]),
  publishes("dedupe by id", [text("one", { id: "same" }), text("again", { id: "same" }), text("other", { id: "other" })]),
  publishes("an id with its predecessor", [text("1", { id: "p1" }), text("2", { id: "p2", "prev-id": "p1" })]),
  publishes("items out of order", [text("1", { id: "o1" }), text("3", { id: "o3", "prev-id": "o2" }), text("2", { id: "o2", "prev-id": "o1" })]),
  publishes("items out of order with no-seq", [text("1", { id: "n1" }), text("3", { id: "n3", "prev-id": "n2", "no-seq": true }), text("2", { id: "n2", "prev-id": "n1", "no-seq": true })]),
  publishes("several items at once", [[text("one"), text("two", { id: "x" }), { ...text("elsewhere"), channel: "z" }, text("three")]]),
  publishes("content-bin, and every type", [
    item({ "content-bin": "AAECbTo=" }), item({ "content-bin": "dGV4dA==", type: "text" }), item({ content: "as binary", type: "binary" }),
    item({ content: "ping", type: "ping" }), item({ type: "ping" }), item({ content: "pong", type: "pong" }), item({ type: "pong" })]),
  publishes("the older form of an item", [{ channel: "a", "ws-message": { content: "old form" } }]),
  publishes("a hint and a refresh", [item({ action: "hint" }), item({ action: "refresh" }), text("after")]),
  publishes("an item for other transports alone", [{ channel: "a", formats: { "http-stream": { content: "not for us" } } }, text("after")]),
  publishes("text of any characters", [text("grüße \u0000 \u{1F600} c:{}")]),
  publishes("an empty text", [text("")]),
  publishes("a large text", [text("x".repeat(40_000))]),
  {
    name: "to every subscriber of a channel, once each",
    async play(t) {
      const [one] = await subscribed(t, ["a"]);
      const [two] = await subscribed(t, ["a", "b"]);
      const [three] = await subscribed(t, ["b"]);
      await t.publish("a", { content: "to a" });
      await t.publish("b", { content: "to b" });
      await t.fence(one, "a");
      await t.fence(two, "a", "b");
      await t.fence(three, "b");
    },
  },
  {
    name: "a channel twice",
    async play(t) {
      const [client, end] = await subscribed(t, ["a"]);
      end.send(subscribe("a"), subscribe("b"));
      await t.subscribed(client, "b");
      await t.publish("a", { content: "once" });
      await t.fence(client, "a");
    },
  },
  {
    name: "keep-alive",
    async play(t) {
      const [client, end] = await t.pair();
      end.send(c({ type: "keep-alive", content: "still here", timeout: 1 }));
      await client.has(2);
      end.send(c({ type: "keep-alive" }), "m:off");
      await t.until(() => "off", () => client.got.includes("off"));
      const before = client.got.length;
      await t.sleep(1_500);
      client.got.splice(1, before - 2);
    },
  },
  {
    name: "keep-alive of other types",
    async play(t) {
      for (const more of [{ "message-type": "ping", content: "p" }, { "message-type": "binary", "content-bin": "AAE=" }, { content: "x", mode: "interval" }]) {
        const [client, end] = await t.pair();
        end.send(c({ type: "keep-alive", timeout: 1, ...more }));
        await client.has(1);
        client.drop();
        await t.sleep(50);
        client.got.length = 1;
      }
    },
  },
  {
    name: "send-delayed and flush-delayed",
    async play(t) {
      const [client, end] = await t.pair();
      end.send(c({ type: "send-delayed", content: "first", timeout: 30 }));
      end.send(c({ type: "send-delayed", content: "second", timeout: 30 }));
      await client.has(1);
      end.send(c({ type: "flush-delayed" }));
      await client.has(2);
      end.send(c({ type: "flush-delayed" }), c({ type: "send-delayed", content: "third", timeout: 1 }));
      await client.has(3);
    },
  },
];

export default cases.map((each) => ({ mode: "grip", ...each }));
