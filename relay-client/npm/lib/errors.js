// What can go wrong: one class for each exit code of the program that a caller may want to tell apart.
"use strict";

class RelayError extends Error {
  constructor(message, exitCode = null) {
    super(message);
    this.exitCode = exitCode;
  }

  get name() {
    return this.constructor.name;
  }
}

class ProgramMissing extends RelayError {}
class TimedOut extends RelayError {}
class Usage extends RelayError {}
class Unauthorized extends RelayError {}
class NameTaken extends RelayError {}
class Unreachable extends RelayError {}
class GaveUp extends RelayError {}
class NameLost extends RelayError {}

module.exports = {
  GaveUp,
  NameLost,
  NameTaken,
  ProgramMissing,
  RelayError,
  TimedOut,
  Unauthorized,
  Unreachable,
  Usage,
};
