// MQTT over WebSocket: mosquitto behind the gateway under rules/mqtt.yaml, and the mqtt package before it.

import assert from "node:assert/strict";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import mqtt from "mqtt";
import { backend, client, eventually, freePort, gateway, rules, serve, temporaryFolder } from "../support.mjs";

describe("mosquitto behind rules/mqtt.yaml", () => {
  let folder, stopBroker, bridge, gate;
  const clients = [];

  before(async () => {
    folder = await temporaryFolder();
    const port = await freePort();
    await writeFile(join(folder, "mosquitto.conf"), `
listener ${port} 127.0.0.1
allow_anonymous true
persistence false
${process.getuid() === 0 ? "user root" : ""}
`);
    stopBroker = await serve("mosquitto", ["-c", join(folder, "mosquitto.conf")], [port]);
    bridge = await backend("backends/mqtt_bridge.mjs", { BROKER: String(port) });
    gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: mqtt, endpoints: ["127.0.0.1:${bridge.port}"] }]
rule_files: ["${rules("mqtt")}"]
`);
  });
  after(async () => {
    await Promise.all(clients.map((each) => each.endAsync(true).catch(() => {})));
    await Promise.all([gate?.stop(), bridge?.stop(), stopBroker?.()]);
    if (folder) await rm(folder, { recursive: true, force: true });
  });

  const connect = async (options = {}) => {
    const all = { reconnectPeriod: 0, connectTimeout: 10_000, ...options };
    const connected = await mqtt.connectAsync(`${gate.ws}/mqtt`, all);
    clients.push(connected);
    connected.received = [];
    connected.on("message", (topic, payload, packet) => connected.received.push({ topic, payload, ...packet }));
    return connected;
  };

  for (const [version, protocolVersion] of [["3.1.1", 4], ["5", 5]]) {
    test(`delivers QoS 1 to every subscriber, in order and once, in MQTT ${version}`, async () => {
      const topic = `rooms/${protocolVersion}`;
      const subscribers = await Promise.all([1, 2, 3].map(() => connect({ protocolVersion })));
      for (const each of subscribers) {
        const [granted] = await each.subscribeAsync(`rooms/+`, { qos: 1 });
        assert.equal(granted.qos, 1);
      }
      const publisher = await connect({ protocolVersion });
      const sent = Array.from({ length: 100 }, (_, i) => `${i}: ${"x".repeat(i * 20)}`);
      // Answered by the broker's PUBACK.
      for (const payload of sent) await publisher.publishAsync(topic, payload, { qos: 1 });
      for (const each of subscribers) {
        await eventually(() => each.received.length, (count) => count >= sent.length);
        assert.deepEqual(each.received.map(({ payload }) => payload.toString()), sent);
        assert.ok(each.received.every(({ qos, dup }) => qos === 1 && !dup));
      }
      for (const each of [publisher, ...subscribers]) await each.endAsync();
    });
  }

  test("a session is logged with its subprotocol, and its messages pass as they are", async () => {
    const line = await gate.line({ event: "session", rule: "mqtt" });
    assert.deepEqual([line.subprotocol, line.path, line.cause], ["mqtt", "/mqtt", "client_closed"]);
    assert.ok(line.messages_in >= 3 && line.messages_out >= 3, JSON.stringify(line));
    const sessions = await (await fetch(bridge.http)).json();
    assert.ok(sessions.every(({ protocol }) => protocol === "mqtt"), JSON.stringify(sessions));
  });

  test("carries binary payloads of 200 KiB", async () => {
    const payload = Buffer.from(Array.from({ length: 200 * 1024 }, (_, i) => (i * 31) & 255));
    const each = await connect();
    await each.subscribeAsync("binary", { qos: 1 });
    await each.publishAsync("binary", payload, { qos: 1 });
    await eventually(() => each.received.length, (count) => count === 1);
    assert.ok(payload.equals(each.received[0].payload));
  });

  test("a client that vanishes leaves its last will", async () => {
    const watcher = await connect();
    await watcher.subscribeAsync("gone", { qos: 1 });
    const will = { topic: "gone", payload: Buffer.from("sensor 7"), qos: 1, retain: false };
    const vanishing = await connect({ will });
    vanishing.on("error", () => {});
    vanishing.stream.destroy();
    await eventually(() => watcher.received.length, (count) => count === 1);
    assert.equal(watcher.received[0].payload.toString(), "sensor 7");
  });

  test("MQTT's own keep alive passes, as messages", async () => {
    const each = await connect({ keepalive: 1 });
    let answers = 0;
    each.on("packetreceive", ({ cmd }) => (answers += cmd === "pingresp" ? 1 : 0));
    await eventually(() => answers, (count) => count >= 2);
    assert.ok(each.connected);
  });

  test("a message over the limit of the rule is 1009, and the other clients do not feel it", async () => {
    const other = await connect();
    await other.subscribeAsync("other", { qos: 1 });
    const each = await connect();
    each.on("error", () => {});
    const closed = new Promise((resolve) => each.once("close", resolve));
    each.publish("large", Buffer.alloc(300 * 1024), { qos: 1 }, () => {});
    await closed;
    const line = await gate.line({ event: "session", cause: "message_too_big" });
    assert.deepEqual([line.close_code, line.closed_by], [1009, "proxy"]);
    await other.publishAsync("other", "still here", { qos: 1 });
    await eventually(() => other.received.length, (count) => count === 1);
  });

  test("without MQTT's subprotocol the broker's refusal arrives; without an upgrade it is 426", async () => {
    const { close } = await client("clients/ws_client.mjs", `${gate.ws}/mqtt`, [{ closed: true }]);
    assert.deepEqual(close, { code: 1002, reason: "no MQTT" });
    assert.equal((await fetch(`${gate.http}/mqtt`)).status, 426);
    assert.equal((await fetch(`${gate.http}/elsewhere`)).status, 404);
  });
});
