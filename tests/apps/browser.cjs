// A page in Chromium that does what standard input says, a line of JSON at a time, and answers each with one:
//
//   {"goto": URL} {"reload": null} {"before": SCRIPT} {"press": [KEY…]} {"fill": [SELECTOR, TEXT]} {"click": SELECTOR}
//   {"wait": EXPRESSION} {"eval": EXPRESSION} {"screenshot": FILE} {"view": {"width", "height", "dark"}}
//   {"download": SELECTOR} {"heap": null} {"check": null}
//
// The answer is {"value"} or {"error"}. `wait` waits until the expression is true and says what it then is; `before` is
// run ahead of the scripts of each page; `download` clicks and says what file comes of it, as [NAME, BYTES]; `heap`
// says how many bytes the page's scripts hold; `check` says what axe-core finds. The browser ends with the input.

const { readFileSync } = require("node:fs");
const { createInterface } = require("node:readline");
const { setTimeout } = require("node:timers/promises");
const chromium = require("./chromium.cjs");

const PATIENCE_MS = 60_000;

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});

async function main() {
  const browser = await chromium.launch();
  try {
    const context = await browser.newContext({
      permissions: ["clipboard-read", "clipboard-write"],
      acceptDownloads: true,
      // Of authorities that exist in a test alone.
      ignoreHTTPSErrors: process.env.ANY_AUTHORITY === "1",
    });
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    // What went wrong in it, for `problems`. That a server does not answer is what some tests are about.
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on(
      "console",
      (line) =>
        line.type() === "error" && !/Failed to load resource|ERR_/.test(line.text()) && problems.push(line.text()),
    );
    page.on("dialog", (dialog) => problems.push(`a dialog: ${dialog.message()}`));
    for await (const line of createInterface({ input: process.stdin })) {
      const [[name, argument]] = Object.entries(JSON.parse(line));
      const answer = await COMMANDS[name](page, argument, problems).then(
        (value) => ({ value: value ?? null }),
        (error) => ({ error: String(error).toWellFormed() }),
      );
      console.log(JSON.stringify(answer));
    }
  } finally {
    await browser.close();
  }
}

const COMMANDS = {
  goto: async (page, url) => void (await page.goto(url)),
  reload: async (page) => void (await page.reload()),
  before: async (page, script) => void (await page.addInitScript(script)),
  press: async (page, keys) => {
    for (const key of keys) await page.keyboard.press(key);
  },
  fill: (page, [selector, text]) => page.locator(selector).fill(text),
  click: (page, selector) => page.locator(selector).first().click(),
  wait: async (page, expression) => {
    // Looked at from outside: the page's policy lets nothing evaluate a string within it.
    for (const start = Date.now(); Date.now() - start < PATIENCE_MS; await setTimeout(20)) {
      const value = await page.evaluate(expression).catch((error) => {
        if (!/context was destroyed/.test(String(error))) throw error;
      });
      if (value) return value;
    }
    throw new Error(`not after ${PATIENCE_MS} ms; the page says: ${await page.evaluate("document.body.innerText")}`);
  },
  eval: (page, expression) => page.evaluate(expression),
  screenshot: async (page, path) => void (await page.screenshot({ path })),
  view: async (page, { width, height, dark }) => {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: dark ? "dark" : "light" });
  },
  download: async (page, selector) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator(selector).first().click()]);
    return [download.suggestedFilename(), [...readFileSync(await download.path())]];
  },
  heap: async (page) => {
    const session = await page.context().newCDPSession(page);
    await session.send("HeapProfiler.collectGarbage");
    const { usedSize } = await session.send("Runtime.getHeapUsage");
    await session.detach();
    return usedSize;
  },
  check: async (page) => {
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    const { violations } = await page.evaluate("axe.run()");
    return violations.map(({ id, nodes }) => `${id}: ${nodes[0].html} ${nodes[0].failureSummary}`);
  },
  problems: async (_page, _argument, problems) => problems,
};
