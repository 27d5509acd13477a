// Opens the page of `vite/` in Chromium, edits the project, and says how the page took it:
//
//   hot_reload.cjs URL PROJECT [--ca FILE] [--address HOST:PORT]
//
// PROJECT is the directory that the development server serves. With --ca the server must prove itself to
// that authority; with --address it is dialled there instead of at the name in the URL. Prints one JSON object.

const { createHash, X509Certificate } = require("node:crypto");
const { readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const tls = require("node:tls");
const { parseArgs } = require("node:util");
const chromium = require("./chromium.cjs");

const PATIENCE_MS = 30_000;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { ca: { type: "string" }, address: { type: "string" } },
});

main(new URL(positionals[0]), positionals[1]).then(
  (seen) => console.log(JSON.stringify(seen)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);

async function main(url, project) {
  const browser = await chromium.launch(await chromiumArgs(url));
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("requestfailed", (request) => errors.push(`${request.url()}: ${request.failure()?.errorText}`));
    const sockets = [];
    page.on("websocket", (socket) => sockets.push(socket.url().split("?")[0]));
    // An edit made before the page listens would be missed.
    const listening = page.waitForEvent("console", (line) => line.text().includes("[vite] connected"));
    await page.goto(url.href);
    await listening;
    const before = await shown(page, "");
    // A full reload makes a new window, without this mark.
    await page.evaluate(() => (window.mark = true));
    const text = "after " + process.pid;
    writeFileSync(join(project, "message.js"), `export const message = ${JSON.stringify(text)};\n`);
    const after = await shown(page, before);
    const reloaded = !(await page.evaluate(() => window.mark === true));
    return { before, after, expected: text, reloaded, sockets, errors };
  } finally {
    await browser.close();
  }
}

/** The page's message, once it is another than `last`. */
async function shown(page, last) {
  const next = (last) => {
    const text = document.querySelector("#message").textContent;
    return text !== last && text;
  };
  return (await page.waitForFunction(next, last)).jsonValue();
}

async function chromiumArgs(url) {
  const args = [...chromium.args];
  if (options.address) args.push(`--host-resolver-rules=MAP ${url.host} ${options.address}`);
  if (options.ca) args.push(`--ignore-certificate-errors-spki-list=${await trustedKey(url)}`);
  return args;
}

/**
 * The hash of the server's key, after its certificate was verified against --ca: Chromium has no option for a
 * private authority, but one to trust a single key.
 */
function trustedKey(url) {
  const target = new URL(options.address ? `https://${options.address}` : url);
  const socket = tls.connect({
    host: target.hostname,
    port: Number(target.port || 443),
    servername: url.hostname,
    ca: readFileSync(options.ca),
    timeout: PATIENCE_MS,
  });
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("timeout", () => socket.destroy(new Error(`${target.host} did not finish a TLS handshake`)));
    socket.on("secureConnect", () => {
      const key = new X509Certificate(socket.getPeerCertificate().raw).publicKey;
      socket.destroy();
      resolve(
        createHash("sha256")
          .update(key.export({ type: "spki", format: "der" }))
          .digest("base64"),
      );
    });
  });
}
