// What the admin API says and how it is asked: docs/admin-api.md describes it.

import { part } from "./words";

export interface Status {
  version: string;
  process: number;
  url: string;
  ready: boolean;
  trouble: string | null;
  note: string | null;
  sessions: number;
  tunnels: number;
  connections: number;
  traffic: Traffic;
  inboxes: Depth | null;
}

/** What was counted since the process began. */
export interface Traffic {
  uptime_ms: number;
  under_way: number;
  /** By the class of their status. */
  requests: Record<string, number>;
  /** Those that the relay answered itself, by code. */
  errors: Record<string, number>;
  received_bytes: number;
  sent_bytes: number;
  /** How long senders waited for the head of the answer. */
  head: Histogram;
}

/** How many were no longer than each bound, and longer than the one before; the last count has no bound. */
export interface Histogram {
  bounds_s: number[];
  counts: number[];
}

export interface Depth {
  inboxes: number;
  waiting: number;
  dead: number;
  bytes: number;
  oldest_at: string | null;
}

export interface Session {
  id: string;
  token: string;
  address: string;
  client: string;
  since: string;
  streams: number;
  tunnels: string[];
}

export interface Tunnel {
  name: string;
  url: string;
  token: string;
  session: string;
  inbox: boolean;
}

/** What its owner may have, and what the public may have of its tunnels; null is no limit. */
export interface TokenLimits {
  max_tunnels: number;
  max_names: number;
  max_sessions: number;
  max_rate: number | null;
  max_streams: number | null;
  max_bytes: number | null;
  max_body: number | null;
  /** Addresses and networks; none of them: anywhere. */
  allow: string[];
}

export interface Token extends TokenLimits {
  name: string;
  state: "valid" | "expired" | "revoked";
  created_at: string;
  expires_at: string | null;
  last_used_at: string | null;
  month_bytes: number;
  reserved: string[];
  leased: string[];
}

export interface Name {
  name: string;
  token: string;
  state: "reserved" | "leased";
  provider: string | null;
}

export interface Inbox {
  name: string;
  token?: string | null;
  how: string;
  paused: boolean;
  waiting: number;
  delivered: number;
  dead: number;
  bytes: number;
  oldest_at: string | null;
}

export interface Webhook {
  id: string;
  state: string;
  method: string;
  path: string;
  first_at: string;
  due_at: string | null;
  under_way: boolean;
  attempts: number;
  status: number | null;
  reason: string | null;
  provider: string | null;
  event_type: string | null;
}

export interface WebhookPage {
  inbox: Inbox;
  webhooks: Webhook[];
  next: string | null;
}

export interface Certificate {
  domain: string | null;
  source: string;
  names: string[];
  issuer: string | null;
  not_after: string | null;
  trouble: string | null;
}

export interface Block {
  id: number;
  address: string | null;
  name: string | null;
  token: string | null;
  reason: string;
  at: string;
}

export interface Entry {
  id: number;
  at: string;
  by: { via: string; user?: number; process?: number | null; address?: string };
  operation: string;
  subject: string;
  detail: string;
}

export interface AuditPage {
  entries: Entry[];
  next: number | null;
}

export type WebhookState = "waiting" | "delivered" | "dead";

export type Which = { ids: string[] } | { all: WebhookState };

/** How long the relay may take to tell something. */
const LOOK_LIMIT_MS = 10_000;

/** How long it may take to do something: a hundred thousand webhooks are not forgotten at once. */
const DEED_LIMIT_MS = 60_000;

/** As many rows as one page of a list has at most. */
const MOST_ROWS = 1000;

/** Why something was not done. */
export class ApiError extends Error {
  constructor(
    message: string,
    /** `unauthorized` and others of docs/admin-api.md; null where nothing was answered. */
    readonly code: string | null,
  ) {
    super(message);
  }

  static describe(error: unknown): string {
    return error instanceof Error ? error.message : String(error);
  }
}

/** The API as whoever has that token may call it. */
export class Api {
  constructor(readonly token: string) {}

  status = () => this.#get<Status>("status");
  sessions = async () => (await this.#get<{ sessions: Session[] }>("sessions")).sessions;
  tunnels = async () => (await this.#get<{ tunnels: Tunnel[] }>("tunnels")).tunnels;
  tokens = async () => (await this.#get<{ tokens: Token[] }>("tokens")).tokens;
  names = async () => (await this.#get<{ names: Name[] }>("names")).names;
  inboxes = async () => (await this.#get<{ inboxes: Inbox[] }>("inboxes")).inboxes;
  certificates = async () => (await this.#get<{ certificates: Certificate[] }>("certificates")).certificates;
  blocks = async () => (await this.#get<{ blocks: Block[] }>("blocks")).blocks;

  /** The latest entries, so many of them. */
  async audit(wanted: number): Promise<AuditPage> {
    const { rows, next } = await this.#latest<AuditPage, Entry>("audit?", wanted, ({ entries }) => entries);
    return { entries: rows, next };
  }

  /** The latest webhooks of an inbox, so many of them. */
  async webhooks(inbox: string, state: WebhookState, wanted: number): Promise<WebhookPage> {
    const list = path`inboxes/${inbox}` + `?state=${state}&`;
    const { rows, next, page } = await this.#latest<WebhookPage, Webhook>(list, wanted, ({ webhooks }) => webhooks);
    return { inbox: page.inbox, webhooks: rows, next };
  }

  endSession = (id: string) => this.#send("DELETE", path`sessions/${id}`);
  revoke = (token: string) => this.#send("DELETE", path`tokens/${token}`);
  limit = (token: string, change: Partial<TokenLimits>) => this.#send("PATCH", path`tokens/${token}`, change);
  unblock = (id: number) => this.#send("DELETE", `blocks/${id}`);
  block = (block: Record<string, string>) => this.#send("POST", "blocks", block);
  release = (name: string, forget: boolean) =>
    this.#send("DELETE", path`names/${name}` + (forget ? "?forget_webhooks=true" : ""));
  reserve = (name: string, wish: Record<string, string>) => this.#send("PUT", path`names/${name}`, wish);
  pause = (inbox: string, paused: boolean) =>
    this.#send("POST", path`inboxes/${inbox}/` + (paused ? "pause" : "resume"), {});

  /** What its owner presents, which is never told again. */
  async create(wish: Record<string, unknown>): Promise<string> {
    return (await this.#send<{ secret: string }>("POST", "tokens", wish)).secret;
  }

  /** With how many it was done. */
  async act(inbox: string, action: "retry" | "drop", which: Which): Promise<number> {
    return (await this.#send<{ count: number }>("POST", path`inboxes/${inbox}/` + action, which)).count;
  }

  #get<T>(path: string): Promise<T> {
    return this.#send("GET", path);
  }

  /** The latest rows of a list, a page after the other; where the rows that are older begin; and the last page. */
  async #latest<P extends { next: string | number | null }, R>(list: string, wanted: number, rowsOf: (page: P) => R[]) {
    const rows: R[] = [];
    for (let before = ""; ; ) {
      const page = await this.#get<P>(`${list}limit=${Math.min(wanted - rows.length, MOST_ROWS)}${before}`);
      const more = rowsOf(page);
      rows.push(...more);
      const { next }: { next: P["next"] } = page;
      if (next === null || more.length === 0 || rows.length >= wanted) return { rows, next, page };
      before = `&before=${part(String(next))}`;
    }
  }

  async #send<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { authorization: `Bearer ${this.token}` };
    const looks = method === "GET";
    const signal = AbortSignal.timeout(looks ? LOOK_LIMIT_MS : DEED_LIMIT_MS);
    const init: RequestInit = { method, headers, signal, cache: "no-store", credentials: "omit", redirect: "error" };
    if (body !== undefined) {
      headers["content-type"] = "application/json";
      init.body = JSON.stringify(body);
    }
    let response: Response, text: string;
    try {
      response = await fetch(`/api/v1/${path}`, init);
      text = await response.text();
    } catch {
      const doubt = looks ? "" : " Whether it was done is not known: look before you do it again.";
      throw new ApiError(`The relay does not answer.${doubt}`, null);
    }
    const told = parsed(text);
    if (response.ok) return told;
    const { code, message } = told?.error ?? {};
    throw new ApiError(message ?? `The relay answered ${response.status}.`, code ?? String(response.status));
  }
}

/** What is told as JSON; null where it is none, as with what is only done. */
function parsed(text: string) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** A path whose parts are names of somebody's. */
function path(texts: TemplateStringsArray, ...parts: string[]): string {
  return texts.reduce((path, text, at) => path + part(parts[at - 1] ?? "") + text);
}
