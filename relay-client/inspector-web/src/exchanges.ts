// Every exchange that the page knows of, in the order of their ids, and those among them that are wanted. Ids are ULIDs:
// their order is that of time.
//
// A hundred thousand of them must be filtered between two keystrokes and a thousand new ones per second taken in, so
// both lists are kept sorted and changed in batches, and what a search looks at is put together once per exchange.

import type { Summary } from "./api";

/** As many as the client keeps by default. Older ones stay in its history and leave the page. */
export const MOST = 100_000;

/** How many more than `MOST` there may be, so that making room is done now and then and not for each. */
const SLACK = 1_000;

export interface Entry {
  readonly id: string;
  summary: Summary;
  /** What words are looked for in, in lower case. */
  text: string;
  /** All that carry the same event, itself included, oldest first. */
  attempts: Entry[] | null;
  /** Whether it is in the view. */
  shown: boolean;
}

export type Predicate = (entry: Entry) => boolean;

/** Fields of which the page offers the values that there are. */
export const FACETS = ["provider", "event_type", "method", "verdict", "tunnel"] as const;
export type Facet = (typeof FACETS)[number];

export class Exchanges {
  /** All, oldest first. */
  all: Entry[] = [];
  /** Those that are wanted, oldest first. */
  view: Entry[] = [];
  /** How many there are of each value. */
  readonly facets = new Map<Facet, Map<string, number>>(FACETS.map((facet) => [facet, new Map()]));

  #byId = new Map<string, Entry>();
  #byEvent = new Map<string, Entry[]>();
  #wanted: Predicate = () => true;
  #grouped = false;

  get(id: string): Entry | undefined {
    return this.#byId.get(id);
  }

  /** Takes in new ones and what has become of known ones, in any order. */
  merge(summaries: readonly Summary[]): void {
    const fresh: Entry[] = [];
    const touched = new Set<Entry>();
    for (const summary of summaries) {
      const known = this.#byId.get(summary.id);
      if (known) {
        // A page of the list may be older than what the stream has said since.
        if (progress(summary) < progress(known.summary)) continue;
        this.#count(known.summary, -1);
        known.summary = summary;
        known.text = textOf(summary);
        this.#count(summary, 1);
        this.#join(known);
        touched.add(known);
      } else {
        const entry: Entry = { id: summary.id, summary, text: textOf(summary), attempts: null, shown: false };
        this.#byId.set(entry.id, entry);
        this.#count(summary, 1);
        this.#join(entry);
        touched.add(entry);
        fresh.push(entry);
      }
    }
    this.all = merged(this.all, fresh.sort(byId));
    this.#settle(touched);
    if (this.all.length > MOST + SLACK) this.#drop(this.all.length - MOST);
  }

  /** Shows those that `wanted` takes; of several attempts of one event only the newest of them, where `grouped`. */
  filter(wanted: Predicate, grouped: boolean): void {
    this.#wanted = wanted;
    this.#grouped = grouped;
    this.view = this.all.filter((entry) => (entry.shown = wanted(entry)));
    if (!grouped) return;
    for (const attempts of this.#byEvent.values()) onlyNewest(attempts);
    this.view = this.view.filter((entry) => entry.shown);
  }

  clear(): void {
    this.#drop(this.all.length);
  }

  /** Brings the view up to date for those that have changed, and the other attempts of their events. */
  #settle(touched: Set<Entry>): void {
    const before = new Map<Entry, boolean>();
    const groups = new Set<Entry[]>();
    const judge = (entry: Entry) => {
      before.set(entry, entry.shown);
      entry.shown = this.#wanted(entry);
    };
    for (const entry of touched) {
      if (this.#grouped && entry.attempts) groups.add(entry.attempts);
      else judge(entry);
    }
    for (const attempts of groups) {
      attempts.forEach(judge);
      onlyNewest(attempts);
    }
    const added = [...before].filter(([entry, was]) => entry.shown && !was).map(([entry]) => entry);
    if ([...before].some(([entry, was]) => was && !entry.shown)) this.view = this.view.filter((entry) => entry.shown);
    this.view = merged(this.view, added.sort(byId));
  }

  /** Puts an entry among the attempts of its event. */
  #join(entry: Entry): void {
    if (entry.attempts || entry.summary.event_id === null) return;
    const key = eventOf(entry.summary);
    let attempts = this.#byEvent.get(key);
    if (!attempts) this.#byEvent.set(key, (attempts = []));
    attempts.splice(positionAfter(attempts, entry.id), 0, entry);
    entry.attempts = attempts;
  }

  /** Forgets the oldest. */
  #drop(count: number): void {
    const gone = new Map<Entry[], number>();
    for (const entry of this.all.splice(0, count)) {
      this.#byId.delete(entry.id);
      this.#count(entry.summary, -1);
      entry.shown = false;
      if (entry.attempts) gone.set(entry.attempts, (gone.get(entry.attempts) ?? 0) + 1);
    }
    for (const [attempts, count] of gone) {
      // The oldest of all are the oldest of their events.
      const [oldest] = attempts.splice(0, count);
      if (!attempts.length && oldest) this.#byEvent.delete(eventOf(oldest.summary));
    }
    this.view = this.view.filter((entry) => entry.shown);
  }

  #count(summary: Summary, by: number): void {
    for (const [facet, counts] of this.facets) {
      const value = summary[facet];
      if (value === null) continue;
      const count = (counts.get(value) ?? 0) + by;
      if (count) counts.set(value, count);
      else counts.delete(value);
    }
  }
}

/** How many entries of a sorted list have an id up to this one. */
export function positionAfter(entries: readonly Entry[], id: string): number {
  let low = 0;
  let high = entries.length;
  // Nearly always it is the newest.
  if (high && entries[high - 1]!.id <= id) return high;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (entries[middle]!.id <= id) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Up to `most` values, those that there are most of first. One pass: strangers can make each value another one. */
export function mostFrequent(counts: ReadonlyMap<string, number>, most: number): string[] {
  const found: [value: string, count: number][] = [];
  for (const [value, count] of counts) {
    if (found.length === most && count <= found[most - 1]![1]) continue;
    let at = found.length;
    while (at && found[at - 1]![1] < count) at -= 1;
    found.splice(at, 0, [value, count]);
    found.length = Math.min(found.length, most);
  }
  return found.map(([value]) => value);
}

/** An event's id means something with its provider only. */
function eventOf({ provider, event_id }: Summary): string {
  return `${provider ?? ""} ${event_id}`;
}

/** How far an exchange has come. */
function progress(summary: Summary): number {
  if (summary.duration_ms !== null) return 2;
  return summary.status === null ? 0 : 1;
}

function textOf(summary: Summary): string {
  const { id, method, path, status, error, provider, provider_name, event_id, event_type, remote, tunnel } = summary;
  const parts = [method, path, event_type, event_id, provider, provider_name, status, error, remote, tunnel, id];
  return parts
    .filter((part) => part !== null)
    .join(" ")
    .toLowerCase();
}

function onlyNewest(attempts: Entry[]): void {
  let found = false;
  for (let at = attempts.length - 1; at >= 0; at -= 1) {
    const entry = attempts[at]!;
    entry.shown &&= !found;
    found ||= entry.shown;
  }
}

function byId(a: Entry, b: Entry): number {
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0;
}

/** Two sorted lists as one; the first may be changed for it. */
function merged(old: Entry[], fresh: Entry[]): Entry[] {
  const [first, last] = [fresh[0], fresh.at(-1)];
  if (!first || !last) return old;
  const newest = old.at(-1);
  if (!newest || newest.id < first.id) {
    for (const entry of fresh) old.push(entry);
    return old;
  }
  if (last.id < old[0]!.id) return fresh.concat(old);
  const out: Entry[] = [];
  let at = 0;
  for (const entry of old) {
    while (at < fresh.length && fresh[at]!.id < entry.id) out.push(fresh[at++]!);
    out.push(entry);
  }
  while (at < fresh.length) out.push(fresh[at++]!);
  return out;
}
