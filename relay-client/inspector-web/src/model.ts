// What the page knows and what is looked at. The parts of the page show it and call its methods; nothing flows back
// another way.

import * as api from "./api";
import { ApiError, type Detail, type Summary, type Tunnel } from "./api";
import { type Entry, Exchanges, MOST, positionAfter } from "./exchanges";
import { InboxModel } from "./inbox_model";
import { compile, parse, wordsOf } from "./query";

/** What came within so many milliseconds is shown together. */
const BATCH_MS = 80;

/** Rows that are asked for at once. */
const PAGE_ROWS = 1_000;

/** How long typing pauses before bodies are searched. */
const PAUSE_MS = 250;

/** How long new ones gather before theirs are searched. */
const NEW_BODIES_MS = 1_000;

/** The least time between two looks for what the stream has left out. */
const CATCH_UP_MS = 1_000;

const RETRY_MS = 1_000;

/** What is looked at: requests that came here, or webhooks that the relay keeps. */
export type Tab = "requests" | "inbox";

export type Dialog = "help" | "edit" | "export" | "clear";

export interface Notice {
  text: string;
  kind: "good" | "bad";
}

/** What was asked for by id, once it is there. */
export interface Loaded {
  id: string;
  detail: Detail | null;
  error: string | null;
}

export class Model {
  readonly exchanges = new Exchanges();
  readonly inbox = new InboxModel({ changed: () => this.#changed(), say: (text, kind) => this.say(text, kind) });
  tab: Tab = "requests";
  /** The words of the search box. */
  query = "";
  /** Only the newest attempt of each event. */
  grouped = false;
  /** The newest that is shown while newer ones come; null where all are. */
  heldAt: string | null = null;
  /** The list stays as it is also at its top. */
  paused = false;
  selected: string | null = null;
  /** What the next one is compared with. */
  marked: string | null = null;
  loaded: Loaded | null = null;
  /** Whether headers are shown, for all messages alike. */
  headersOpen = true;
  /** The exchanges that are compared, the older one first. */
  compared: [Loaded, Loaded] | null = null;
  dialog: Dialog | null = null;
  notice: Notice | null = null;
  tunnels: Tunnel[] = [];
  connection: "starting" | "live" | "lost" = "starting";
  lostAt = 0;
  /** How many the client has. */
  total = 0;
  /** Whether all of them are here, or as many as are kept. */
  complete = false;
  /** Whether bodies are being searched. */
  searching = false;

  #listeners = new Set<() => void>();
  #waiting: Summary[] = [];
  #timer = 0;
  /** Those in whose bodies the words of the search stand. */
  #bodies = new Set<string>();
  #search: AbortController | null = null;
  /** Not 0 while bodies are searched, or are going to be. */
  #searchTimer = 0;
  /** The oldest of those that have ended since bodies were searched. */
  #unsearched: string | null = null;
  #noticeTimer = 0;
  #gap: string | null = null;
  /** How often everything was cleared: what was asked for before is of no use after. */
  #clearings = 0;
  #catchingUp = false;

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }

  start(): void {
    const parameters = new URLSearchParams(location.hash.slice(1));
    this.query = parameters.get("q") ?? "";
    this.#filter();
    this.#listen();
    const id = parameters.get("id");
    if (id) this.select(id);
    if (parameters.has("inbox")) this.turn("inbox");
  }

  // ---- What comes from the client

  #listen(): void {
    const events = new EventSource(api.EVENTS_URL);
    events.onopen = () => {
      const wasLost = this.connection === "lost";
      this.connection = "live";
      this.#changed();
      void this.#loadTunnels();
      void this.inbox.look();
      if (wasLost && this.complete) this.#missed();
      else void this.#loadAll();
    };
    events.addEventListener("exchange", (event) => this.#take([JSON.parse(event.data)]));
    events.addEventListener("missed", () => this.#missed());
    events.addEventListener("cleared", () => this.#forget());
    events.onerror = () => {
      if (this.connection !== "lost") this.lostAt = Date.now();
      this.connection = "lost";
      this.#changed();
      // It tries again by itself, but not where it was refused.
      if (events.readyState !== EventSource.CLOSED) return;
      setTimeout(() => this.#listen(), RETRY_MS);
    };
  }

  /** Rows are taken in together, because a thousand may come within a second. */
  #take(summaries: Summary[]): void {
    this.#waiting.push(...summaries);
    this.#timer ||= setTimeout(() => this.#flush(), BATCH_MS);
  }

  #flush(): void {
    this.#timer = 0;
    const summaries = this.#waiting;
    this.#waiting = [];
    this.#merge(summaries);
    const of = (id: string | undefined) => summaries.some((summary) => summary.id === id);
    if (this.selected && of(this.selected)) void this.#load(this.selected);
    this.#changed();
  }

  #merge(summaries: Summary[]): void {
    this.exchanges.merge(summaries);
    for (const { id, duration_ms } of summaries) {
      if (duration_ms !== null && (this.#unsearched === null || id < this.#unsearched)) this.#unsearched = id;
    }
    this.#searchNewBodies();
  }

  /** The list from its newest row back to `until`, or to its end. */
  async #pages(until: string | null): Promise<void> {
    const clearings = this.#clearings;
    let before: string | null = null;
    for (let rows = 0; rows < MOST;) {
      const page: api.Page = await api.list({ limit: String(PAGE_ROWS), ...(before ? { before } : {}) });
      if (clearings !== this.#clearings) return;
      this.total = page.total;
      this.#merge(page.exchanges);
      this.#changed();
      const oldest = page.exchanges.at(-1)?.id;
      if (!oldest || oldest === before || (until && oldest <= until)) return;
      rows += page.exchanges.length;
      before = oldest;
    }
  }

  async #loadAll(): Promise<void> {
    if (this.#catchingUp) return;
    this.#catchingUp = true;
    try {
      await this.#pages(null);
      this.complete = true;
    } catch (error) {
      this.say(ApiError.describe(error), "bad");
      // Where the stream has broken too, all of it is asked for again when that is back.
      this.complete = this.connection === "live";
    } finally {
      this.#catchingUp = false;
      this.#changed();
    }
    void this.#catchUp();
  }

  /** Something was left out since the newest row that is here. */
  #missed(): void {
    // Rows just before it may have been left out too, or were not answered when the stream broke.
    const near = this.exchanges.all.at(-PAGE_ROWS) ?? this.exchanges.all[0];
    this.#gap ??= near?.id ?? "";
    void this.#catchUp();
  }

  async #catchUp(): Promise<void> {
    if (this.#catchingUp) return;
    this.#catchingUp = true;
    try {
      while (this.#gap !== null) {
        const gap = this.#gap;
        this.#gap = null;
        await this.#pages(gap);
        await new Promise((resolve) => setTimeout(resolve, CATCH_UP_MS));
      }
    } catch {
      // The stream has broken too, and says so; when it is back, this is done again.
      this.#gap ??= "";
    } finally {
      this.#catchingUp = false;
      this.#changed();
    }
  }

  async #loadTunnels(): Promise<void> {
    try {
      this.tunnels = await api.tunnels();
      this.#changed();
    } catch {
      // They are only shown.
    }
  }

  // ---- The list

  setQuery(query: string): void {
    this.query = query;
    this.#bodies = new Set();
    this.#filter();
    this.#remember();
    this.#searchBodies();
    this.#changed();
  }

  setGrouped(grouped: boolean): void {
    this.grouped = grouped;
    this.#filter();
    this.#changed();
  }

  #filter(): void {
    this.exchanges.filter(compile(parse(this.query), this.#bodies), this.grouped);
  }

  /** Words may stand in bodies, which only the client has. */
  get #words(): string {
    const words = wordsOf(parse(this.query));
    return words.length < 2 ? "" : words;
  }

  #searchBodies(): void {
    clearTimeout(this.#searchTimer);
    this.#search?.abort();
    this.#searchTimer = 0;
    this.searching = this.#words !== "";
    if (this.searching) this.#searchTimer = setTimeout(() => void this.#lookInto(null), PAUSE_MS);
  }

  #searchNewBodies(): void {
    if (this.#searchTimer || this.#unsearched === null || !this.#words) return;
    this.#searchTimer = setTimeout(() => {
      const { all } = this.exchanges;
      const before = all[positionAfter(all, this.#unsearched!) - 2];
      void this.#lookInto(before?.id ?? null);
    }, NEW_BODIES_MS);
  }

  /** Looks for the words in the bodies of those that came after this one, or of all. */
  async #lookInto(after: string | null): Promise<void> {
    const { signal } = (this.#search = new AbortController());
    this.#unsearched = null;
    try {
      const query = { q: this.#words, limit: String(PAGE_ROWS), ...(after ? { after } : {}) };
      const page = await api.list(query, signal);
      for (const { id } of page.exchanges) this.#bodies.add(id);
      for (const id of this.#bodies) {
        if (this.#bodies.size <= MOST) break;
        this.#bodies.delete(id);
      }
      this.exchanges.merge(page.exchanges);
    } catch (error) {
      if (signal.aborted) return;
      this.say(ApiError.describe(error), "bad");
    }
    if (signal.aborted) return;
    this.searching = false;
    this.#searchTimer = 0;
    this.#searchNewBodies();
    this.#changed();
  }

  /** How many rows of the view are newer than what is shown. */
  get hidden(): number {
    const { view } = this.exchanges;
    return this.heldAt === null ? 0 : view.length - positionAfter(view, this.heldAt);
  }

  /** Keeps the rows in their places while new ones come, or lets go of them. */
  hold(held: boolean): void {
    const keep = held || this.paused;
    if (keep === (this.heldAt !== null)) return;
    this.heldAt = keep ? (this.exchanges.view.at(-1)?.id ?? "") : null;
    this.#changed();
  }

  pause(paused: boolean): void {
    this.paused = paused;
    this.hold(paused);
    this.#changed();
  }

  /** The row that is shown at a place, counted from the newest. */
  row(at: number): Entry | undefined {
    const { view } = this.exchanges;
    return view[view.length - this.hidden - 1 - at];
  }

  get rows(): number {
    return this.exchanges.view.length - this.hidden;
  }

  /** Where an exchange is shown; -1 where it is not. */
  place(id: string | null): number {
    if (id === null) return -1;
    const { view } = this.exchanges;
    const position = positionAfter(view, id) - 1;
    return view[position]?.id === id ? view.length - this.hidden - 1 - position : -1;
  }

  /** Selects the row so many places further down. */
  move(by: number): void {
    const place = this.place(this.selected);
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), this.rows - 1);
    const entry = this.row(next);
    if (entry) this.select(entry.id);
  }

  // ---- One exchange

  select(id: string | null): void {
    if (this.compared) this.compared = null;
    if (this.selected === id) return this.#changed();
    this.selected = id;
    this.loaded = null;
    this.#remember();
    this.#changed();
    if (id) void this.#load(id);
  }

  async #load(id: string): Promise<void> {
    const loaded = await fetched(id);
    if (this.selected !== id) return;
    this.loaded = loaded;
    if (loaded.detail) this.exchanges.merge([summaryOf(loaded.detail)]);
    this.#changed();
  }

  /** Sends the selected request again and shows what comes of it. */
  async replay(changes: api.Changes = {}): Promise<boolean> {
    if (!this.selected) return false;
    try {
      const id = await api.replay(this.selected, changes);
      this.select(id);
      this.say("Sent again", "good");
      return true;
    } catch (error) {
      this.say(`Not sent again: ${ApiError.describe(error)}`, "bad");
      return false;
    }
  }

  /** Marks the selected one, or compares it with the one that is marked. */
  mark(): void {
    const { selected, marked } = this;
    if (!selected) return;
    if (marked && marked !== selected) return void this.compare(marked, selected);
    this.marked = marked ? null : selected;
    this.#changed();
  }

  async compare(one: string, other: string): Promise<void> {
    const [first, second] = one < other ? [one, other] : [other, one];
    this.compared = await Promise.all([fetched(first), fetched(second)]);
    this.marked = null;
    this.#changed();
  }

  async clear(): Promise<void> {
    try {
      await api.clear();
    } catch (error) {
      this.say(ApiError.describe(error), "bad");
    }
    // The stream has said so when it was done, and what has come since stays.
    if (this.connection !== "live") this.#forget();
  }

  /** What there was is gone. */
  #forget(): void {
    this.#clearings++;
    this.#waiting = [];
    this.#bodies = new Set();
    this.#unsearched = null;
    this.exchanges.clear();
    this.#filter();
    this.#searchBodies();
    this.total = 0;
    this.marked = this.compared = null;
    // What somebody is writing is not taken away.
    if (this.dialog === "edit") this.#changed();
    else this.select(null);
  }

  // ---- The page

  openHeaders(open: boolean): void {
    if (this.headersOpen === open) return;
    this.headersOpen = open;
    this.#changed();
  }

  turn(tab: Tab): void {
    this.tab = tab;
    this.#remember();
    this.#changed();
  }

  open(dialog: Dialog | null): void {
    this.dialog = dialog;
    this.#changed();
  }

  /** Leaves what was entered last. */
  leave(): void {
    if (this.compared) this.compared = null;
    else if (this.marked) this.marked = null;
    else if (this.selected) return this.select(null);
    this.#changed();
  }

  say(text: string, kind: Notice["kind"]): void {
    this.notice = { text, kind };
    clearTimeout(this.#noticeTimer);
    this.#noticeTimer = setTimeout(() => this.dismiss(), kind === "bad" ? 12_000 : 4_000);
    this.#changed();
  }

  dismiss(): void {
    this.notice = null;
    this.#changed();
  }

  /** The page's address leads back here. */
  #remember(): void {
    const parameters = new URLSearchParams();
    if (this.query) parameters.set("q", this.query);
    if (this.selected) parameters.set("id", this.selected);
    if (this.tab === "inbox") parameters.set("inbox", "");
    const hash = parameters.size ? `#${parameters}` : location.pathname;
    history.replaceState(null, "", hash);
  }
}

async function fetched(id: string): Promise<Loaded> {
  try {
    return { id, detail: await api.get(id), error: null };
  } catch (error) {
    return { id, detail: null, error: ApiError.describe(error) };
  }
}

/** What the list says of it, without its bodies. */
function summaryOf(detail: Detail): Summary {
  const { request: _request, response: _response, links: _links, timings: _timings, ...summary } = detail;
  return summary;
}
