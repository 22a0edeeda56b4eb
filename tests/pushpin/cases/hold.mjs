// HTTP holds: the backend answers a plain request with instructions, and the proxy keeps the client.

const answer = (headers, body = "", status = undefined) => () => ({ ...(status ? { status } : {}), headers: { "Content-Type": "text/plain", ...headers }, body });
const item = (channel, formats, more = {}) => ({ items: [{ channel, formats, ...more }] });
const instruct = (instructions) => () => ({ headers: { "Content-Type": "application/grip-instruct" }, body: JSON.stringify(instructions) });

/** A stream, and what is published to it, until its last line. */
const stream = (name, respond, items, until, options) => ({
  name,
  respond,
  async play(t) {
    const got = await t.get("/hold", options);
    await got.has("\r\n\r\n");
    await t.sleep(300);
    for (const each of items) {
      await t.control(each);
      await t.sleep(30);
    }
    await (until === undefined ? t.until(() => "an end", () => got.response.ended) : got.has(until));
  },
});

/** A request that is answered when something is published. */
const response = (name, respond, body, until) => ({
  name,
  respond,
  async play(t) {
    const got = await t.get("/hold");
    await t.until(() => "the backend's answer", () => t.requests.length > 0);
    await t.sleep(300);
    await t.control(body);
    await got.has(until);
  },
});

const line = (content, more) => item("a", { "http-stream": { content: `${content}\n` } }, more);

const cases = [
  stream("hold: a stream", answer({ "Grip-Hold": "stream", "Grip-Channel": "a", "X-Backend": "kept" }, "first\n"), [line("one"), line("two")], "two\n"),
  stream("hold: a stream of two channels", answer({ "Grip-Hold": "stream", "Grip-Channel": "a, b" }, "first\n"),
    [line("one"), item("b", { "http-stream": { content: "two\n" } }), item("z", { "http-stream": { content: "elsewhere\n" } }), line("three")], "three\n"),
  stream("hold: a stream that a publication ends", answer({ "Grip-Hold": "stream", "Grip-Channel": "a" }, "first\n"),
    [line("one"), item("a", { "http-stream": { action: "close" } })], "one\n"),
  stream("hold: a stream's binary content", answer({ "Grip-Hold": "stream", "Grip-Channel": "a" }, "first\n"),
    [item("a", { "http-stream": { "content-bin": Buffer.from("binary\n").toString("base64") } })], "binary\n"),
  stream("hold: a stream with a filter", answer({ "Grip-Hold": "stream", "Grip-Channel": "a; filter=skip-self", "Grip-Set-Meta": 'user="u1"' }, "first\n"),
    [line("own", { meta: { sender: "u1" } }), line("other's", { meta: { sender: "u2" } })], "other's\n"),
  stream("hold: a stream's keep-alive", answer({ "Grip-Hold": "stream", "Grip-Channel": "a", "Grip-Keep-Alive": "ping\\n; format=cstring; timeout=1" }, "first\n"),
    [], "ping\n"),
  stream("hold: a stream by instructions in JSON", instruct({
    hold: { mode: "stream", channels: [{ name: "a" }] }, response: { code: 200, headers: { "Content-Type": "text/plain", "X-Own": "kept" }, body: "first\n" },
  }), [line("one")], "one\n"),
  stream("hold: a stream is deduped by id", answer({ "Grip-Hold": "stream", "Grip-Channel": "a" }, "first\n"),
    [line("one", { id: "h1" }), line("one again", { id: "h1" }), line("two", { id: "h2" })], "two\n"),
  response("hold: a response", answer({ "Grip-Hold": "response", "Grip-Channel": "a" }, "timed out\n"),
    item("a", { "http-response": { code: 201, reason: "Made", headers: { "X-Published": "yes", "Content-Type": "text/plain" }, body: "published\n" } }), "published\n"),
  response("hold: a response with a body in base64", answer({ "Grip-Hold": "response", "Grip-Channel": "a" }, "timed out\n"),
    item("a", { "http-response": { headers: [["Content-Type", "text/plain"]], "body-bin": Buffer.from("binary\n").toString("base64") } }), "binary\n"),
  response("hold: a response by instructions in JSON", instruct({ hold: { mode: "response", channels: [{ name: "a" }] } }),
    item("a", { "http-response": { headers: { "Content-Type": "text/plain" }, body: "published\n" } }), "published\n"),
  {
    name: "hold: a response that times out",
    // Pushpin asks the backend once or twice, from run to run.
    unstable: ["requests", "events"],
    respond: answer({ "Grip-Hold": "response", "Grip-Channel": "quiet", "Grip-Timeout": "5" }, "timed out\n"),
    async play(t) {
      const got = await t.get("/hold");
      await got.has("timed out\n");
    },
  },
  {
    name: "hold: no hold",
    respond: answer({ "X-Backend": "kept", "Grip-Unknown": "dropped" }, "plain\n"),
    async play(t) {
      const got = await t.get("/hold?a=b", { headers: { "Grip-Sig": "forged", "X-Own": "kept" } });
      await got.has("plain\n");
    },
  },
  {
    name: "hold: a status for the client",
    respond: answer({ "Grip-Status": "304" }, ""),
    async play(t) {
      const got = await t.get("/hold");
      await got.has("304");
    },
  },
];

export default cases.map((each) => ({ mode: "hold", ...each }));
