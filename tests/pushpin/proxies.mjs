// The two proxies that are compared: Debian's pushpin, as processes and files of a run's own, and the gateway.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { eventually, freePort, gateway } from "../support.mjs";

export const KEY = "a-key-of-sixteen-bytes-and-more";

const open = (port) =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => (socket.destroy(), resolve(true)));
    socket.once("error", () => resolve(false));
  });

/** Pushpin 1.36 of Debian 12, with what it is installed with but for its paths, its ports and its key. */
export async function pushpin(backend) {
  const folder = await mkdtemp(join(tmpdir(), "sluicegate-pushpin-"));
  const [http, pull, sub, publish, command] = await Promise.all(Array.from({ length: 5 }, freePort));
  // The package's own file looks for a zurl that Debian's service runs; this one is started with the rest.
  const internal = (await readFile("/usr/lib/pushpin/internal.conf", "utf8"))
    .replaceAll("ipc:///var/run/zurl/", "ipc://{rundir}/{ipc_prefix}");
  const settings = {
    include: `${folder}/internal.conf`, rundir: `${folder}/run`, logdir: `${folder}/log`,
    services: "condure,zurl,pushpin-proxy,pushpin-handler", http_port: `127.0.0.1:${http}`,
    routesfile: `${folder}/routes`, sig_iss: "a-gateway", sig_key: KEY,
    push_in_spec: `tcp://127.0.0.1:${pull}`, push_in_sub_specs: `tcp://127.0.0.1:${sub}`,
    push_in_http_port: publish, command_spec: `tcp://127.0.0.1:${command}`,
  };
  let text = await readFile("/etc/pushpin/pushpin.conf", "utf8");
  for (const [name, value] of Object.entries(settings)) {
    // The sections have a `command_spec` and a `stats_spec` each only where they are not commented out.
    const line = new RegExp(`^${name}=.*$`, "m");
    if (!line.test(text)) throw new Error(`pushpin.conf has no ${name}`);
    text = text.replace(line, `${name}=${value}`);
  }
  await Promise.all([mkdir(`${folder}/run`), mkdir(`${folder}/log`)]);
  await writeFile(`${folder}/internal.conf`, internal);
  await writeFile(`${folder}/pushpin.conf`, text);
  await writeFile(`${folder}/routes`, [
    `*,path_beg=/http/ 127.0.0.1:${backend},over_http`,
    `* 127.0.0.1:${backend}`, ""].join("\n"));
  const child = spawn("pushpin", ["--config", `${folder}/pushpin.conf`, "--merge-output"], {
    stdio: ["ignore", "pipe", "pipe"], detached: true,
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => (said += part));
  const ended = once(child, "exit");
  await eventually(async () => {
    if (child.exitCode !== null) throw new Error(`pushpin ended: ${said}`);
    return (await open(http)) && (await open(publish));
  }, Boolean);
  return {
    name: "pushpin",
    port: http,
    publish,
    modes: ["grip", "grip_http", "hold", "publish"],
    log: () => said,
    async stop() {
      child.kill("SIGTERM");
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** What a mode's rule needs, for each mode that the gateway has. */
const RULES = { grip: "backplane: grip", grip_http: "backplane: grip_http", hold: "backplane: grip" };

/** The gateway, its engine in its memory; `history` is more for the section `backplane`. */
export async function ours(backend, history = "") {
  const gate = await gateway(`
version: 1
listeners: [{ name: public, bind: "127.0.0.1:0" }]
admin: { bind: "127.0.0.1:0" }
upstreams: [{ name: app, endpoints: ["127.0.0.1:${backend}"] }]
backplane:${history}
  publish: { bind: "127.0.0.1:0" }
  grip: { sig_key_file: grip.key, sig_iss: a-gateway }
rules:
  - { name: over_http, match: { path_prefix: /http }, upstream: app, ${RULES.grip_http} }
  - { name: grip, upstream: app, ${RULES.grip} }
`, { "grip.key": KEY });
  const { address } = await gate.line({ event: "listening", listener: "publish" });
  return {
    name: "sluicegate",
    port: gate.port,
    publish: Number(address.split(":").at(-1)),
    modes: [...Object.keys(RULES), "publish"],
    log: () => gate.log.map((line) => JSON.stringify(line)).join("\n"),
    stop: () => gate.stop(),
  };
}
