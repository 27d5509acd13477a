"use strict";

const errors = require("./lib/errors.js");
const { program } = require("./lib/program.js");
const { Tunnel, tunnel } = require("./lib/tunnel.js");

const { RelayError, GaveUp, NameLost, NameTaken, ProgramMissing, TimedOut, Unauthorized, Unreachable, Usage } = errors;

module.exports = {
  GaveUp,
  NameLost,
  NameTaken,
  ProgramMissing,
  RelayError,
  TimedOut,
  Tunnel,
  Unauthorized,
  Unreachable,
  Usage,
  program,
  tunnel,
};
