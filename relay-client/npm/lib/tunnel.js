// A tunnel: the `relay` program in a process of its own, followed by its JSON lines.
//
//   relay http … --output json ──stdout──▶ what callers see
//                              ──stderr──▶ the message of an error
//
// The program ends when nobody reads its output any more, so it does not outlive this process, however that ends.
"use strict";

const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");
const { inspect } = require("node:util");
const errors = require("./errors.js");
const { program } = require("./program.js");

const { RelayError, TimedOut } = errors;

/** How many exchanges a tunnel remembers; the oldest are forgotten first. */
const KEPT = 1_000;

/** How many lines of the program's standard error are kept for the message of an error. */
const SAID = 50;

/** How long, in milliseconds, the program may finish what is under way when a tunnel is closed. */
const LEAVE = 2_000;

/** Node.js 18 has no `await using` yet, but whoever compiles it down needs the symbol to be the same. */
Symbol.asyncDispose ??= Symbol("Symbol.asyncDispose");

/** The program's exit codes that a caller may want to tell apart. */
const byExitCode = {
  1: errors.RelayError,
  2: errors.Usage,
  3: errors.Unauthorized,
  4: errors.NameTaken,
  5: errors.Unreachable,
  6: errors.GaveUp,
  7: errors.NameLost,
};

const tunnel = (target, options = {}) => Tunnel.open(target, options);

class Tunnel {
  #process;
  /** The event `tunnel.ready`. */
  #ready = null;
  #exchanges = [];
  #said = [];
  #closing = false;
  #ended = false;
  /** Why it has ended, where nobody has asked it to. */
  #error = null;
  /** Those who wait, each to be told of every change. */
  #waiting = new Set();

  static async open(target, options) {
    const { readyWithin = 30_000 } = options;
    const opened = new Tunnel(target, options);
    await opened.#wait(() => opened.#ready ?? opened.#error, readyWithin);
    if (opened.#ready) return opened;
    await opened.close();
    const last = opened.#said.at(-1);
    throw opened.#error ?? new TimedOut(`no tunnel after ${readyWithin} ms${last ? `: ${last}` : ""}`);
  }

  constructor(target, options) {
    this.#process = spawn(program(), commandLine(target, options), {
      env: environment(options),
      stdio: ["ignore", "pipe", "pipe"],
      // Ctrl-C is for this process, which may need the tunnel while it cleans up.
      detached: true,
      windowsHide: true,
    });
    this.#process.on("error", (error) => this.#end(new RelayError(`the relay client: ${error.message}`)));
    this.#process.on("close", (code, signal) => this.#end(ofExit(code, signal, this.#said)));
    createInterface({ input: this.#process.stdout, crlfDelay: Infinity }).on("line", (line) => this.#take(line));
    createInterface({ input: this.#process.stderr, crlfDelay: Infinity }).on("line", (line) => {
      this.#said.push(line);
      if (this.#said.length > SAID) this.#said.shift();
    });
  }

  get url() {
    return this.#ready.url;
  }

  get name() {
    return this.#ready.name;
  }

  get upstream() {
    return this.#ready.upstream;
  }

  get relay() {
    return this.#ready.relay;
  }

  get caFile() {
    return this.#ready.ca_file;
  }

  get pid() {
    return this.#process.pid;
  }

  get error() {
    return this.#error;
  }

  get exchanges() {
    return [...this.#exchanges];
  }

  async waitFor(wanted = {}) {
    const { path, method, status, after, timeout = 10_000 } = typeof wanted === "string" ? { path: wanted } : wanted;
    const fits = (exchange) =>
      isPath(exchange.path, path) &&
      (method === undefined || exchange.method === method) &&
      (status === undefined || exchange.status === status);
    const find = () => this.#exchanges.slice(this.#exchanges.indexOf(after) + 1).find(fits);

    await this.#wait(() => find() ?? (this.#ended || this.#closing), timeout);
    const found = find();
    if (found) return found;
    if (this.#error) throw this.#error;
    if (this.#ended || this.#closing) throw new RelayError("the tunnel is closed");
    const what = [method, path, status].filter((part) => part !== undefined).join(" ") || "request";
    const last = this.#exchanges.slice(-5).map((exchange) => `${exchange.method} ${exchange.path} ${exchange.status}`);
    throw new TimedOut(
      `no ${what} within ${timeout} ms; ${last.length ? `the last were: ${last.join(", ")}` : "there was none"}`,
    );
  }

  async close() {
    this.#closing = true;
    this.#changed();
    if (this.#ended) return;
    this.#process.kill("SIGTERM");
    if (await this.#wait(() => this.#ended, LEAVE)) return;
    this.#process.kill("SIGKILL");
    await this.#wait(() => this.#ended);
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  [inspect.custom]() {
    return `Tunnel { ${this.url} }`;
  }

  #take(line) {
    const event = parse(line);
    if (event?.event === "tunnel.ready") this.#ready = event;
    if (event?.event === "exchange") {
      const { id, method, path, status, duration_ms: durationMs, error } = event;
      this.#exchanges.push(Object.freeze({ id, method, path, status, durationMs, error }));
      if (this.#exchanges.length > KEPT) this.#exchanges.shift();
    }
    this.#changed();
  }

  #end(error) {
    if (this.#ended) return;
    this.#ended = true;
    if (!this.#closing) this.#error = error;
    this.#changed();
  }

  #changed() {
    for (const look of this.#waiting) look();
  }

  /** Waits until `condition` holds, for `timeout` milliseconds at most, and returns whether it does. */
  #wait(condition, timeout) {
    return new Promise((resolve) => {
      let timer;
      const done = (held) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve(held);
      };
      const look = () => {
        if (condition()) done(true);
      };
      this.#waiting.add(look);
      if (timeout !== undefined) timer = setTimeout(done, timeout, false);
      look();
    });
  }
}

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

function commandLine(target, options) {
  const flags = {
    "--subdomain": options.subdomain,
    "--timeout": milliseconds(options.timeout),
    "--host-header": options.hostHeader,
    "--upstream-protocol": options.upstreamProtocol,
    "--relay-addr": options.relayAddr,
    "--max-reconnect-time": milliseconds(options.maxReconnectTime),
  };
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  const words = ["http", "--output=json", ...given.map(([flag, value]) => `${flag}=${value}`)];
  if (options.random) words.push("--random");
  if (options.takeover) words.push("--takeover");
  return [...words, "--", String(target)];
}

/** Other users of the machine can see a command line, but no environment. */
function environment(options) {
  const way = { RELAY_URL: options.relay, RELAY_TOKEN: options.token, RELAY_CA_FILE: options.caFile };
  const given = Object.entries(way).filter(([, value]) => value !== undefined);
  return { ...process.env, ...Object.fromEntries(given) };
}

function milliseconds(time) {
  return time === undefined ? undefined : `${Math.round(time)}ms`;
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

function isPath(path, wanted) {
  if (wanted === undefined) return true;
  const shown = wanted.includes("?") ? path : path.split("?", 1)[0];
  return wanted.endsWith("*") ? shown.startsWith(wanted.slice(0, -1)) : shown === wanted;
}

module.exports = { Tunnel, tunnel };
