// Rates and waiting times, of counters that only grow.

import type { Histogram, Traffic } from "./api";

/** What happened between two looks. */
export interface Rates {
  /** When the later one was, in milliseconds since 1970. */
  at: number;
  /** Requests each second. */
  requests: number;
  /** Those with a status of 500 or more, or without any. */
  failed: number;
  /** Those that the relay answered itself. */
  own: number;
  received: number;
  sent: number;
  /** Seconds that senders waited for an answer: half of them, 95 and 99 of a hundred no longer than that. */
  waits: [number, number, number] | null;
}

/** So many looks are remembered: five minutes. */
export const MOST = 100;

/** Between two looks that make a rate. */
const SHORTEST_MS = 2000;

/** After so long without a look, what was before is not drawn on: an hour is not to look like one step. */
export const LONGEST_MS = 30_000;

/** Two looks can be of one process where its beginning, as this clock has it, differs by no more: answers take their time. */
const DRIFT_MS = 15_000;

export const NO_RATES: Rates = { at: 0, requests: 0, failed: 0, own: 0, received: 0, sent: 0, waits: null };

interface Look {
  traffic: Traffic;
  process: number;
  at: number;
}

/** Whether both are looks at one process. In a container each has the same number, but not the same beginning. */
function follows(before: Look, now: Look): boolean {
  const begun = ({ traffic, at }: Look) => at - traffic.uptime_ms;
  const drift = Math.abs(begun(now) - begun(before));
  return now.process === before.process && now.traffic.uptime_ms > before.traffic.uptime_ms && drift <= DRIFT_MS;
}

/** The looks at the relay, and what lies between them. */
export class History {
  rates: Rates[] = [];
  /** How often each error happens, each second. */
  errors = new Map<string, number>();
  #last: Look | null = null;

  /** Another look, at that process and at that time. */
  add(now: Traffic, process: number, at: number): void {
    const last = this.#last;
    const isSame = last !== null && follows(last, { traffic: now, process, at });
    // Somebody has turned to something else: of so short a time no rate can be told.
    if (isSame && now.uptime_ms < last.traffic.uptime_ms + SHORTEST_MS) return;
    this.#last = { traffic: now, process, at };
    if (last && at - last.at > LONGEST_MS) [this.rates, this.errors] = [[], new Map()];
    // Another process counts from 0, and of what there is since long ago nobody knows when it came.
    if (!isSame || at - last.at > LONGEST_MS) return;
    const before = last.traffic;
    const each = (ms: number) => (now.uptime_ms - before.uptime_ms) / ms;
    const rate = (count: (traffic: Traffic) => number) => Math.max(0, count(now) - count(before)) / each(1000);
    const waits = grown(before.head, now.head);
    this.rates.push({
      at,
      requests: rate(({ requests }) => sum(requests)),
      failed: rate(({ requests }) => (requests["5xx"] ?? 0) + (requests["none"] ?? 0)),
      own: rate(({ errors }) => sum(errors)),
      received: rate(({ received_bytes }) => received_bytes),
      sent: rate(({ sent_bytes }) => sent_bytes),
      waits: waits && [quantile(waits, 0.5), quantile(waits, 0.95), quantile(waits, 0.99)],
    });
    if (this.rates.length > MOST) this.rates.shift();
    this.errors = new Map(Object.keys(now.errors).map((code) => [code, rate(({ errors }) => errors[code] ?? 0)]));
  }

  get latest(): Rates {
    return this.rates.at(-1) ?? NO_RATES;
  }
}

export function sum(counts: Record<string, number>): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

/** What has come between two looks; null where nothing has. */
function grown(before: Histogram, now: Histogram): Histogram | null {
  const counts = now.counts.map((count, at) => Math.max(0, count - (before.counts[at] ?? 0)));
  return counts.some((count) => count > 0) ? { bounds_s: now.bounds_s, counts } : null;
}

/** The time that a share of all took no longer than, as if those between two bounds were spread evenly. */
export function quantile({ bounds_s, counts }: Histogram, share: number): number {
  const wanted = share * counts.reduce((sum, count) => sum + count, 0);
  let passed = 0;
  for (const [at, count] of counts.entries()) {
    const [from, to] = [bounds_s[at - 1] ?? 0, bounds_s[at]];
    // Of those beyond the last bound nobody knows how long.
    if (to === undefined) return from;
    if (count > 0 && passed + count >= wanted) return from + (to - from) * ((wanted - passed) / count);
    passed += count;
  }
  return 0;
}
