import assert from "node:assert/strict";
import test from "node:test";

import type { Traffic } from "../src/api";
import { History, MOST, quantile } from "../src/traffic";

function traffic(uptime_ms: number, ok: number, bad: number): Traffic {
  const head = { bounds_s: [0.1, 1], counts: [ok, 0, bad] };
  const requests = { "2xx": ok, "5xx": bad, none: 0 };
  const errors: Record<string, number> = bad ? { deadline: bad } : {};
  return { uptime_ms, under_way: 0, requests, errors, received_bytes: ok, sent_bytes: 0, head };
}

test("a rate is what has come, over the time that has passed", () => {
  const history = new History();
  history.add(traffic(1000, 10, 0));
  assert.deepEqual(history.rates, [], "one look says nothing");
  history.add(traffic(3000, 30, 2));
  const { requests, failed, own, received, waits } = history.latest;
  assert.deepEqual([requests, failed, own, received], [11, 1, 1, 10]);
  assert.deepEqual(history.errors.get("deadline"), 1);
  assert.equal(waits![2], 1, "beyond the last bound");
  history.add(traffic(5000, 30, 2));
  assert.equal(history.latest.waits, null, "nobody has waited");
});

test("another process counts from the start", () => {
  const history = new History();
  history.add(traffic(100_000, 1000, 0));
  history.add(traffic(1000, 3, 0));
  assert.deepEqual(history.rates, []);
  history.add(traffic(1500, 4, 0));
  assert.deepEqual(history.rates, [], "too soon");
  history.add(traffic(3000, 5, 0));
  assert.equal(history.latest.requests, 1);
});

test("no more is remembered than is shown", () => {
  const history = new History();
  for (let at = 1; at < 3 * MOST; at += 1) history.add(traffic(at * 3000, at, 0));
  assert.equal(history.rates.length, MOST);
});

test("a quantile lies between the bounds of those that it is among", () => {
  const histogram = { bounds_s: [0.1, 0.2, 0.4], counts: [50, 40, 10, 0] };
  assert.equal(quantile(histogram, 0.25), 0.05);
  assert.equal(quantile(histogram, 0.5), 0.1);
  assert.ok(Math.abs(quantile(histogram, 0.95) - 0.3) < 1e-9);
  assert.equal(quantile({ bounds_s: [0.1], counts: [0, 5] }, 0.5), 0.1);
});
