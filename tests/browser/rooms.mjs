// The demo's rooms as a visitor sees them, in headless Chromium: two gateways, of which either is killed while six readers
// read, with one Redis and with a memory of its own each.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import { after, before, test } from "node:test";
import { firstLine, SLUICEGATE, temporaryFolder } from "../support.mjs";
import { openChromium } from "./chromium.mjs";

const URL_PRINTED = /\bhttp:\/\/[^\s"']+/;
let chromium, empty;
before(async () => {
  chromium = await openChromium();
  empty = await temporaryFolder();
});
after(() => Promise.all([chromium?.close(), rm(empty, { recursive: true })]));

for (const [name, engine, env] of [
  ["one Redis", "one Redis", {}],
  // Where no program is found, no redis-server is.
  ["memories", "a memory of its own each", () => ({ PATH: empty })],
]) {
  test(`either gateway is killed, and no line is lost or comes twice: ${name}`, async () => {
    const own = typeof env === "function" ? env() : env;
    const demo = spawn(SLUICEGATE, ["demo", "--for", "60s"], { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...own } });
    const exited = new Promise((resolve) => demo.once("exit", (code, signal) => resolve({ code, signal })));
    const page = await chromium.page.context().newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    try {
      const [url] = URL_PRINTED.exec(await firstLine(demo, (line) => URL_PRINTED.test(line)));
      await page.goto(`${url.replace(/\/$/, "")}/rooms`);
      const read = (id) => page.locator(`#${id}`).textContent();
      const until = async (what, holds) => {
        for (let tries = 0; !(await holds()); tries += 1) {
          assert.ok(tries < 400, `${what}: ${await page.locator("#readers").innerText()} ${await read("error")}`);
          await page.waitForTimeout(50);
        }
      };
      const more = async () => {
        const before = Number(await read("lines"));
        await until("more lines", async () => Number(await read("lines")) > before + 40);
      };
      const everybodyIs = (gateway) => until(`all on ${gateway}`, async () => {
        const cells = await page.locator("#readers td:nth-child(2)").allTextContents();
        return cells.length === 6 && cells.every((cell) => (gateway ? cell === gateway : cell !== "…"));
      });
      await everybodyIs();
      assert.equal(await read("engine"), engine);
      await more();
      for (const [killed, left] of [[0, "B"], [1, "A"]]) {
        await page.click(`#switch-${killed}`);
        await until("killed", async () => (await page.locator(`#gateway-${killed} .state`).textContent()) === "killed");
        await everybodyIs(left);
        await more();
        await page.click(`#switch-${killed}`);
        await until("runs again", async () => (await page.locator(`#gateway-${killed} .state`).textContent()).startsWith("runs"));
      }
      await page.fill("#chat-text", "<b>hello</b>");
      await page.click("#send");
      await until("the line", async () => (await read("chat-log")).includes("<b>hello</b>"));
      await more();
      assert.deepEqual([await read("lost"), await read("doubled")], ["0", "0"], await page.locator("#readers").innerText());
      const returns = await page.locator("#readers td:nth-child(6)").allTextContents();
      assert.ok(returns.every((count) => Number(count) >= 1), returns.join(" "));
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      assert.ok(overflow <= 0, `${overflow} pixels too wide`);
      if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/rooms.png`, fullPage: true });
      assert.deepEqual(faults, []);
    } finally {
      await page.close();
      demo.kill("SIGINT");
      assert.deepEqual(await exited, { code: 0, signal: null });
    }
  });
}
