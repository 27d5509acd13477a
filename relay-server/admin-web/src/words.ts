// Times and counts as a person reads them, beside those that the inspector has.

/** `12 s`, `5 min`, `3 h`, `40 days` */
export function span(ms: number): string {
  if (Number.isNaN(ms)) return "–";
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** For how long since then. */
export function since(at: string): string {
  return span(Date.now() - Date.parse(at));
}

/** For how long until then. */
export function until(at: string): string {
  const ms = Date.parse(at) - Date.now();
  return ms < 0 ? `${span(-ms)} ago` : `in ${span(ms)}`;
}

/** A name as part of an address. What is no Unicode is nobody's name. */
export function part(name: string): string {
  try {
    return encodeURIComponent(name);
  } catch {
    return "";
  }
}

/** `1 tunnel`, `2 tunnels` */
export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en-GB")} ${count === 1 ? one : many}`;
}

/** A count of each second, as many digits as say something. */
export function rate(each: number): string {
  if (each === 0) return "0";
  return each < 10 ? each.toFixed(each < 0.1 ? 2 : 1) : Math.round(each).toLocaleString("en-GB");
}
