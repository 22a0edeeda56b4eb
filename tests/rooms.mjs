// The backend with rooms behind gateways on one Redis, for the tests of the clients that keep their place.

import { rm } from "node:fs/promises";
import { backend, freePort, gateway, serve, temporaryFolder } from "./support.mjs";

/** A gateway's configuration. `more` are lines of its own, `rule` keys of the rule of the rooms. */
export const configuration = (port, engine, { more = "", rule = "", history = "" } = {}) => `
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${port}"] }]
backplane: { engine: ${engine}, region: eu, publish: { bind: "127.0.0.1:0" }${history} }
${more}
rules:
  - { name: app, match: { path_prefix: /plain }, upstream: app }
  - { name: rooms, upstream: app, backplane: grip${rule} }
`;

/** Starts a gateway before the backend on `port`. */
export async function start(port, engine = "memory", options = {}) {
  const gate = await gateway(configuration(port, engine, options));
  const [publish, admin] = await Promise.all(
    ["publish", "admin"].map(async (listener) => (await gate.line({ event: "listening", listener })).address));
  return { ...gate, publish: `http://${publish}/publish`, admin: `http://${admin}` };
}

/** Publishes a text for each id, and fails where it is not stored. */
export async function publish(gate, channel, ids, text = (id) => `text ${id}`) {
  const items = ids.map((id) => ({ channel, id: String(id), formats: { "ws-message": { content: text(id) } } }));
  const answer = await fetch(gate.publish, { method: "POST", body: JSON.stringify({ items }) });
  if (answer.status !== 200) throw new Error(`publishing: ${answer.status} ${await answer.text()}`);
}

/** The backend, a Redis, and two gateways on it. */
export async function bed() {
  const folder = await temporaryFolder();
  const redisPort = await freePort();
  const stopRedis = await serve("redis-server",
    ["--port", String(redisPort), "--bind", "127.0.0.1", "--dir", folder, "--save", ""], [redisPort]);
  const peer = await backend("backends/grip_rooms.mjs");
  const engine = `{ redis: { url: "redis://127.0.0.1:${redisPort}" } }`;
  const gates = await Promise.all([start(peer.port, engine), start(peer.port, engine)]);
  for (const gate of gates) await gate.metric("sluicegate_region_up", {}, 1);
  return {
    peer,
    gates,
    another: (options) => start(peer.port, engine, options),
    async stop() {
      await Promise.all([...gates.map((gate) => gate.stop()), peer.stop()]);
      await stopRedis();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
