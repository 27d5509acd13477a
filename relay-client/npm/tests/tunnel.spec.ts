// Tunnels in a project that uses vitest and TypeScript.
import { NameTaken, RelayError, tunnel, type Exchange, type Tunnel } from "relay-tunnel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { echo, isRunning, post, way } from "./support.mjs";

let app: Awaited<ReturnType<typeof echo>>;
let shared: Tunnel;

beforeAll(async () => {
  app = await echo();
  shared = await tunnel(app.port, { ...way, subdomain: "vitest" });
});

afterAll(async () => {
  await shared.close();
  app.close();
});

describe.concurrent("side by side", () => {
  test.each(Array.from({ length: 20 }, (_, number) => number))("tunnel %i", async (number) => {
    await using t = await tunnel(app.port, { ...way, random: true });
    expect((await post(t, `/${number}`, `to ${number}`)).body).toBe(`to ${number}`);
    const exchange: Exchange = await t.waitFor({ path: `/${number}`, timeout: 5_000 });
    expect(exchange).toMatchObject({ method: "POST", status: 200, error: null });
  });
});

test("one for the whole file", async () => {
  expect(shared.url).toContain("https://vitest.");
  expect((await post(shared, "/", "x")).status).toBe(200);
});

test("an error in the block ends the tunnel", async () => {
  let pid = 0;
  const use = async () => {
    await using t = await tunnel(app.port, { ...way, random: true });
    pid = t.pid;
    throw new Error("of the test");
  };
  await expect(use()).rejects.toThrow("of the test");
  expect(isRunning(pid)).toBe(false);
});

test("errors are told apart", async () => {
  const taken = tunnel(app.port, { ...way, subdomain: "vitest" });
  await expect(taken).rejects.toThrow(NameTaken);
  const code: number | null = await taken.catch((error: RelayError) => error.exitCode).then(Number);
  expect(code).toBe(4);
  // @ts-expect-error: a name is a string
  await expect(tunnel(app.port, { ...way, subdomain: 1.5 })).rejects.toThrow("1.5");
});
