// What is different between two of something: lines, headers, JSON documents.

import type { Header } from "./api";
import * as json from "./json";

export interface Line {
  /** Whether both have it, only the first, or only the second. */
  side: "both" | "first" | "second";
  text: string;
}

/** More differences than this are not told apart: finding them takes time and memory with the square of their number. */
const MOST_DIFFERENCES = 1_500;

/** The shortest way from one list of lines to another (Myers 1986). */
export function lines(first: readonly string[], second: readonly string[]): Line[] {
  let start = 0;
  while (start < first.length && start < second.length && first[start] === second[start]) start += 1;
  let end = 0;
  const least = Math.min(first.length, second.length) - start;
  while (end < least && first[first.length - 1 - end] === second[second.length - 1 - end]) end += 1;
  const both = (text: string): Line => ({ side: "both", text });
  return [
    ...first.slice(0, start).map(both),
    ...between(first.slice(start, first.length - end), second.slice(start, second.length - end)),
    ...first.slice(first.length - end).map(both),
  ];
}

function between(first: readonly string[], second: readonly string[]): Line[] {
  const [n, m] = [first.length, second.length];
  const most = Math.min(n + m, MOST_DIFFERENCES);
  // How far in `first` the furthest way on diagonal k has come; diagonals are counted from -most - 1.
  const zero = most + 1;
  const reach = new Int32Array(2 * most + 3);
  const rounds: Int32Array[] = [];
  for (let d = 0; d <= most; d += 1) {
    rounds.push(reach.slice(zero - d - 1, zero + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const down = goesDown(reach, zero, k, d);
      let x = down ? reach[zero + k + 1]! : reach[zero + k - 1]! + 1;
      while (x < n && x - k < m && first[x] === second[x - k]) x += 1;
      reach[zero + k] = x;
      if (x >= n && x - k >= m) return way(first, second, rounds);
    }
  }
  const of =
    (side: Line["side"]) =>
    (text: string): Line => ({ side, text });
  return [...first.map(of("first")), ...second.map(of("second"))];
}

/** Whether the furthest way to diagonal k takes a line of the second, from the diagonal above it. */
function goesDown(reach: Int32Array, zero: number, k: number, d: number): boolean {
  return k === -d || (k !== d && reach[zero + k - 1]! < reach[zero + k + 1]!);
}

/** The lines on the way that was found, read from its end. */
function way(first: readonly string[], second: readonly string[], rounds: Int32Array[]): Line[] {
  const found: Line[] = [];
  let [x, y] = [first.length, second.length];
  for (let d = rounds.length - 1; d > 0; d -= 1) {
    const [reach, zero] = [rounds[d]!, d + 1];
    const k = x - y;
    const down = goesDown(reach, zero, k, d);
    const fromX = reach[zero + (down ? k + 1 : k - 1)]!;
    const fromY = fromX - (down ? k + 1 : k - 1);
    for (; x > fromX && y > fromY; x -= 1, y -= 1) found.push({ side: "both", text: first[x - 1]! });
    found.push(down ? { side: "second", text: second[fromY]! } : { side: "first", text: first[fromX]! });
    [x, y] = [fromX, fromY];
  }
  for (; x > 0; x -= 1) found.push({ side: "both", text: first[x - 1]! });
  return found.reverse();
}

/** A value that is not the same in both; null where one has none. */
export interface Change {
  name: string;
  first: string | null;
  second: string | null;
}

/** Headers by their names in lower case; those that stand several times are compared as a list. */
export function headers(first: readonly Header[], second: readonly Header[]): Change[] {
  const names = new Set([...first, ...second].map(([name]) => name.toLowerCase()));
  const of = (all: readonly Header[], name: string) => {
    const values = all.filter(([other]) => other.toLowerCase() === name).map(([, value]) => value);
    return values.length ? values.join("\n") : null;
  };
  const pairs = [...names].map((name) => ({ name, first: of(first, name), second: of(second, name) }));
  return pairs.filter((pair) => pair.first !== pair.second);
}

/** A side of a comparison of two documents. */
interface Side {
  text: string;
  node: json.Node;
}

/** Nested deeper than this, two values are only the same or not. */
const DEEPEST = 64;

/** What is different between two JSON documents, by JSON pointer (RFC 6901). The order of names does not count. */
export function documents(first: Side, second: Side, most: number): Change[] {
  const found: Change[] = [];
  const compare = (pointer: string, a: Side | undefined, b: Side | undefined, depth: number) => {
    if (found.length >= most || (a && b && isSame(a, b))) return;
    if (a && b && depth < DEEPEST && json.isContainer(a.node) && a.node.kind === b.node.kind) {
      for (const [name, of, other] of members(a, b)) compare(`${pointer}/${name}`, of, other, depth + 1);
    } else {
      found.push({ name: pointer, first: a ? literal(a) : null, second: b ? literal(b) : null });
    }
  };
  compare("", first, second, 0);
  return found;
}

type Pair = [name: string, first: Side | undefined, second: Side | undefined];

function members(a: Side, b: Side): Pair[] {
  const of = (side: Side) => json.children(side.text, side.node, Infinity)[0];
  const [ours, theirs] = [of(a), of(b)];
  const side = (from: Side, child: json.Child | undefined) => child && { text: from.text, node: child.node };
  if (a.node.kind === "array") {
    // What was put in or taken out somewhere leaves the end as it was.
    const same = (at: number) => isSame({ ...a, node: ours.at(at)!.node }, { ...b, node: theirs.at(at)!.node });
    const least = Math.min(ours.length, theirs.length);
    let begin = 0;
    while (begin < least && same(begin)) begin += 1;
    let end = 0;
    while (end < least - begin && same(-1 - end)) end += 1;
    const middle = Math.max(ours.length, theirs.length) - end;
    return Array.from({ length: middle - begin }, (_, index): Pair => {
      const at = begin + index;
      const mine = at < ours.length - end ? ours[at] : undefined;
      const other = at < theirs.length - end ? theirs[at] : undefined;
      return [String(at), side(a, mine), side(b, other)];
    });
  }
  const named = (all: json.Child[]) => new Map(all.map((child) => [nameOf(child.key ?? ""), child]));
  const [mine, other] = [named(ours), named(theirs)];
  const names = new Set([...mine.keys(), ...other.keys()]);
  const escape = (name: string) => name.replaceAll("~", "~0").replaceAll("/", "~1");
  return [...names].map((name) => [escape(name), side(a, mine.get(name)), side(b, other.get(name))]);
}

function nameOf(literal: string): string {
  return JSON.parse(literal);
}

/** However they are written, as long as they are known to mean the same. */
function isSame(a: Side, b: Side): boolean {
  const [one, other] = [literal(a), literal(b)];
  if (one === other) return true;
  if (a.node.kind !== b.node.kind) return false;
  if (a.node.kind === "string") return nameOf(one) === nameOf(other);
  // A larger one may differ in digits that a number of JavaScript does not have.
  return a.node.kind === "number" && Number(one) === Number(other) && Math.abs(Number(one)) < 2 ** 53;
}

function literal({ text, node }: Side): string {
  return text.slice(node.start, node.end);
}
