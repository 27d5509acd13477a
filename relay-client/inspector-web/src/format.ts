// Numbers and times as a person reads them.

import type { Summary } from "./api";

const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const calendar = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });

/** The local time of day, in milliseconds. */
export function time(at: string): string {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return at;
  return `${clock.format(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** The local date and time. */
export function moment(at: string): string {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? at : `${calendar.format(date)} ${time(at)}`;
}

/** `34 ms`, `3.8 s`, `2 min 5 s`. */
export function duration(ms: number): string {
  if (ms < 10) return `${trimmed(ms)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${trimmed(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  return seconds % 60 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${seconds / 60} min`;
}

/** `3.8 s of 5 s, Shopify` */
export function allowance(summary: Summary): string {
  const used = summary.duration_ms === null ? "" : duration(summary.duration_ms);
  if (summary.allowed_ms === null) return used;
  const allowed = duration(summary.allowed_ms) + (summary.provider_name ? `, ${summary.provider_name}` : "");
  return used ? `${used} of ${allowed}` : `of ${allowed}`;
}

export function bytes(count: number): string {
  if (count < 1024) return `${count} B`;
  for (const unit of ["KiB", "MiB"]) {
    count /= 1024;
    if (count < 1024) return `${trimmed(count)} ${unit}`;
  }
  return `${trimmed(count / 1024)} GiB`;
}

export function number(count: number): string {
  return count.toLocaleString("en-GB");
}

function trimmed(value: number): string {
  return value < 10 ? String(Number(value.toFixed(1))) : String(Math.round(value));
}

/** How an answer is taken: a word that a style is for. */
export function outcome(summary: Summary): "good" | "other" | "bad" | "pending" {
  if (summary.error !== null) return "bad";
  if (summary.status === null) return "pending";
  return summary.status < 300 ? "good" : summary.status < 400 ? "other" : "bad";
}

/** What a verdict is called. */
const VERDICTS: Record<string, string> = {
  valid: "signature valid",
  bad_signature: "wrong signature",
  stale: "signed too long ago",
  future: "signed in the future",
  missing: "no signature",
  malformed: "malformed signature",
  no_secret: "no secret to check it with",
  unsupported: "signature cannot be checked",
};

export function verdict(code: string): string {
  return Object.hasOwn(VERDICTS, code) ? VERDICTS[code]! : code;
}

/** How a verdict is taken. Nothing is wrong where there was nothing to check with. */
export function judgement(code: string): "good" | "other" | "bad" {
  if (code === "valid") return "good";
  return code === "no_secret" || code === "unsupported" ? "other" : "bad";
}
