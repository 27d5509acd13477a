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

const byExitCode = { 1: RelayError, 2: Usage, 3: Unauthorized, 4: NameTaken, 5: Unreachable, 6: GaveUp, 7: NameLost };

/** The error for a program that has ended like this, and whose last lines on standard error were these. */
function ofExit(code, signal, said) {
  // Before its last words it may have told of other things.
  const last = said.findLastIndex((line) => /^(relay|error): /.test(line));
  const message = said.slice(Math.max(last, 0)).join("\n").replace(/^(relay|error): /, "").trim();
  const how = `the relay client ${signal ? `was ended by ${signal}` : `ended with exit code ${code}`}`;
  const Class = byExitCode[code];
  if (Class) return new Class(message || how, code);
  // It was not the program that wanted it so.
  return new RelayError(message ? `${how}: ${message}` : how, code);
}

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
  ofExit,
};
