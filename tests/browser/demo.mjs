// The demo as a visitor sees it: headless Chromium on the page that `sluicegate demo` prints the URL of.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { after, before, test } from "node:test";
import { firstLine, SLUICEGATE } from "../support.mjs";
import { openChromium } from "./chromium.mjs";

const URL_PRINTED = /\bhttp:\/\/[^\s"']+/;

let demo, exited, url, chromium, page;
const faults = [];

before(async () => {
  demo = spawn(SLUICEGATE, ["demo", "--for", "60s"], { stdio: ["ignore", "pipe", "inherit"] });
  exited = new Promise((resolve, reject) => {
    demo.once("exit", (code, signal) => resolve({ code, signal }));
    demo.once("error", reject);
  });
  exited.catch(() => {});
  [url] = URL_PRINTED.exec(await firstLine(demo, (line) => URL_PRINTED.test(line)));

  chromium = await openChromium();
  page = chromium.page;
  page.on("pageerror", (error) => faults.push(String(error)));
  await page.goto(url);
  await reads("#events-state", /^live/);
});

after(async () => {
  await chromium?.close();
  if (demo?.exitCode === null) demo.kill("SIGINT");
});

/** Waits until an element's text matches, and returns the text. */
async function reads(selector, pattern) {
  const element = page.locator(selector).filter({ hasText: pattern }).first();
  await element.waitFor();
  return element.textContent();
}

/** Waits for a row of the event table and returns its cells: time, event, answer, cause, numbers. */
async function row(attributes) {
  const wanted = Object.entries(attributes).map(([name, value]) => `[data-${name}="${value}"]`).join("");
  const found = page.locator(`#events tr${wanted}`).first();
  await found.waitFor();
  return found.locator("td").allTextContents();
}

test("names the gateway that it came through", async () => {
  assert.equal(new URL(await reads("#gateway", /^http/)).origin, new URL(url).origin);
});

test("chats through the gateway, and the log tells how the session ended", async () => {
  await page.click("#connect");
  await reads("#chat-status", /^connected$/);
  await reads("#chat-log", /welcome, guest \d+/);
  await page.fill("#chat-text", "<b>hello</b>");
  await page.click("#send");
  await reads("#chat-log", /guest \d+: <b>hello<\/b>/);
  assert.equal(await page.locator("#chat-log b").count(), 0, "what came over the socket became markup");
  await page.click("#disconnect");
  await reads("#chat-status", /^closed with 1000/);
  const cells = await row({ event: "session", answer: "1000", cause: "client_closed" });
  assert.match(cells[4], /\/chat/);
});

test("echoes through the gateway", async () => {
  await page.click("#echo");
  await reads("#echo-status", /“hello” back in [\d.]+ ms/);
});

test("a message of 2 MiB is closed with 1009", async () => {
  await page.click("#too-big");
  const cells = await row({ event: "session", answer: "1009", cause: "message_too_big" });
  // Browsers send a large message in fragments: the one that passes the limit is the last that the gateway reads.
  assert.match(cells[4], /message of \d+ bytes exceeds the limit of 1048576 bytes/);
  // A browser that is still sending may lose the Close frame to the reset that follows it.
  await reads("#too-big-status", /^closed with (1009|1006)/);
  await reads("#too-big-gateway", /^1009 message_too_big$/);
});

test("an idle session is pinged, and the log shows the answers", async () => {
  await page.click("#idle");
  await reads("#idle-status", /^open/);
  const cells = await row({ event: "ping" });
  assert.match(cells[4], /side (client|upstream) · rtt_ms \d/);
  await reads("#idle-gateway", /pings answered/);
  await page.click("#idle");
  await reads("#idle-status", /^closed with 1000/);
});

test("a page of a foreign origin is refused with 403", async () => {
  await page.click("#foreign");
  await reads("#foreign-status", /^refused/);
  await row({ event: "refusal", answer: "403", cause: "origin_not_allowed" });
  await reads("#foreign-gateway", /^403 origin_not_allowed$/);
  const origin = await page.frameLocator("#foreign-frame").locator("#origin").textContent();
  assert.notEqual(origin, new URL(url).origin);
});

// The last one that opens sockets: it uses up the handshakes of the next second.
test("handshakes that come too fast are refused with 429", async () => {
  await page.click("#flood");
  await row({ event: "refusal", answer: "429", cause: "handshake_rate" });
  await page.locator("#flood:enabled").waitFor();
  const [, opened, refused] = /(\d+) opened, (\d+) refused/.exec(await page.textContent("#flood-status"));
  assert.equal(Number(opened) + Number(refused), 30);
  assert.ok(Number(refused) > 0, `${opened} opened, none refused`);
  await reads("#flood-gateway", new RegExp(`^429 handshake_rate ×${refused}$`));
});

test("fits a desktop and a phone without scrolling sideways, and no script failed", async () => {
  for (const width of [1200, 390]) {
    await page.setViewportSize({ width, height: 800 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels too wide at ${width}`);
    // SCREENSHOTS=DIR keeps what a person would see.
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/demo-${width}.png`, fullPage: true });
  }
  assert.deepEqual(faults, []);
});

test("ends on SIGINT", async () => {
  demo.kill("SIGINT");
  assert.deepEqual(await exited, { code: 0, signal: null });
});
