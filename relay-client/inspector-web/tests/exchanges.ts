import assert from "node:assert/strict";
import { test } from "node:test";

import type { Summary } from "../src/api";
import { Exchanges, MOST, mostFrequent, positionAfter } from "../src/exchanges";
import { compile, parse, valueOf, withValue, wordsOf } from "../src/query";

const NOTHING = {
  tunnel: "hooks",
  at: "2026-11-21T12:00:00.000Z",
  method: "POST",
  path: "/hooks",
  status: 200,
  error: null,
  duration_ms: 1,
  allowed_ms: null,
  provider: null,
  provider_name: null,
  event_id: null,
  event_type: null,
  verdict: null,
  request_size: 0,
  response_size: 0,
  remote: null,
  replay_of: null,
  inbox_attempt: null,
};

function summary(id: number, more: Partial<Summary> = {}): Summary {
  return { ...NOTHING, id: String(id).padStart(6, "0"), ...more };
}

function ids(entries: { id: string }[]): number[] {
  return entries.map(({ id }) => Number(id));
}

function searched(query: string, summaries: Summary[], grouped = false): number[] {
  const exchanges = new Exchanges();
  exchanges.merge(summaries);
  exchanges.filter(compile(parse(query), new Set()), grouped);
  return ids(exchanges.view);
}

test("rows are in order however they come", () => {
  const exchanges = new Exchanges();
  exchanges.merge([summary(5), summary(3)]);
  exchanges.merge([summary(1), summary(2)]);
  exchanges.merge([summary(4), summary(9), summary(0)]);
  exchanges.merge([summary(7), summary(5)]);
  assert.deepEqual(ids(exchanges.all), [0, 1, 2, 3, 4, 5, 7, 9]);
  assert.deepEqual(exchanges.view, exchanges.all);
  assert.deepEqual(
    [-1, 0, 6, 7, 20].map((id) => positionAfter(exchanges.all, String(id).padStart(6, "0"))),
    [0, 1, 6, 7, 8],
  );
});

test("what has ended does not go on again", () => {
  const exchanges = new Exchanges();
  exchanges.merge([summary(1, { status: null, duration_ms: null })]);
  exchanges.merge([summary(1, { status: 500 })]);
  exchanges.merge([summary(1, { status: null, duration_ms: null })]);
  assert.equal(exchanges.get("000001")?.summary.status, 500);
});

test("a row enters and leaves the view as it changes", () => {
  const exchanges = new Exchanges();
  exchanges.filter(compile(parse("status:pending"), new Set()), false);
  exchanges.merge([summary(1, { status: null, duration_ms: null }), summary(2)]);
  assert.deepEqual(ids(exchanges.view), [1]);
  exchanges.merge([summary(1)]);
  assert.deepEqual(ids(exchanges.view), []);
  exchanges.filter(compile(parse("status:2xx"), new Set()), false);
  exchanges.merge([summary(0)]);
  assert.deepEqual(ids(exchanges.view), [0, 1, 2]);
});

test("attempts of one event are known and can be one row", () => {
  const attempt = (id: number, status: number, event = "evt_1", provider = "stripe") =>
    summary(id, { event_id: event, status, provider });
  const all = [
    attempt(1, 500),
    attempt(2, 200, "evt_2"),
    attempt(3, 500),
    attempt(4, 200),
    attempt(5, 200, "evt_1", "x"),
  ];
  assert.deepEqual(searched("", all, true), [2, 4, 5]);
  assert.deepEqual(searched("status:500", all, true), [3]);

  const exchanges = new Exchanges();
  exchanges.filter(() => true, true);
  for (const one of all) exchanges.merge([one]);
  assert.deepEqual(ids(exchanges.view), [2, 4, 5]);
  assert.deepEqual(ids(exchanges.get("000001")?.attempts ?? []), [1, 3, 4]);
});

test("an event that is recognised late joins its attempts", () => {
  const exchanges = new Exchanges();
  exchanges.merge([summary(1, { event_id: "e" }), summary(2, { status: null, duration_ms: null })]);
  exchanges.merge([summary(2, { event_id: "e" })]);
  assert.deepEqual(ids(exchanges.get("000001")?.attempts ?? []), [1, 2]);
});

test("the oldest leave where there are too many", () => {
  const exchanges = new Exchanges();
  const many = Array.from({ length: MOST + 2_000 }, (_, id) =>
    summary(id, { event_id: "e", method: id < 2_000 ? "GET" : "PUT" }),
  );
  exchanges.merge(many);
  assert.equal(exchanges.all.length, MOST);
  assert.equal(exchanges.view.length, MOST);
  assert.equal(exchanges.get("000000"), undefined);
  assert.equal(exchanges.all[0]?.attempts?.length, MOST);
  assert.deepEqual([...(exchanges.facets.get("method") ?? [])], [["PUT", MOST]]);
  exchanges.clear();
  assert.deepEqual([exchanges.all.length, exchanges.view.length, exchanges.facets.get("method")?.size], [0, 0, 0]);
});

test("each word of the search holds", () => {
  const all = [
    summary(1, { provider: "stripe", event_type: "invoice.paid", path: "/Hooks/a?b=1", verdict: "valid" }),
    summary(2, { provider: "github", event_type: "push", method: "PUT", status: 404 }),
    summary(3, { status: null, duration_ms: null, path: "/health" }),
    summary(4, { status: 502, error: "upstream-refused", event_id: "evt_9" }),
  ];
  const cases: [string, number[]][] = [
    ["", [1, 2, 3, 4]],
    ["provider:stripe", [1]],
    ["provider:stripe,GitHub", [1, 2]],
    ["provider:", [1, 2, 3, 4]],
    ["-provider:stripe", [2, 3, 4]],
    ["-provider:stripe -status:error", [2, 3]],
    ["type:invoice.*", [1]],
    ["type:*paid", [1]],
    ["type:i*v*.*d", [1]],
    ["type:invoice", []],
    ["path:/hooks/*", [1]],
    ["status:2xx", [1]],
    ["status:4", [2]],
    ["status:4xx,error", [2, 4]],
    ["status:pending", [3]],
    ["method:put", [2]],
    ["verdict:valid", [1]],
    ["verdict:none", [2, 3, 4]],
    ["event:evt_9", [4]],
    ["id:000003", [3]],
    ["STRIPE paid", [1]],
    ["refused", [4]],
    ["-health", [1, 2, 4]],
    ['"stripe invoice"', []],
    ['type:"push"', [2]],
    ["unknown:word", []],
    ["constructor:x", []],
    ["(", []],
  ];
  for (const [query, expected] of cases) assert.deepEqual(searched(query, all), expected, query);
});

test("words may stand in a body", () => {
  const exchanges = new Exchanges();
  exchanges.merge([summary(1), summary(2), summary(3, { path: "/needle" })]);
  exchanges.filter(compile(parse("needle method:POST"), new Set(["000002"])), false);
  assert.deepEqual(ids(exchanges.view), [2, 3]);
  exchanges.filter(compile(parse("-needle"), new Set(["000002"])), false);
  assert.deepEqual(ids(exchanges.view), [1, 2]);
  assert.equal(wordsOf(parse('status:2xx One "two Three" -four')), "One two Three");
});

test("a menu writes the words that it reads", () => {
  assert.equal(withValue("refund", "provider", "stripe"), "refund provider:stripe");
  assert.equal(withValue("provider:github a", "provider", "stripe"), "a provider:stripe");
  assert.equal(withValue("provider:github a", "provider", ""), "a");
  for (const value of ["stripe", "two words", "a,b"]) {
    assert.equal(valueOf(withValue("", "type", value), "type"), value);
    assert.deepEqual(searched(withValue("", "type", value), [summary(1, { event_type: value })]), [1]);
  }
  assert.equal(valueOf("provider:a provider:b", "provider"), "");
  assert.equal(valueOf("provider:a,b", "provider"), "");
});

test("a pattern with many stars is quick", () => {
  const path = `/${"a".repeat(50_000)}`;
  assert.deepEqual(searched(`path:/${"*a".repeat(200)}b`, [summary(1, { path })]), []);
});

test("the most frequent values are offered first", () => {
  const counts = new Map(Array.from({ length: 1_000 }, (_, at) => [`v${at}`, (at * 7_919) % 1_000]));
  const sorted = [...counts].sort((a, b) => b[1] - a[1]).map(([value]) => value);
  for (const most of [1, 200, 5_000]) assert.deepEqual(mostFrequent(counts, most), sorted.slice(0, most));
  assert.deepEqual(mostFrequent(new Map([["a", 1], ["b", 1], ["c", 1]]), 2), ["a", "b"]);
});
