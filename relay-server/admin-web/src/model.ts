// What is looked at, and what is known of it. The relay is asked again every few seconds, while somebody sees the page.

import type { VNode } from "preact";

import { Api, ApiError, type Status, type WebhookPage, type WebhookState } from "./api";
import { History } from "./traffic";
import { part } from "./words";

export const TABS = ["overview", "sessions", "tunnels", "inboxes", "tokens", "names", "blocks", "certificates", "audit"] as const;

export type Tab = (typeof TABS)[number];

/** How often the relay is asked. */
export const LOOK_MS = 3_000;

/** Where the token is kept: in this tab, for this port, until either is closed. */
const KEPT = "relay-admin-token";

const NOTICE_MS = 6_000;

/** Rows that a page of a list has. */
export const PAGE_ROWS = 100;

/** What the lists of the tabs were when they were last asked for. */
type Lists = { [T in Tab]?: unknown };

export class Model {
  api: Api | null = null;
  tab: Tab = "overview";
  status: Status | null = null;
  lists: Lists = {};
  /** Since when the relay does not answer. */
  lostAt: number | null = null;
  /** Why nobody is let in. */
  refused: string | null = null;
  notice: { text: string; kind: "good" | "bad" } | null = null;
  /** What stands above the page. */
  dialog: (() => VNode) | null = null;
  /** What a list is searched for. */
  query = "";
  rows = PAGE_ROWS;
  inbox: string | null = null;
  state: WebhookState = "waiting";
  webhooks: WebhookPage | null = null;
  /** There are older entries in the audit log than those that were told. */
  hasOlder = false;
  history = new History();
  #listeners = new Set<() => void>();
  #noticeTimer = 0;
  #asking = false;
  #again = false;

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  changed(): void {
    for (const listener of this.#listeners) listener();
  }

  start(): void {
    this.#turn();
    addEventListener("hashchange", () => this.#turn());
    const token = sessionStorage.getItem(KEPT);
    if (token) this.api = new Api(token);
    void this.look();
    setInterval(() => document.hidden || void this.look(), LOOK_MS);
    document.addEventListener("visibilitychange", () => document.hidden || void this.look());
  }

  // ---- Who looks

  async enter(token: string): Promise<void> {
    this.refused = null;
    const api = new Api(token.trim());
    try {
      this.#take(await api.status());
      this.api = api;
      sessionStorage.setItem(KEPT, api.token);
    } catch (error) {
      this.refused = ApiError.describe(error);
    }
    this.changed();
    await this.look();
  }

  leave(refused: string | null = null): void {
    sessionStorage.removeItem(KEPT);
    [this.api, this.status, this.lists, this.webhooks, this.dialog] = [null, null, {}, null, null];
    [this.history, this.lostAt, this.refused] = [new History(), null, refused];
    this.changed();
  }

  // ---- What is looked at

  #turn(): void {
    const [tab = "", name] = location.hash.slice(1).split("/");
    this.tab = TABS.find((known) => known === tab) ?? "overview";
    this.inbox = this.tab === "inboxes" && name ? decoded(name) : null;
    [this.query, this.rows, this.webhooks, this.hasOlder, this.state] = ["", PAGE_ROWS, null, false, "waiting"];
    this.changed();
    void this.look();
  }

  search(query: string): void {
    this.query = query;
    // What was asked for page by page is searched, and so stays.
    if (!this.isPaged) this.rows = PAGE_ROWS;
    this.changed();
  }

  /** The relay tells what is looked at page by page; of other lists it tells all. */
  get isPaged(): boolean {
    return this.tab === "audit" || this.inbox !== null;
  }

  more(): void {
    this.rows += PAGE_ROWS;
    this.changed();
    if (this.isPaged) void this.look();
  }

  choose(state: WebhookState): void {
    [this.state, this.webhooks, this.rows] = [state, null, PAGE_ROWS];
    this.changed();
    void this.look();
  }

  /** A list as it was last told; null where it was not yet. */
  list<T>(tab: Tab = this.tab): T[] | null {
    return (this.lists[tab] as T[] | undefined) ?? null;
  }

  // ---- How it is

  async look(): Promise<void> {
    const { api } = this;
    if (!api) return;
    if (this.#asking) {
      this.#again = true;
      return;
    }
    this.#asking = true;
    const begun = Date.now();
    try {
      await this.#ask(api);
      this.lostAt = null;
    } catch (error) {
      if (api !== this.api) return;
      if (error instanceof ApiError && error.code === "unauthorized") {
        this.leave("The admin token is not valid any more.");
      } else if (error instanceof ApiError && error.code === null) {
        this.lostAt ??= begun;
      } else {
        this.say(ApiError.describe(error), "bad");
      }
    } finally {
      this.#asking = false;
      this.changed();
    }
    if (!this.#again) return;
    this.#again = false;
    await this.look();
  }

  async #ask(api: Api): Promise<void> {
    const { tab, inbox, state, rows } = this;
    // Nothing is shown of what nobody may see by now, or does not look at any more.
    const of = <T>(told: T, take: (told: T) => void) => api === this.api && take(told);
    of(await api.status(), (status) => this.#take(status));
    if (tab === "inboxes" && inbox !== null) {
      const page = await api.webhooks(inbox, state, rows).catch((error: unknown) => {
        if (error instanceof ApiError && error.code === "not-found") return null;
        throw error;
      });
      of(page, () => {
        if (inbox === this.inbox && state === this.state) this.webhooks = page;
        if (page === null) location.hash = "inboxes";
      });
    } else if (tab === "audit") {
      const { entries, next } = await api.audit(rows);
      of(entries, () => ([this.lists.audit, this.hasOlder] = [entries, next !== null]));
    } else {
      const asked = tab === "overview" ? "certificates" : tab;
      const list: unknown[] = await api[asked]();
      of(list, () => (this.lists[asked] = list));
    }
  }

  #take(status: Status): void {
    this.status = status;
    this.history.add(status.traffic, status.process, Date.now());
  }

  /** A list that another tab has, for a form. */
  async need<T>(ask: (api: Api) => Promise<T>): Promise<T | null> {
    try {
      return this.api && (await ask(this.api));
    } catch (error) {
      this.say(ApiError.describe(error), "bad");
      return null;
    }
  }

  // ---- What is done

  /** Has something done and says what has come of it; whether it was. */
  async act(what: (api: Api) => Promise<unknown>, done: string): Promise<boolean> {
    if (!this.api) return false;
    try {
      await what(this.api);
      this.say(done, "good");
      return true;
    } catch (error) {
      this.say(ApiError.describe(error), "bad");
      return false;
    } finally {
      // What comes of it is known; that a look takes its time must not keep it from being shown.
      void this.look();
    }
  }

  open(dialog: (() => VNode) | null): void {
    [this.dialog, this.notice] = [dialog, dialog ? null : this.notice];
    this.changed();
  }

  say(text: string, kind: "good" | "bad"): void {
    clearTimeout(this.#noticeTimer);
    this.notice = { text, kind };
    this.#noticeTimer = setTimeout(() => this.dismiss(), NOTICE_MS);
    this.changed();
  }

  dismiss(): void {
    this.notice = null;
    this.changed();
  }
}

/** Where the webhooks of an inbox are shown. */
export function placeOf(inbox: { name: string }): string {
  return `#inboxes/${part(inbox.name)}`;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
