// How a page is built from the sources beside its `build`. The relay's dashboard is built by this, too, with the packages
// that are installed here.
//
// The same sources give the same bytes on every machine: the versions are in package-lock.json, and what is written has
// no times, paths or hashes in it. Packages are installed below this directory where they are missing.

"use strict";

const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { parseArgs } = require("node:util");

const lock = path.join(__dirname, "package-lock.json");
const modules = path.join(__dirname, "node_modules");
const installed = path.join(modules, ".installed");

/** Does what the command line says for the page whose sources are in `here`; unless it says where, it is written into `dist`. */
exports.main = (here, dist) => {
  try {
    const { values } = parseArgs({ options: { out: { type: "string" }, install: { type: "boolean" }, test: { type: "boolean" } } });
    install();
    if (values.install) return;
    if (values.test) test(here);
    else build(here, path.resolve(values.out ?? path.join(here, dist)));
  } catch (error) {
    console.error(`${process.argv[1]}: ${error.message}`);
    process.exitCode = 1;
  }
};

/** Notes from which list it installed as the last step, so that half an installation or an older one is made anew. */
function install() {
  const wanted = fs.readFileSync(lock);
  if (fs.existsSync(installed) && fs.readFileSync(installed).equals(wanted)) return;
  execFileSync("npm", ["ci", "--no-progress", "--loglevel=error"], { cwd: __dirname, stdio: ["ignore", 2, 2] });
  fs.writeFileSync(installed, wanted);
}

function build(here, out) {
  fs.mkdirSync(out, { recursive: true });
  run("tsc", ["--project", here]);
  bundle(path.join(here, "src/main.tsx"), path.join(out, "app.js"));
  bundle(path.join(here, "src/style.css"), path.join(out, "app.css"));
  fs.copyFileSync(path.join(here, "src/index.html"), path.join(out, "index.html"));
}

function bundle(source, file) {
  const options = ["--bundle", "--minify", "--target=es2022", "--format=esm", "--charset=utf8", "--log-level=warning"];
  if (file.endsWith(".js")) {
    const licence = fs.readFileSync(path.join(modules, "preact/LICENSE"), "utf8").trim();
    options.push("--jsx=automatic", "--jsx-import-source=preact");
    options.push(`--banner:js=/* This program contains Preact, https://preactjs.com\n\n${licence}\n*/`);
  }
  run("esbuild", [...options, source, `--outfile=${file}`]);
}

function test(here) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "relay-page-"));
  try {
    const files = fs.readdirSync(path.join(here, "tests")).map((name) => path.join(here, "tests", name));
    const options = ["--bundle", "--platform=node", "--format=cjs", "--log-level=warning", "--out-extension:.js=.test.cjs"];
    run("esbuild", [...options, ...files, `--outdir=${directory}`]);
    const built = fs.readdirSync(directory).map((name) => path.join(directory, name));
    execFileSync(process.execPath, ["--test", "--test-reporter=tap", ...built], { stdio: "inherit" });
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

function run(tool, options) {
  // Sources elsewhere find the packages all the same.
  const env = { ...process.env, NODE_PATH: modules };
  execFileSync(path.join(modules, ".bin", tool), options, { cwd: __dirname, stdio: ["ignore", 2, 2], env });
}
