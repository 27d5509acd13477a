// A tunnel: the `relay` program in a process of its own, followed by its JSON lines.
//
//   relay http … --output json ──stdout──▶ what callers see
//                              ──stderr──▶ the message of an error
//
// The program ends when nobody reads its output any more, so it does not outlive this process, however that ends.
"use strict";

const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");
const { RelayError, TimedOut, ofExit } = require("./errors.js");
const { program } = require("./program.js");

/** How many exchanges a tunnel remembers; the oldest are forgotten first. */
const KEPT = 1_000;

/** How many lines of the program's standard error are kept for the message of an error. */
const SAID = 50;

/** How long, in milliseconds, the program may finish what is under way when a tunnel is closed. */
const LEAVE = 2_000;

/** Node.js 18 has no `await using` yet, but whoever compiles it down needs the symbol to be the same. */
Symbol.asyncDispose ??= Symbol("Symbol.asyncDispose");

async function tunnel(target, options = {}) {
  const opened = new Tunnel(target, options);
  try {
    await opened._wait(() => opened._ready ?? opened._error, options.readyWithin ?? 30_000);
  } finally {
    if (!opened._ready) await opened.close();
  }
  if (opened._ready) return opened;
  const last = opened._said.at(-1);
  throw opened._error ?? new TimedOut(`no tunnel after ${options.readyWithin ?? 30_000} ms${last ? `: ${last}` : ""}`);
}

class Tunnel {
  constructor(target, options) {
    this._ready = null;
    this._exchanges = [];
    this._said = [];
    this._error = null;
    this._closing = false;
    this._ended = false;
    /** Those who wait, each to be told of every change. */
    this._waiting = new Set();

    this._process = spawn(program(), commandLine(target, options), {
      env: environment(options),
      stdio: ["ignore", "pipe", "pipe"],
      // Ctrl-C is for this process, which may need the tunnel while it cleans up.
      detached: true,
      windowsHide: true,
    });
    this._process.on("error", (error) => this._end(new RelayError(`the relay client: ${error.message}`)));
    this._process.on("close", (code, signal) => this._end(ofExit(code, signal, this._said)));
    createInterface({ input: this._process.stdout, crlfDelay: Infinity }).on("line", (line) => this._take(line));
    createInterface({ input: this._process.stderr, crlfDelay: Infinity }).on("line", (line) => {
      this._said.push(line);
      if (this._said.length > SAID) this._said.shift();
    });
  }

  get url() {
    return this._ready.url;
  }

  get name() {
    return this._ready.name;
  }

  get upstream() {
    return this._ready.upstream;
  }

  get relay() {
    return this._ready.relay;
  }

  get caFile() {
    return this._ready.ca_file;
  }

  get pid() {
    return this._process.pid;
  }

  get error() {
    return this._error;
  }

  get exchanges() {
    return [...this._exchanges];
  }

  async waitFor(wanted = {}) {
    const { path, method, status, after, timeout = 10_000 } = typeof wanted === "string" ? { path: wanted } : wanted;
    const fits = (exchange) =>
      isPath(exchange.path, path) &&
      (method === undefined || exchange.method === method) &&
      (status === undefined || exchange.status === status);
    const find = () => this._exchanges.slice(this._exchanges.indexOf(after) + 1).find(fits);

    await this._wait(() => find() ?? (this._ended || this._closing), timeout);
    const found = find();
    if (found) return found;
    if (this._error) throw this._error;
    if (this._ended || this._closing) throw new RelayError("the tunnel is closed");
    const what = [method, path, status].filter((part) => part !== undefined).join(" ") || "request";
    const last = this._exchanges.slice(-5).map((exchange) => `${exchange.method} ${exchange.path} ${exchange.status}`);
    throw new TimedOut(
      `no ${what} within ${timeout} ms; ${last.length ? `the last were: ${last.join(", ")}` : "there was none"}`,
    );
  }

  async close() {
    this._closing = true;
    this._changed();
    if (this._ended) return;
    this._process.kill("SIGTERM");
    if (await this._wait(() => this._ended, LEAVE)) return;
    this._process.kill("SIGKILL");
    await this._wait(() => this._ended);
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  _take(line) {
    const event = parse(line);
    if (event?.event === "tunnel.ready") this._ready = event;
    if (event?.event === "exchange") {
      const { id, method, path, status, duration_ms: durationMs, error } = event;
      this._exchanges.push(Object.freeze({ id, method, path, status, durationMs, error }));
      if (this._exchanges.length > KEPT) this._exchanges.shift();
    }
    this._changed();
  }

  _end(error) {
    if (this._ended) return;
    this._ended = true;
    if (!this._closing) this._error = error;
    this._changed();
  }

  _changed() {
    for (const look of this._waiting) look();
  }

  /** Waits until `condition` holds, for `timeout` milliseconds at most, and returns whether it does. */
  _wait(condition, timeout) {
    return new Promise((resolve) => {
      let timer;
      const done = (held) => {
        clearTimeout(timer);
        this._waiting.delete(look);
        resolve(held);
      };
      const look = () => {
        if (condition()) done(true);
      };
      this._waiting.add(look);
      if (timeout !== undefined) timer = setTimeout(done, timeout, false);
      look();
    });
  }
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
