// Headless Firefox, as the tests of this folder need it; driven by WebDriver BiDi, which Debian's build speaks.

import { rm } from "node:fs/promises";
import { launch } from "puppeteer-core";
import { temporaryFolder } from "../support.mjs";

const FIREFOX = process.env.FIREFOX ?? "/usr/bin/firefox-esr";

/** Opens one with a profile of its own that takes any certificate. Answers its page, and how to close it. */
export async function openFirefox() {
  const home = await temporaryFolder();
  const browser = await launch({
    browser: "firefox",
    executablePath: FIREFOX,
    headless: true,
    acceptInsecureCerts: true,
    // Firefox refuses to run as root in a home that is another user's, and leaves its caches there.
    env: { ...process.env, HOME: home, MOZ_CRASHREPORTER_DISABLE: "1" },
    timeout: 60_000,
  });
  return {
    page: await browser.newPage(),
    async close() {
      await browser.close();
      await rm(home, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
