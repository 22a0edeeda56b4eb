// Plain requests that a backend has held, by GRIP's headers and bodies as they are on the wire.

import assert from "node:assert/strict";
import http2 from "node:http2";
import { after, before, test } from "node:test";
import { backend, eventually, gateway } from "./support.mjs";

let peer, gate;
before(async () => {
  peer = await backend("backends/grip_holds.mjs");
  gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
access_log: on
upstreams: [{ name: app, endpoints: ["127.0.0.1:${peer.port}"] }]
backplane: { publish: { bind: "127.0.0.1:0" } }
rules: [{ name: app, upstream: app, backplane: grip, response_headers: { set: { X-Edited: "yes" } } }]
`);
  const { address } = await gate.line({ event: "listening", listener: "publish" });
  gate.publish = `http://${address}/publish`;
});
after(() => Promise.all([gate?.stop(), peer?.stop()]));

const query = (headers, body, more = {}) => new URLSearchParams({ headers: JSON.stringify(headers), body, ...more });
const asked = async (path) =>
  (await (await fetch(`http://127.0.0.1:${peer.port}/asked`)).json()).filter(({ url }) => url.startsWith(path));
const publish = async (...items) => {
  const answer = await fetch(gate.publish, { method: "POST", body: JSON.stringify({ items }) });
  assert.equal(answer.status, 200);
};
const streamed = (channel, id, content) => ({ channel, id, formats: { "http-stream": { content } } });
const subscribed = (wanted) => gate.metric("sluicegate_subscriptions", {}, wanted);

/** A request whose body is read as it comes. */
async function stream(path, options = {}) {
  const abort = new AbortController();
  const answer = await fetch(`${gate.http}${path}`, { signal: abort.signal, ...options });
  const got = { text: "", ended: false };
  (async () => {
    for await (const piece of answer.body) got.text += Buffer.from(piece).toString();
    got.ended = true;
  })().catch(() => {});
  const has = (text) => eventually(() => got.text, (all) => all === text);
  return { answer, got, has, leave: () => abort.abort() };
}

test("a response without an instruction passes as it is, and the backend knows who asks", async () => {
  const answer = await fetch(`${gate.http}/plain?${query([["X-Own", "1"]], "as it is")}`, {
    method: "PUT", body: "some", headers: { "Grip-Last": "forged" } });
  assert.deepEqual([answer.status, await answer.text()], [200, "as it is"]);
  assert.deepEqual([answer.headers.get("x-own"), answer.headers.get("x-edited")], ["1", "yes"]);
  const head = await fetch(`${gate.http}/plain?${query([["Grip-Hold", "stream"], ["Grip-Channel", "x"]], "")}`, { method: "HEAD" });
  assert.equal(head.status, 200);
  const [{ method, body, headers }] = await asked("/plain");
  assert.deepEqual([method, body, headers["grip-last"]], ["PUT", "some", undefined]);
  assert.match(headers["grip-feature"], /(^|, )link:next(,|$)/);
  const line = await gate.line({ event: "request", path: "/plain", method: "PUT" });
  assert.deepEqual([line.status, line.endpoint], [200, `127.0.0.1:${peer.port}`]);
});

test("a stream behind an id gets what was published since, then what is, with keep-alives between", async () => {
  await publish(streamed("s", "s-1", "one\n"), streamed("s", "s-2", "two\n"));
  const hold = [
    ["Grip-Hold", "stream"], ["Grip-Channel", "s; prev-id=s-1"], ["Grip-Link", "</next>; rel=next; timeout=100"],
    ["Grip-Keep-Alive", "\\n; format=cstring; timeout=1"], ["Content-Type", "text/event-stream"]];
  const reader = await stream(`/stream?${query(hold, "zero\n")}`);
  assert.equal(reader.answer.headers.get("content-type"), "text/event-stream");
  assert.equal(reader.answer.headers.get("grip-hold"), null);
  await eventually(() => reader.got.text, (text) => text.startsWith("zero\ntwo\n") && text.endsWith("\n\n"));
  await publish(streamed("s", "s-3", "three\n"));
  await eventually(() => reader.got.text.replace(/\n+/g, "\n"), (text) => text === "zero\ntwo\nthree\n");
  reader.leave();
  await subscribed(0);
});

test("a stream whose place is not known goes on by its link", async () => {
  await publish(streamed("l", "l-1", "one\n"), streamed("l", "l-2", "two\n"));
  const following = query(
    [["Grip-Hold", "stream"], ["Grip-Channel", "l; prev-id=l-1"], ["Grip-Link", "</more>; rel=next"]], "from the database\n");
  const hold = [
    ["Grip-Hold", "stream"], ["Grip-Channel", "l; prev-id=l-0"], ["Grip-Link", `</link?${following}>; rel=next`]];
  const reader = await stream(`/linked?${query(hold, "zero\n")}`);
  await reader.has("zero\nfrom the database\ntwo\n");
  assert.equal((await asked("/link?"))[0].headers["grip-last"], "l; last-id=l-0");
  // A hint has the link asked, which has nothing: the stream ends.
  await publish({ channel: "l", id: "l-3", formats: { "http-stream": { action: "hint" } } });
  await eventually(() => reader.got.ended, Boolean);
  assert.equal((await asked("/more"))[0].headers["grip-last"], "l; last-id=l-3");
});

test("a hold may be in the body, and so may the response", async () => {
  const instruct = {
    hold: { mode: "stream", channels: [{ name: "b" }] },
    response: { code: 201, headers: { "X-In-Body": "1" }, body: "in the body\n" } };
  const reader = await stream(`/body?${query([["Content-Type", "application/grip-instruct"]], JSON.stringify(instruct))}`);
  assert.deepEqual([reader.answer.status, reader.answer.headers.get("x-in-body")], [201, "1"]);
  await subscribed(1);
  await publish(streamed("b", "b-1", "more\n"));
  await reader.has("in the body\nmore\n");
  reader.leave();
  await subscribed(0);
});

test("a response that is old is asked for again, and one that changes it is made of it", async () => {
  const then = query([["Content-Type", "text/plain"]], "newer\n");
  const old = [["Grip-Hold", "response"], ["Grip-Channel", "r; prev-id=unknown"]];
  const again = await fetch(`${gate.http}/old?${query(old, "old\n", { then })}`, { method: "POST", body: "kept" });
  assert.equal(await again.text(), "newer\n");
  assert.deepEqual((await asked("/old")).map(({ body, headers }) => [body, headers["grip-last"]]), [
    ["kept", undefined], ["kept", "r; last-id=unknown"]]);
  const hold = [["Grip-Hold", "response"], ["Grip-Channel", "p"], ["Content-Type", "application/json"]];
  const waiting = fetch(`${gate.http}/patched?${query(hold, '{"votes":1,"for":"tea"}')}`);
  await subscribed(1);
  const patch = [{ op: "replace", path: "/votes", value: 2 }];
  await publish({ channel: "p", formats: { "http-response": { "body-patch": patch } } });
  assert.deepEqual(await (await waiting).json(), { votes: 2, for: "tea" });
});

test("a status of its own, and only the headers that are exposed", async () => {
  const headers = [["Grip-Status", "404 Gone Fishing"], ["Grip-Expose-Headers", "X-Seen"], ["X-Seen", "1"], ["X-Hidden", "1"]];
  const answer = await fetch(`${gate.http}/status?${query(headers, "no\n")}`);
  assert.deepEqual([answer.status, answer.statusText, await answer.text()], [404, "Gone Fishing", "no\n"]);
  assert.deepEqual([answer.headers.get("x-seen"), answer.headers.get("x-hidden")], ["1", null]);
});

test("what cannot be held is a 502 that says why", async () => {
  const hold = [["Grip-Hold", "stream"], ["Grip-Channel", "x"]];
  const get = async (path, headers, options) => (await fetch(`${gate.http}${path}?${query(headers, "")}`, options)).status;
  assert.equal(await get("/bad", [["Grip-Hold", "for ever"], ["Grip-Channel", "x"]]), 502);
  assert.match((await gate.line({ event: "refusal", path: "/bad" })).detail, /'response' or 'stream'/);
  assert.equal(await get("/gzip", [...hold, ["Content-Encoding", "gzip"]]), 502);
  assert.equal(await get("/long", hold, { method: "POST", body: "x".repeat(100_001) }), 502);
  assert.equal((await gate.line({ event: "refusal", path: "/long" })).detail, "a request with a long body cannot be held");
  assert.equal(await get("/long-plain", [], { method: "POST", body: "x".repeat(100_001) }), 200);
});

test("a stream over HTTP/2 is one like any other", async () => {
  const session = http2.connect(gate.http);
  const hold = query([["Grip-Hold", "stream"], ["Grip-Channel", "h2"]], "zero\n");
  const request = session.request({ ":path": `/h2?${hold}` });
  let text = "";
  request.setEncoding("utf8").on("data", (piece) => (text += piece));
  await subscribed(1);
  await publish(streamed("h2", "1", "one\n"));
  await eventually(() => text, (all) => all === "zero\none\n");
  request.close();
  await subscribed(0);
  session.close();
});
