// The words of the search box: `provider:stripe status:5xx,error -path:/health* refund`. The text is all that a filter
// is, so it can be typed, chosen from a menu, kept in the page's address and sent to somebody.

import type { Summary } from "./api";
import type { Entry, Predicate } from "./exchanges";

/** What stands before a colon, and what it looks at. */
const FIELDS: Record<string, (summary: Summary) => string | null> = {
  provider: (summary) => summary.provider,
  type: (summary) => summary.event_type,
  method: (summary) => summary.method,
  path: (summary) => summary.path,
  verdict: (summary) => summary.verdict ?? "none",
  tunnel: (summary) => summary.tunnel,
  event: (summary) => summary.event_id,
  id: (summary) => summary.id,
};

export interface Term {
  /** A name of `FIELDS`, `status`, or null for a word that is looked for anywhere. */
  field: string | null;
  /** One of them must fit, in any case. */
  values: string[];
  /** None of them may fit. */
  not: boolean;
}

export function parse(text: string): Term[] {
  const terms: Term[] = [];
  // A word, of which parts may be quoted.
  for (const [word] of text.matchAll(/(?:"[^"]*"?|[^\s"])+/g)) {
    const not = word.length > 1 && word.startsWith("-");
    const bare = not ? word.slice(1) : word;
    const named = /^([a-z]+):(.*)$/s.exec(bare);
    const field = named && (named[1] === "status" || Object.hasOwn(FIELDS, named[1]!)) ? named[1]! : null;
    const unquoted = (part: string) => part.replaceAll('"', "");
    // A comma separates values outside of quotes.
    const parts = field ? (named![2]!.match(/(?:"[^"]*"?|[^,"])+/g) ?? []) : [bare];
    const values = parts.map(unquoted).filter((value) => value !== "");
    // Half a word, as in `provider:`, is one that is still being typed.
    if (values.length) terms.push({ field, values, not });
  }
  return terms;
}

/** Those that fit every term; a word that stands anywhere may also stand in the body of one of `bodies`. */
export function compile(terms: Term[], bodies: ReadonlySet<string>): Predicate {
  const tests = terms.map((term) => {
    const test = testOf(term, bodies);
    return term.not ? (entry: Entry) => !test(entry) : test;
  });
  return (entry) => tests.every((test) => test(entry));
}

function testOf({ field, values: written, not }: Term, bodies: ReadonlySet<string>): Predicate {
  const values = written.map((value) => value.toLowerCase());
  if (field === null) {
    const value = values[0]!;
    return (entry) => entry.text.includes(value) || (!not && bodies.has(entry.id));
  }
  if (field === "status") {
    const tests = values.map(statusTest);
    return (entry) => tests.some((test) => test(entry.summary));
  }
  const read = FIELDS[field]!;
  const tests = values.map(glob);
  return (entry) => {
    const value = read(entry.summary)?.toLowerCase();
    return value !== undefined && tests.some((test) => test(value));
  };
}

function statusTest(value: string): (summary: Summary) => boolean {
  if (value === "error") return (summary) => summary.error !== null;
  if (value === "pending") return (summary) => summary.status === null && summary.error === null;
  if (/^[1-5]xx$/.test(value)) return (summary) => summary.status !== null && String(summary.status)[0] === value[0];
  return (summary) => summary.status !== null && String(summary.status).startsWith(value);
}

/** A `*` stands for anything. */
function glob(pattern: string): (value: string) => boolean {
  if (!pattern.includes("*")) return (value) => value === pattern;
  const parts = pattern.split("*");
  const [first, last] = [parts[0]!, parts.at(-1)!];
  const between = parts.slice(1, -1);
  // Not a regular expression: one with several stars can take for ever.
  return (value) => {
    if (!value.startsWith(first)) return false;
    let at = first.length;
    for (const part of between) {
      const found = value.indexOf(part, at);
      if (found < 0) return false;
      at = found + part.length;
    }
    return value.length - last.length >= at && value.endsWith(last);
  };
}

/** The words that are looked for anywhere, as one text, for the client to look for in bodies, just as it stands. */
export function wordsOf(terms: Term[]): string {
  const words = terms.filter((term) => term.field === null && !term.not);
  return words.map((term) => term.values[0]!).join(" ");
}

/** The value that a field is held to, in lower case, where it is held to just one. */
export function valueOf(text: string, field: string): string {
  const found = parse(text).filter((term) => term.field === field && !term.not);
  return found.length === 1 && found[0]!.values.length === 1 ? found[0]!.values[0]!.toLowerCase() : "";
}

/** The text with a field held to `value`, or to none where that is empty. */
export function withValue(text: string, field: string, value: string): string {
  const words = [...text.matchAll(/(?:"[^"]*"?|[^\s"])+/g)].map(([word]) => word);
  const others = words.filter((word) => !word.startsWith(`${field}:`));
  if (value) others.push(`${field}:${/[\s,"]/.test(value) ? `"${value.replaceAll('"', "")}"` : value}`);
  return others.join(" ");
}
