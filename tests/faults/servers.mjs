// What faults happen to: a Redis of a run's own, a relay before it, and the backend of all sessions.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { WebSocketServer } from "ws";
import { eventually, freePort } from "../support.mjs";

const run = promisify(execFile);

/** A redis-server with a folder and a port of its own, which can be killed, stopped and started again. */
export class Redis {
  static async start(...args) {
    const redis = new Redis();
    redis.args = args;
    redis.folder = await mkdtemp(join(tmpdir(), "sluicegate-redis-"));
    for (let tries = 0; ; tries += 1) {
      redis.port = await freePort();
      try {
        await redis.up();
        return redis;
      } catch (error) {
        // Somebody else took the port.
        if (tries === 4) throw error;
      }
    }
  }

  async up() {
    const { port, folder, args } = this;
    const own = ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""];
    this.child = spawn("redis-server", [...own, ...args], { stdio: "ignore" });
    const { child } = this;
    this.ended = once(child, "exit");
    const mine = (text) => String(text).includes(`process_id:${child.pid}\r`);
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`redis-server ended with ${child.exitCode}`);
      return this.ask("INFO", "server").catch(String);
    }, mine);
  }

  /** The answer to a command. */
  async ask(...words) {
    const { stdout } = await run("redis-cli", ["-p", String(this.port), ...words], { timeout: 5_000 });
    return stdout;
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.ended;
  }

  async empty() {
    await rm(this.folder, { recursive: true, force: true });
    this.folder = await mkdtemp(join(tmpdir(), "sluicegate-redis-"));
  }

  signal(name) {
    this.child.kill(name);
  }

  async stop() {
    this.child.kill("SIGCONT");
    await this.kill();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A port that leads to another one, which can be changed; what passes then is cut. */
export async function relay(target) {
  const sockets = new Set();
  const server = createServer((from) => {
    const to = connect(target, "127.0.0.1");
    for (const [one, other] of [[from, to], [to, from]]) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => (sockets.delete(one), other.destroy()));
    }
    from.pipe(to).pipe(from);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => sockets.forEach((socket) => socket.destroy());
  return {
    port: server.address().port,
    to(port) {
      target = port;
      cut();
    },
    stop() {
      cut();
      server.close();
    },
  };
}

/**
 * The backend of a run. `/s?ask=[[CHANNEL, PREV], …]` subscribes to these channels, from behind the item PREV if that
 * is no null; `/plain` repeats what it is sent, and does not speak GRIP.
 */
export async function backend() {
  const server = http.createServer((_, response) => response.end("ok"));
  const sockets = new WebSocketServer({ noServer: true });
  sockets.on("headers", (headers, request) => {
    if (request.url.startsWith("/s") && request.headers["sec-websocket-extensions"] === "grip") {
      headers.push("Sec-WebSocket-Extensions: grip");
    }
  });
  server.on("upgrade", (request, socket, head) => {
    sockets.handleUpgrade(request, socket, head, (client) => {
      client.on("error", () => {});
      if (!request.url.startsWith("/s")) return client.on("message", (data) => client.send(String(data)));
      for (const [channel, prev] of JSON.parse(new URL(request.url, "http://backend").searchParams.get("ask"))) {
        const recover = { "on-gap": "send", content: JSON.stringify({ gap: channel }) };
        const from = prev === null ? {} : { "prev-id": prev };
        client.send(`c:${JSON.stringify({ type: "subscribe", channel, recover, ...from })}`);
      }
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: server.address().port,
    stop() {
      sockets.clients.forEach((client) => client.terminate());
      server.closeAllConnections();
      server.close();
    },
  };
}
