// What a body can be shown as.

import type { Header, Message } from "./api";
import * as diff from "./diff";
import * as json from "./json";

export type View = "json" | "xml" | "form" | "parts" | "text" | "hex";

export interface Body {
  type: string;
  /** Null where it is not UTF-8. */
  text: string | null;
  /** The ways to show it, the best first. */
  views: View[];
  root: json.Node | null;
  bytes(): Uint8Array;
}

export function read(message: Message): Body {
  const type = header(message.headers, "content-type")?.toLowerCase() ?? "";
  const text = message.body ?? (message.body_base64 === undefined ? "" : null);
  const views: View[] = [];
  const root = text !== null && /^\s*[[{"]/.test(text) ? json.document(text) : null;
  if (root) views.push("json");
  if (text !== null && (type.includes("xml") || /^\s*<\?xml/.test(text)) && /^\s*</.test(text)) views.push("xml");
  if (text && type.startsWith("application/x-www-form-urlencoded")) views.push("form");
  if (type.startsWith("multipart/") && boundary(message)) views.push("parts");
  if (text !== null) views.push("text");
  views.push("hex");
  let bytes: Uint8Array | null = null;
  return { type, text, views, root, bytes: () => (bytes ??= bytesOf(message)) };
}

export function header(headers: Header[], name: string): string | null {
  return headers.find(([other]) => other.toLowerCase() === name)?.[1] ?? null;
}

function bytesOf(message: Message): Uint8Array {
  if (message.body_base64 === undefined) return new TextEncoder().encode(message.body ?? "");
  const binary = atob(message.body_base64);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** A text as a text field has it, which knows one kind of line end only. */
export function asField(text: string): string {
  return text.replace(/\r\n?/g, "\n");
}

/** What was made of a text in a text field, with the line ends that it had: the usual one for what is new. */
export function withLineEnds(before: string, edited: string): string {
  const ends = before.match(/\r\n|\r|\n/g) ?? [];
  const count = (end: string) => ends.filter((other) => other === end).length;
  const [usual] = ["\n", "\r\n", "\r"].sort((a, b) => count(b) - count(a));
  const lines: string[] = [];
  let at = 0;
  // Those of the lines in whose place others stand.
  let free: (string | undefined)[] = [];
  for (const { side, text } of diff.lines(asField(before).split("\n"), edited.split("\n"))) {
    if (side === "first") {
      free.push(ends[at++]);
      continue;
    }
    if (side === "both") free = [];
    const end = side === "both" ? ends[at++] : free.shift();
    lines.push(text, end ?? usual!);
  }
  // Behind the last line is none.
  return lines.slice(0, -1).join("");
}

// What is taken apart below is taken apart as far as it is looked at: a stranger can send millions of parts.

/** Up to `most` fields of a form, names and values as they were meant, and whether there are more. */
export function fields(text: string, most: number): [Header[], boolean] {
  const found: Header[] = [];
  for (let at = 0; at < text.length;) {
    if (text[at] === "&") {
      at += 1;
      continue;
    }
    if (found.length === most) return [found, true];
    const next = text.indexOf("&", at);
    const end = next < 0 ? text.length : next;
    // In front of all, a question mark would be taken for that of a URL.
    found.push(...new URLSearchParams(`&${text.slice(at, end)}`));
    at = end;
  }
  return [found, false];
}

/** A part of a multipart body (RFC 2046, section 5.1). */
export interface Part {
  head: string;
  /** Null where it is not text. */
  text: string | null;
  size: number;
}

/** Up to `most` parts, and whether there are more. */
export function parts(message: Message, bytes: Uint8Array, most: number): [Part[], boolean] {
  const mark = `--${boundary(message)}`;
  // One character per byte, so that places in the text are places in the bytes.
  const raw = new TextDecoder("latin1").decode(bytes);
  const found: Part[] = [];
  for (let at = raw.indexOf(mark); at >= 0;) {
    const start = raw.indexOf("\n", at) + 1;
    const next = raw.indexOf(`\n${mark}`, start - 1);
    if (!start || next < 0) break;
    if (found.length === most) return [found, true];
    const end = raw[next - 1] === "\r" ? next - 1 : next;
    const [blank] = /\r?\n\r?\n/.exec(raw.slice(start, Math.min(end, start + MOST_HEAD))) ?? [];
    const headEnd = blank ? raw.indexOf(blank, start) : end;
    const content = bytes.subarray(Math.min(end, headEnd + (blank?.length ?? 0)), end);
    const head = utf8(bytes.subarray(start, headEnd)) ?? raw.slice(start, headEnd);
    found.push({ head, text: utf8(content), size: content.length });
    at = next + 1;
  }
  return [found, false];
}

/** Bytes of a part's head. */
const MOST_HEAD = 16_384;

function utf8(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

function boundary(message: Message): string | null {
  const found = /;\s*boundary=(?:"([^"]+)"|([^\s;"]+))/i.exec(header(message.headers, "content-type") ?? "");
  const mark = found?.[1] ?? found?.[2] ?? null;
  return mark && mark.length <= MOST_BOUNDARY ? mark : null;
}

/** RFC 2046, section 5.1.1. A long one can be made to take for ever to look for. */
const MOST_BOUNDARY = 70;

/**
 * XML over several lines, up to the one that fills `most` characters, and whether there are more. It is taken apart by its
 * tags only, so that what is malformed is shown too.
 */
export function xmlLines(text: string, most: number): [string[], boolean] {
  const lines: string[] = [];
  let depth = 0;
  let length = 0;
  // Whether the last line is an element that has begun there.
  let open = false;
  for (const piece of pieces(text)) {
    const tag = piece.startsWith("<");
    const closing = piece.startsWith("</");
    if (closing) depth = Math.max(0, depth - 1);
    // Words, and the end, stay on the line of their element.
    const stays = open && (closing || !tag);
    if (!stays && length >= most) return [lines, true];
    const line = stays ? lines.pop() + piece : indent(depth) + piece;
    length += stays ? piece.length : line.length + 1;
    lines.push(line);
    if (!tag) continue;
    open = !closing && !/^<[!?]|\/>$/.test(piece);
    if (open) depth += 1;
  }
  return [lines, false];
}

/** Tags, comments and what stands between them, in one pass whatever the text is. */
function* pieces(text: string): Generator<string> {
  for (let at = 0, end; at < text.length; at = end) {
    if (text[at] === "<") {
      const [, close] = MARKS.find(([mark]) => text.startsWith(mark, at))!;
      const found = text.indexOf(close, at);
      end = found < 0 ? text.length : found + close.length;
    } else {
      const found = text.indexOf("<", at);
      end = found < 0 ? text.length : found;
    }
    const piece = text.slice(at, end).trim();
    if (piece) yield piece;
  }
}

/** What begins as the first ends with the second. */
const MARKS: [string, string][] = [
  ["<!--", "-->"],
  ["<![CDATA[", "]]>"],
  ["<?", "?>"],
  ["<", ">"],
];

function indent(depth: number): string {
  return "  ".repeat(Math.min(depth, 40));
}

/** Lines of sixteen bytes: where they are, what they are, and what they would be as ASCII. */
export function hexLines(bytes: Uint8Array, from: number, to: number): string {
  const lines: string[] = [];
  for (let at = from; at < Math.min(to, bytes.length); at += 16) {
    const row = [...bytes.subarray(at, Math.min(at + 16, bytes.length))];
    const digits = row.map((byte) => byte.toString(16).padStart(2, "0"));
    const left = digits.slice(0, 8).join(" ");
    const right = digits.slice(8).join(" ");
    const ascii = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${left.padEnd(23)}  ${right.padEnd(23)}  ${ascii}`);
  }
  return lines.join("\n");
}

/** The body over several lines, to be compared with another one's: as much of it as fits `most` characters. */
export function comparable(body: Body, most: number): string[] {
  if (body.text === null) return hexLines(body.bytes(), 0, most / 4).split("\n");
  const text = body.text.slice(0, most);
  if (body.root && text.length === body.text.length) return json.pretty(text, body.root).split("\n");
  if (body.views[0] === "xml") return xmlLines(text, most)[0];
  // Each has an ampersand at least.
  if (body.views[0] === "form") return fields(text, most / 16)[0].map(([name, value]) => `${name} = ${value}`);
  return text.split("\n");
}
