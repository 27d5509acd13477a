#!/usr/bin/env node
// `relay …`: the program of the package for this platform, with the same input, output, signals and exit code.
"use strict";

const { spawn } = require("node:child_process");
const { constants } = require("node:os");
const { program } = require("../lib/program.js");

function main() {
  let path;
  try {
    path = program();
  } catch (error) {
    console.error(`relay: ${error.message}`);
    process.exitCode = 1;
    return;
  }
  const child = spawn(path, process.argv.slice(2), { stdio: "inherit" });
  // One from the terminal has reached the program already, for which a second one is an order to leave at once.
  process.on("SIGINT", () => process.stdin.isTTY || child.kill("SIGINT"));
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`relay: ${path}: ${error.message}`);
    process.exitCode = 1;
  });
  child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
}

main();
