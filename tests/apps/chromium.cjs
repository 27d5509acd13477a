// The system's Chromium, headless, for the scripts beside this one.

const { existsSync } = require("node:fs");
const { chromium } = require("playwright-core");

exports.args = [
  "--no-sandbox", // it refuses to run as root with one, and the page is ours
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

exports.launch = (args = exports.args) => chromium.launch({ executablePath: path(), args });

function path() {
  const places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const found = places.find(existsSync);
  if (!found) throw new Error(`no Chromium at ${places.join(", ")}: run tests/run, which installs it`);
  return found;
}
