// Headless Chromium, as the tests of this folder need it.

import { rm } from "node:fs/promises";
import { chromium } from "playwright-core";
import { temporaryFolder } from "../support.mjs";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** Opens one with a profile of its own, and with these options of Playwright's besides. Answers its page, and how to close it. */
export async function openChromium(options = {}) {
  const profile = await temporaryFolder();
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: CHROMIUM,
    headless: true,
    chromiumSandbox: false,
    viewport: { width: 1200, height: 800 },
    ...options,
    args: ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  browser.setDefaultTimeout(15_000);
  return {
    page: browser.pages()[0],
    async close() {
      await browser.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}
