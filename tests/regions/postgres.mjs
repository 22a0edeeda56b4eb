// A PostgreSQL of a test's own: a cluster in a temporary folder, on a free port of this machine.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chown, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { eventually, freePort, temporaryFolder } from "../support.mjs";

const run = promisify(execFile);
/** Where Debian keeps what is not for everyone's path. */
const DEBIAN = "/usr/lib/postgresql";

/** The environment in which `initdb` and `postgres` are found, those of the newest version that is installed first. */
async function environment() {
  const versions = await readdir(DEBIAN).catch(() => []);
  const folders = versions.sort((one, other) => Number(other) - Number(one)).map((version) => join(DEBIAN, version, "bin"));
  return { ...process.env, PATH: [...folders, process.env.PATH].join(":") };
}

/** PostgreSQL refuses root: then it runs as the user that its package makes, or as nobody. */
async function unprivileged() {
  if (process.getuid() !== 0) return {};
  const users = (await readFile("/etc/passwd", "utf8")).split("\n").map((line) => line.split(":"));
  const found = ["postgres", "nobody"].map((name) => users.find(([user]) => user === name)).find(Boolean);
  if (!found) throw new Error("PostgreSQL refuses root, and there is neither a user postgres nor nobody");
  return { uid: Number(found[2]), gid: Number(found[3]) };
}

export class Postgres {
  /** Starts one with an empty database `chat`, which anybody on this machine may use. */
  static async start() {
    const postgres = new Postgres();
    const user = await unprivileged();
    const env = await environment();
    postgres.env = env;
    postgres.folder = await temporaryFolder();
    try {
      if (user.uid !== undefined) await chown(postgres.folder, user.uid, user.gid);
      const data = join(postgres.folder, "data");
      const options = { ...user, env, cwd: postgres.folder };
      await run("initdb", ["-D", data, "-U", "chat", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"], options);
      for (let tries = 0; ; tries += 1) {
        try {
          await postgres.up(data, options);
          break;
        } catch (error) {
          // Somebody else took the port.
          if (tries === 4) throw error;
        }
      }
      await postgres.ask("create database chat", "postgres");
    } catch (error) {
      await postgres.stop();
      throw error;
    }
    return postgres;
  }

  async up(data, options) {
    this.port = await freePort();
    // No test cuts the power of the machine; processes that are killed lose nothing that was written.
    const settings = ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=60", "shared_buffers=32MB"];
    this.child = spawn("postgres", ["-D", data, "-p", String(this.port), ...settings.flatMap((setting) => ["-c", setting])],
      { ...options, stdio: ["ignore", "ignore", "pipe"] });
    const { child } = this;
    let said = "";
    child.stderr.on("data", (part) => (said = (said + part).slice(-4_000)));
    child.once("error", (error) => (said += error.message));
    this.ended = once(child, "exit").catch(() => {});
    await eventually(async () => {
      if (child.exitCode !== null || child.pid === undefined) throw new Error(`postgres ended: ${said}`);
      return this.ask("select 1", "postgres").then(() => true, () => false);
    }, Boolean);
  }

  /** The rows that a statement gives, each as its columns' texts. */
  async ask(sql, database = "chat") {
    const words = ["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", String(this.port), "-U", "chat"];
    const { stdout } = await run("psql", [...words, "-c", sql, database], { env: this.env, timeout: 10_000, maxBuffer: 64 << 20 });
    return stdout.split("\n").filter(Boolean).map((line) => line.split("\t"));
  }

  /** Ends it at once; it ends its own processes. */
  kill() {
    this.child?.kill("SIGQUIT");
  }

  async stop() {
    this.kill();
    await this.ended;
    await rm(this.folder, { recursive: true, force: true });
  }
}
