// Where the `relay` program is.
"use strict";

const { accessSync, constants, statSync } = require("node:fs");
const path = require("node:path");
const { ProgramMissing } = require("./errors.js");

const file = process.platform === "win32" ? "relay.exe" : "relay";

/** `RELAY_BINARY`, else the program of the package for this platform, else one on the PATH. */
function program() {
  const named = process.env.RELAY_BINARY;
  if (named) {
    if (isProgram(named)) return named;
    throw new ProgramMissing(`RELAY_BINARY names ${named}, which is no program`);
  }
  const found = installed() ?? onPath();
  if (found) return found;
  throw new ProgramMissing(
    `there is no relay program for ${process.platform}-${process.arch}: install relay-tunnel with its optional ` +
      "dependencies, or name one in RELAY_BINARY",
  );
}

function installed() {
  try {
    return require.resolve(`@relay-tunnel/${process.platform}-${process.arch}/bin/${file}`);
  } catch {
    return undefined;
  }
}

function onPath() {
  const places = (process.env.PATH ?? "").split(path.delimiter).filter(path.isAbsolute);
  // npm puts our own wrapper there, which would only look for the program again.
  return places.filter((place) => !place.includes("node_modules")).map((place) => path.join(place, file)).find(isProgram);
}

function isProgram(candidate) {
  try {
    accessSync(candidate, constants.X_OK);
    return statSync(candidate).isFile();
  } catch {
    return false;
  }
}

module.exports = { program };
