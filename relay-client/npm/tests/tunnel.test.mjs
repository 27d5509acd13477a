// Tunnels as a program uses them, under Node's own test runner.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import * as relay from "relay-tunnel";

import { closedPort, echo, isRunning, post, way } from "./support.mjs";

let app;
before(async () => {
  app = await echo();
});
after(() => app.close());

const open = (port, options) => relay.tunnel(port, { ...way, random: !options?.subdomain, ...options });

/** What `promise` fails with, which must be of this class. */
async function failure(promise, Class) {
  const error = await promise.then(
    () => assert.fail("it did not fail"),
    (error) => error,
  );
  assert.ok(error instanceof Class, String(error));
  assert.ok(error instanceof relay.RelayError && error instanceof Error);
  return error;
}

test("a webhook reaches the service", async () => {
  const t = await open(app.port, { subdomain: "node" });
  assert.equal((await post(t, "/hooks?a=1", "hello")).body, "hello");
  const exchange = await t.waitFor({ path: "/hooks", method: "POST", status: 200 });
  assert.deepEqual([exchange.path, exchange.error, t.exchanges], ["/hooks?a=1", null, [exchange]]);
  assert.ok(exchange.id && exchange.durationMs > 0);
  assert.equal(t.name, "node");
  assert.match(t.url, /^https:\/\/node\./);
  assert.equal(inspect(t), `Tunnel { ${t.url} }`);
  assert.deepEqual([t.upstream, t.relay, t.error], [`http://localhost:${app.port}`, way.relay, null]);
  await t.close();
  await t.close();
  assert.ok(!isRunning(t.pid) && t.error === null);
  assert.equal(await t.waitFor("/hooks"), exchange, "what was seen stays");
  assert.match((await failure(t.waitFor("/other"), relay.RelayError)).message, /closed/);
});

describe("side by side", { concurrency: 20 }, () => {
  for (let number = 0; number < 20; number++) {
    test(`tunnel ${number}`, async () => {
      const t = await open(app.port);
      try {
        assert.equal((await post(t, `/${number}`, `to ${number}`)).body, `to ${number}`);
        assert.equal((await t.waitFor()).path, `/${number}`);
      } finally {
        await t.close();
      }
    });
  }
});

test("the service is down", async () => {
  const closed = await closedPort();
  const t = await open(closed.port);
  const { status, relayError } = await post(t, "/hooks");
  assert.deepEqual([status, relayError], [502, "upstream-refused"]);
  assert.equal((await t.waitFor("/hooks")).error, "upstream-refused");
  await t.close();
  closed.close();
});

test("waiting for exchanges", async () => {
  const t = await open(app.port);
  await post(t, "/a?x=1");
  const first = await t.waitFor("/a");
  for (const wanted of ["/a?x=1", "/a*", "*", {}]) assert.equal(await t.waitFor(wanted), first);
  const late = await failure(t.waitFor({ path: "/b", method: "GET", timeout: 10 }), relay.TimedOut);
  assert.equal(late.message, "no GET /b within 10 ms; the last were: POST /a?x=1 200");
  const next = t.waitFor({ path: "/a", after: first });
  await post(t, "/b");
  await post(t, "/a");
  assert.equal((await next).path, "/a");
  await t.close();
});

test("a name that is taken", async () => {
  const t = await open(app.port, { subdomain: "node-taken" });
  const error = await failure(open(app.port, { subdomain: "node-taken" }), relay.NameTaken);
  assert.equal(error.exitCode, 4);
  assert.match(error.message, /node-taken/);
  assert.equal(error.name, "NameTaken");
  const thief = await open(app.port, { subdomain: "node-taken", takeover: true });
  assert.equal(await failure(t.waitFor("/never"), relay.NameLost), t.error);
  await thief.close();
});

test("a token that is not accepted", async () => {
  const error = await failure(open(app.port, { token: "rly_nobody" }), relay.Unauthorized);
  assert.equal(error.exitCode, 3);
});

test("a relay that cannot be reached", async () => {
  const { port, close } = await closedPort();
  const error = await failure(open(app.port, { relayAddr: `127.0.0.1:${port}` }), relay.Unreachable);
  assert.equal(error.exitCode, 5);
  assert.match(error.message, new RegExp(port));
  close();
});

test("a relay that says nothing", async () => {
  const silent = createServer().listen(0, "127.0.0.1");
  await once(silent, "listening");
  const relayAddr = `127.0.0.1:${silent.address().port}`;
  const error = await failure(open(app.port, { relayAddr, readyWithin: 200 }), relay.TimedOut);
  assert.match(error.message, /^no tunnel after 200 ms/);
  silent.close();
});

test("arguments that are wrong", async () => {
  for (const options of [{ subdomain: "a.b" }, { upstreamProtocol: "h3" }, { caFile: "/nowhere" }]) {
    const error = await failure(open(app.port, options), relay.Usage);
    assert.ok(error.message.includes(Object.values(options)[0]), error.message);
  }
  await failure(open("--help"), relay.Usage);
});

test("the token is in no command line", async () => {
  const t = await open(app.port);
  assert.ok(!readFileSync(`/proc/${t.pid}/cmdline`, "utf8").includes(way.token));
  await t.close();
});

test("the client is killed", async () => {
  const t = await open(app.port);
  process.kill(t.pid, "SIGKILL");
  const error = await failure(t.waitFor("/never"), relay.RelayError);
  assert.match(error.message, /SIGKILL/);
  assert.equal(t.error, error);
  await t.close();
});

test("closing does not wait for ever", async () => {
  const t = await open(app.port);
  // It cannot hear that it should end.
  process.kill(t.pid, "SIGSTOP");
  await t.close();
  assert.ok(!isRunning(t.pid));
});

test("a client does not outlive its owner", async (t) => {
  const endings = {
    killed: "process.kill(process.pid, 'SIGKILL')",
    exit: "process.exit(3)",
    exception: "throw new Error('not caught')",
    interrupted: "process.kill(process.pid, 'SIGINT')",
  };
  for (const [name, then] of Object.entries(endings)) {
    await t.test(name, async () => {
      const program = `
        const { tunnel } = require("relay-tunnel");
        tunnel(3000, { random: true, ...JSON.parse(process.env.TEST_RELAY) }).then((t) => {
          process.stdout.write(t.pid + "\\n", () => { ${then} });
        });`;
      const owner = spawn(process.execPath, ["-e", program], { stdio: ["ignore", "pipe", "ignore"] });
      const [pid] = await once(createInterface({ input: owner.stdout }), "line");
      if (owner.exitCode === null && owner.signalCode === null) await once(owner, "exit");
      for (const end = Date.now() + 20_000; isRunning(pid); await sleep(10)) {
        assert.ok(Date.now() < end, `the relay client ${pid} has outlived its owner`);
      }
    });
  }
});

test("disposal", async () => {
  const t = await open(app.port);
  await t[Symbol.asyncDispose]();
  assert.ok(!isRunning(t.pid));
});

test("the same classes for import and require", () => {
  const required = createRequire(import.meta.url)("relay-tunnel");
  assert.deepEqual(Object.keys(relay).filter((name) => name !== "default").sort(), Object.keys(required).sort());
  assert.equal(required.NameTaken, relay.NameTaken);
});

test("the command comes with the package", () => {
  assert.match(relay.program(), /node_modules\/@relay-tunnel\//);
  const command = join(import.meta.dirname ?? ".", "node_modules/.bin/relay");
  const run = (...words) => spawnSync(command, words, { encoding: "utf8" });
  assert.match(run("--version").stdout, /^relay \d/);
  assert.equal(run("http").status, 2, "exit codes pass");
});

test("the command passes signals on", async () => {
  const options = ["http", "3000", "--random", "--output", "json", "--relay-addr", way.relayAddr];
  const env = { ...process.env, RELAY_URL: way.relay, RELAY_TOKEN: way.token, RELAY_CA_FILE: way.caFile };
  for (const [signal, code] of Object.entries({ SIGTERM: 143, SIGINT: 130 })) {
    const command = spawn("node_modules/.bin/relay", options, { env, stdio: ["ignore", "pipe", "inherit"] });
    await once(createInterface({ input: command.stdout }), "line");
    command.kill(signal);
    assert.deepEqual(await once(command, "exit"), [code, null]);
  }
});

test("the documentation says what works", async () => {
  // Each example as it stands there, but for the port, with the relay in the configuration.
  const blocks = [...readFileSync("node.md", "utf8").matchAll(/```js\n(.*?)```/gs)].map(([, block]) => block);
  assert.ok(blocks.length >= 2);
  const names = { relay: "relay", relay_addr: "relayAddr", relay_ca: "caFile", token: "token" };
  const lines = Object.entries(names).map(([key, name]) => `${key} = ${JSON.stringify(way[name])}\n`);
  writeFileSync("relay-of-examples.toml", lines.join(""));
  const env = { ...process.env, RELAY_CONFIG: "relay-of-examples.toml", NODE_TEST_CONTEXT: undefined };
  for (const [index, block] of blocks.entries()) {
    const file = `example-${index}.mjs`;
    writeFileSync(file, block.replaceAll("3000", app.port));
    const run = spawn(process.execPath, [file], { env, stdio: ["ignore", "pipe", "inherit"] });
    let said = "";
    for await (const piece of run.stdout) said += piece;
    if (run.exitCode === null) await once(run, "exit");
    assert.equal(run.exitCode, 0, said);
    assert.match(said, /https:|# pass 1/);
  }
});

test("another program", async () => {
  const directory = mkdtempSync(join(tmpdir(), "relay-"));
  const program = join(directory, "relay");
  writeFileSync(program, "#!/bin/sh\necho 'relay: not today' >&2\nexit 1\n");
  process.env.RELAY_BINARY = program;
  try {
    assert.ok((await failure(relay.tunnel(3000), relay.ProgramMissing)).message.includes(program));
    chmodSync(program, 0o755);
    const error = await failure(relay.tunnel(3000), relay.RelayError);
    assert.deepEqual([error.message, error.exitCode], ["not today", 1]);
    writeFileSync(program, "no program at all\u0000");
    await failure(relay.tunnel(3000), relay.RelayError);
  } finally {
    delete process.env.RELAY_BINARY;
    rmSync(directory, { recursive: true });
  }
});
