// What the client's API says and how it is asked: docs/inspector.md describes it.

/** A row of the list. */
export interface Summary {
  id: string;
  tunnel: string | null;
  /** RFC 3339, in milliseconds. */
  at: string;
  method: string;
  /** The target as it was sent, with its query. */
  path: string;
  status: number | null;
  error: string | null;
  /** Null while the exchange goes on. */
  duration_ms: number | null;
  /** What the provider waits. */
  allowed_ms: number | null;
  provider: string | null;
  provider_name: string | null;
  event_id: string | null;
  event_type: string | null;
  verdict: string | null;
  request_size: number;
  response_size: number | null;
  remote: string | null;
  replay_of: string | null;
  /** Which attempt to deliver it this is, where it comes out of the relay's inbox. */
  inbox_attempt: number | null;
}

export type Header = [name: string, value: string];

/** One direction of an exchange. The body is text where it is UTF-8, else base64. */
export interface Message {
  headers: Header[];
  body_size: number;
  body_truncated: boolean;
  body?: string;
  body_base64?: string;
  /** Headers behind the body. */
  trailers?: Header[];
}

export interface Detail extends Summary {
  /** Why the verdict is what it is. */
  reason: string | null;
  /** The public URL that was asked for. */
  url: string;
  timings: { edge_ms: number | null; upstream_ms: number | null; total_ms: number | null };
  /** Where it came out of the relay's inbox. */
  delivery: { id: string; attempt: number; age_s: number } | null;
  /** Pages of the provider about this event. */
  links: { name: string; url: string }[];
  request: Message;
  response: Message | null;
}

export interface Page {
  exchanges: Summary[];
  /** How many there are besides those that were asked for. */
  total: number;
}

/** What the relay keeps for a tunnel. */
export interface Inbox {
  name: string;
  /** How it deals with its webhooks, in the words of --inbox. */
  how: string;
  paused: boolean;
  waiting: number;
  delivered: number;
  dead: number;
}

/** A webhook in an inbox. */
export interface Webhook {
  id: string;
  state: "waiting" | "delivered" | "dead";
  method: string;
  path: string;
  url: string;
  remote: string;
  received_at: string;
  first_at: string;
  due_at: string | null;
  under_way: boolean;
  attempts: number;
  copies: number;
  status: number | null;
  ended_at: string | null;
  reason: string | null;
  provider: string | null;
  event_id: string | null;
  event_type: string | null;
  verdict: string | null;
  differs_from: string | null;
  size: number;
}

export interface InboxPage {
  inbox: Inbox;
  webhooks: Webhook[];
  next: string | null;
}

/** A webhook with all that is kept of it. */
export interface Kept extends Webhook {
  headers: Header[];
  headers_first: Header[] | null;
  tried: { number: number; at: string; duration_ms: number; status: number | null; error: string | null }[];
  /** What its sender has sent; null where the body is not kept any more, or is too long to be told so. */
  message: Message | null;
}

/** Which webhooks something is done with. */
export type Which = { ids: string[] } | { all: string };

export interface Tunnel {
  name: string;
  public_url: string;
}

/** What is changed of a request that is sent again; what is left out stays as it was. */
export interface Changes {
  method?: string;
  path?: string;
  headers?: Header[];
  body?: string;
  body_base64?: string;
  resign?: boolean;
}

/** An answer of the API that is not the wanted one, or none at all. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly hint: string | null,
  ) {
    super(message);
  }

  /** What went wrong and what to do, for a person. */
  static describe(error: unknown): string {
    if (error instanceof ApiError) return error.hint ? `${error.message} (${error.hint})` : error.message;
    return error instanceof Error ? error.message : String(error);
  }
}

const BASE = "/api/v1";

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(BASE + path, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("The relay client does not answer", "is it still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const { message, hint } = answer?.error ?? {};
  throw new ApiError(message ?? `The relay client answered ${response.status}`, hint ?? null);
}

function post(path: string, body: unknown): Promise<Response> {
  return ask(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
}

export async function list(query: Record<string, string>, signal?: AbortSignal): Promise<Page> {
  return (await ask(`/exchanges?${new URLSearchParams(query)}`, signal ? { signal } : {})).json();
}

export async function get(id: string): Promise<Detail> {
  return (await ask(`/exchanges/${encodeURIComponent(id)}`)).json();
}

/** Sends a request again and returns the id of the new exchange. */
export async function replay(id: string, changes: Changes): Promise<string> {
  return (await (await post(`/exchanges/${encodeURIComponent(id)}/replay`, changes)).json()).id;
}

/** An exchange in another form, and the name of the file that it would be. */
export async function exported(id: string, form: string, secrets: boolean): Promise<{ blob: Blob; name: string }> {
  const query = new URLSearchParams({ as: form, ...(secrets ? { secrets: "show" } : {}) });
  const response = await ask(`/exchanges/${encodeURIComponent(id)}/export?${query}`);
  const named = /filename="([^"/\\]+)"/.exec(response.headers.get("content-disposition") ?? "");
  return { blob: await response.blob(), name: named?.[1] ?? `${id}.${form}` };
}

export async function clear(): Promise<void> {
  await ask("/exchanges", { method: "DELETE" });
}

export async function tunnels(): Promise<Tunnel[]> {
  return (await (await ask("/tunnels")).json()).tunnels;
}

export async function inboxes(): Promise<Inbox[]> {
  // A page without this part is better than none.
  return (await (await ask("/inboxes")).json()).inboxes ?? [];
}

export async function inboxPage(name: string, state: string, limit: number, before: string | null): Promise<InboxPage> {
  const query = new URLSearchParams({ state, limit: String(limit), ...(before ? { before } : {}) });
  return (await ask(`/inboxes/${encodeURIComponent(name)}?${query}`)).json();
}

export async function kept(name: string, id: string): Promise<Kept> {
  const { body_base64, ...kept } = await (await ask(keptPath(name, id))).json();
  return { ...kept, message: body_base64 === null ? null : messageOf(kept.headers, kept.size, body_base64) };
}

function messageOf(headers: Header[], body_size: number, body_base64: string): Message {
  const message = { headers, body_size, body_truncated: false };
  const bytes = Uint8Array.from(atob(body_base64), (character) => character.charCodeAt(0));
  try {
    return { ...message, body: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes) };
  } catch {
    return { ...message, body_base64 };
  }
}

/** Returns with how many it was done. */
export async function inboxAct(name: string, action: "retry" | "drop", which: Which): Promise<number> {
  return (await (await post(`/inboxes/${encodeURIComponent(name)}/${action}`, which)).json()).count;
}

export async function inboxPause(name: string, paused: boolean): Promise<void> {
  await post(`/inboxes/${encodeURIComponent(name)}/${paused ? "pause" : "resume"}`, {});
}

function keptPath(name: string, id: string): string {
  return `/inboxes/${encodeURIComponent(name)}/webhooks/${encodeURIComponent(id)}`;
}

/** Where the bytes of the body of a webhook in an inbox are. */
export function keptBodyUrl(name: string, id: string): string {
  return `${BASE}${keptPath(name, id)}/body`;
}

/** Where the bytes of a body are. */
export function bodyUrl(id: string, side: "request" | "response"): string {
  return `${BASE}/exchanges/${encodeURIComponent(id)}/${side}/body`;
}

/** Where all exchanges are, as one HTTP archive. */
export const HAR_URL = `${BASE}/exchanges.har`;

export const EVENTS_URL = `${BASE}/events`;
