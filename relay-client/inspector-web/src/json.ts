// JSON as it was sent: numbers keep their digits, names that stand twice stay, and nothing is read before it is
// looked at. A node is a range of the text; its children are found when it is opened, so ten megabytes cost what is
// shown of them.

export interface Node {
  kind: "object" | "array" | "string" | "number" | "word";
  /** Where it begins. */
  start: number;
  /** Where it has ended. */
  end: number;
}

export interface Child {
  /** The name as it stands, with its quotes; null in a list. */
  key: string | null;
  node: Node;
}

/** The document that a text is, or null where it is none. */
export function document(text: string): Node | null {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return value(text, space(text, 0));
}

/** Up to `most` children of a list or an object, and where to go on for more; -1 where there are none. */
export function children(text: string, parent: Node, most: number, from = parent.start + 1): [Child[], number] {
  const found: Child[] = [];
  let at = from;
  while (found.length < most) {
    at = space(text, at);
    if (at >= parent.end - 1) return [found, -1];
    let key: string | null = null;
    if (parent.kind === "object") {
      const end = stringEnd(text, at);
      key = text.slice(at, end);
      at = space(text, space(text, end) + 1);
    }
    const node = value(text, at);
    found.push({ key, node });
    at = space(text, node.end);
    if (text[at] === ",") at += 1;
  }
  return [found, space(text, at) >= parent.end - 1 ? -1 : at];
}

export function isContainer(node: Node): boolean {
  return node.kind === "object" || node.kind === "array";
}

export function isEmpty(text: string, node: Node): boolean {
  return isContainer(node) && space(text, node.start + 1) === node.end - 1;
}

/** A string as a person reads it, still quoted: letters are letters, and what cannot be seen is escaped. */
export function readable(literal: string): string {
  try {
    // What would reorder or hide its neighbours is shown as what it is.
    return JSON.stringify(JSON.parse(literal)).replace(
      /[\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
      escaped,
    );
  } catch {
    return literal;
  }
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** The containers that are open at first: breadth first, as long as what they show stays within so many lines. */
export function opened(text: string, root: Node, lines: number, chunk: number): Set<number> {
  const open = new Set<number>();
  let queue = [{ node: root, depth: 0 }];
  let left = lines;
  while (queue.length) {
    const next: typeof queue = [];
    for (const { node, depth } of queue) {
      if (!isContainer(node) || depth > 24) continue;
      const [found] = children(text, node, chunk);
      if (found.length > left) continue;
      left -= found.length;
      open.add(node.start);
      for (const child of found) next.push({ node: child.node, depth: depth + 1 });
    }
    queue = next;
  }
  return open;
}

/** Deeper than this a value stays on one line: each level is read once more for the one above it. */
const DEEPEST = 64;

/** The document over several lines. */
export function pretty(text: string, node: Node, depth = 0): string {
  const inner = isContainer(node) && depth < DEEPEST ? children(text, node, Infinity)[0] : [];
  if (!inner.length) return text.slice(node.start, node.end);
  const indent = "  ".repeat(depth);
  const lines = inner.map((child) => {
    const name = child.key === null ? "" : `${child.key}: `;
    return `${indent}  ${name}${pretty(text, child.node, depth + 1)}`;
  });
  const [open, close] = node.kind === "object" ? ["{", "}"] : ["[", "]"];
  return `${open}\n${lines.join(",\n")}\n${indent}${close}`;
}

/** The value at a place; its text is known to be valid. */
function value(text: string, at: number): Node {
  switch (text[at]) {
    case "{":
      return { kind: "object", start: at, end: containerEnd(text, at) };
    case "[":
      return { kind: "array", start: at, end: containerEnd(text, at) };
    case '"':
      return { kind: "string", start: at, end: stringEnd(text, at) };
  }
  const number = /[-0-9]/.test(text[at] ?? "");
  let end = at;
  while (end < text.length && !/[\s,\]}]/.test(text[end]!)) end += 1;
  return { kind: number ? "number" : "word", start: at, end };
}

function space(text: string, at: number): number {
  for (;;) {
    const code = text.charCodeAt(at);
    if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return at;
    at += 1;
  }
}

function stringEnd(text: string, at: number): number {
  for (let end = text.indexOf('"', at + 1); end > 0; end = text.indexOf('"', end + 1)) {
    let escapes = 0;
    while (text.charCodeAt(end - 1 - escapes) === 0x5c) escapes += 1;
    if (escapes % 2 === 0) return end + 1;
  }
  return text.length;
}

function containerEnd(text: string, at: number): number {
  let depth = 0;
  for (; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code === 0x22) at = stringEnd(text, at) - 1;
    else if (code === 0x7b || code === 0x5b) depth += 1;
    else if (code === 0x7d || code === 0x5d) {
      depth -= 1;
      if (depth === 0) return at + 1;
    }
  }
  return text.length;
}
