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

/** A look at one that began at 0, unless it is said otherwise. */
function look(history: History, traffic: Traffic, process = 7, at = traffic.uptime_ms): void {
  history.add(traffic, process, at);
}

test("a rate is what has come, over the time that has passed", () => {
  const history = new History();
  look(history, traffic(1000, 10, 0));
  assert.deepEqual(history.rates, [], "one look says nothing");
  look(history, traffic(3000, 30, 2));
  const { requests, failed, own, received, waits } = history.latest;
  assert.deepEqual([requests, failed, own, received], [11, 1, 1, 10]);
  assert.deepEqual(history.errors.get("deadline"), 1);
  assert.equal(waits![2], 1, "beyond the last bound");
  look(history, traffic(5000, 30, 2));
  assert.equal(history.latest.waits, null, "nobody has waited");
});

test("another process counts from the start", () => {
  const history = new History();
  look(history, traffic(10_000, 1000, 0), 7, 10_000);
  look(history, traffic(1000, 3, 0), 7, 15_000);
  assert.deepEqual(history.rates, []);
  look(history, traffic(1500, 4, 0), 7, 15_500);
  assert.deepEqual(history.rates, [], "too soon");
  look(history, traffic(3000, 5, 0), 7, 17_000);
  assert.equal(history.latest.requests, 1);
});

test("another process is known also where it has run for longer by now", () => {
  for (const process of [7, 8]) {
    const history = new History();
    look(history, traffic(1000, 1, 0), 7, 1000);
    look(history, traffic(4000, 1000, 0), process, process === 7 ? 21_000 : 4000);
    assert.deepEqual(history.rates, []);
  }
});

test("after a gap it begins anew", () => {
  const history = new History();
  look(history, traffic(1000, 0, 0));
  look(history, traffic(4000, 3, 0));
  look(history, traffic(24_000, 23, 0));
  assert.deepEqual(history.rates.map(({ at, requests }) => [at, requests]), [[4000, 1], [24_000, 1]]);
  look(history, traffic(3_624_000, 999, 0));
  assert.deepEqual([history.rates, history.latest.requests], [[], 0], "an hour is no step");
  look(history, traffic(3_627_000, 1002, 0));
  assert.deepEqual(history.rates.map(({ at, requests }) => [at, requests]), [[3_627_000, 1]]);
});

test("no more is remembered than is shown", () => {
  const history = new History();
  for (let at = 1; at < 3 * MOST; at += 1) look(history, traffic(at * 3000, at, 0));
  assert.equal(history.rates.length, MOST);
});

test("a quantile lies between the bounds of those that it is among", () => {
  const histogram = { bounds_s: [0.1, 0.2, 0.4], counts: [50, 40, 10, 0] };
  assert.equal(quantile(histogram, 0.25), 0.05);
  assert.equal(quantile(histogram, 0.5), 0.1);
  assert.ok(Math.abs(quantile(histogram, 0.95) - 0.3) < 1e-9);
  assert.equal(quantile({ bounds_s: [0.1], counts: [0, 5] }, 0.5), 0.1);
});
