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

export async function list(query: Record<string, string>, signal?: AbortSignal): Promise<Page> {
  return (await ask(`/exchanges?${new URLSearchParams(query)}`, signal ? { signal } : {})).json();
}

export async function get(id: string): Promise<Detail> {
  return (await ask(`/exchanges/${encodeURIComponent(id)}`)).json();
}

/** Sends a request again and returns the id of the new exchange. */
export async function replay(id: string, changes: Changes): Promise<string> {
  const response = await ask(`/exchanges/${encodeURIComponent(id)}/replay`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(changes),
  });
  return (await response.json()).id;
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

/** Where the bytes of a body are. */
export function bodyUrl(id: string, side: "request" | "response"): string {
  return `${BASE}/exchanges/${encodeURIComponent(id)}/${side}/body`;
}

/** Where all exchanges are, as one HTTP archive. */
export const HAR_URL = `${BASE}/exchanges.har`;

export const EVENTS_URL = `${BASE}/events`;
