// What the relay keeps for the tunnels, and what of it is looked at.

import * as api from "./api";
import { ApiError, type Inbox, type Kept, type Webhook } from "./api";

export const STATES = ["waiting", "delivered", "dead"] as const;

export type State = (typeof STATES)[number];

/** Rows that are asked for at once. */
const PAGE_ROWS = 100;

/** What was asked for by id, once it is there. */
export interface LoadedKept {
  id: string;
  kept: Kept | null;
  error: string | null;
}

/** Those of which something is forgotten, once somebody has said so. */
export interface Dropping {
  which: api.Which;
  words: string;
}

/** What the page around it does. */
interface Around {
  changed(): void;
  say(text: string, kind: "good" | "bad"): void;
}

export class InboxModel {
  all: Inbox[] = [];
  state: State = "waiting";
  webhooks: Webhook[] = [];
  /** What the next page is asked for by; null where this is the last. */
  next: string | null = null;
  selected: string | null = null;
  loaded: LoadedKept | null = null;
  dropping: Dropping | null = null;
  #name: string | null = null;
  /** How many rows were asked for. */
  #rows = PAGE_ROWS;
  #refreshing = false;

  constructor(readonly around: Around) {}

  /** The one that is looked at. */
  get current(): Inbox | null {
    return this.all.find((inbox) => inbox.name === this.#name) ?? this.all[0] ?? null;
  }

  /** Which inboxes there are. */
  async look(): Promise<void> {
    try {
      this.all = await api.inboxes();
    } catch {
      // Whoever opens it is told.
    }
    this.around.changed();
  }

  /** Asks the relay how all of it stands by now. */
  async refresh(): Promise<void> {
    if (this.#refreshing) return;
    this.#refreshing = true;
    try {
      this.all = await api.inboxes();
      const { current, state } = this;
      if (current) {
        const rows: Webhook[] = [];
        let next: string | null = null;
        do {
          const page: api.InboxPage = await api.inboxPage(current.name, state, this.#rows - rows.length, next);
          rows.push(...page.webhooks);
          next = page.webhooks.length ? page.next : null;
        } while (next && rows.length < this.#rows);
        // Something else may be looked at by now.
        if (state === this.state && current.name === this.current?.name) [this.webhooks, this.next] = [rows, next];
        if (this.selected) await this.#load(this.selected);
      }
    } catch (error) {
      this.around.say(ApiError.describe(error), "bad");
    } finally {
      this.#refreshing = false;
      this.around.changed();
    }
  }

  choose(name: string, state: State): void {
    [this.#name, this.state, this.#rows] = [name, state, PAGE_ROWS];
    [this.webhooks, this.next] = [[], null];
    this.select(null);
    void this.refresh();
  }

  more(): void {
    this.#rows += PAGE_ROWS;
    void this.refresh();
  }

  select(id: string | null): void {
    this.selected = id;
    this.loaded = null;
    this.around.changed();
    if (id) void this.#load(id);
  }

  async #load(id: string): Promise<void> {
    const name = this.current?.name ?? "";
    let loaded: LoadedKept;
    try {
      loaded = { id, kept: await api.kept(name, id), error: null };
    } catch (error) {
      loaded = { id, kept: null, error: ApiError.describe(error) };
    }
    if (this.selected !== id) return;
    this.loaded = loaded;
    this.around.changed();
  }

  /** Has some of them tried at once. */
  async retry(which: api.Which): Promise<void> {
    await this.#act("retry", which, "tried again");
  }

  /** Asks first. */
  drop(which: api.Which, words: string): void {
    this.dropping = { which, words };
    this.around.changed();
  }

  /** Nobody has said so. */
  keep(): void {
    this.dropping = null;
    this.around.changed();
  }

  async dropNow(): Promise<void> {
    const { dropping } = this;
    this.dropping = null;
    if (dropping) await this.#act("drop", dropping.which, "forgotten");
  }

  async #act(action: "retry" | "drop", which: api.Which, done: string): Promise<void> {
    const { current } = this;
    if (!current) return;
    try {
      const count = await api.inboxAct(current.name, action, which);
      this.around.say(`${count} ${count === 1 ? "webhook is" : "webhooks are"} ${done}`, count ? "good" : "bad");
    } catch (error) {
      this.around.say(ApiError.describe(error), "bad");
    }
    if (action === "drop") this.select(null);
    await this.refresh();
  }

  async pause(paused: boolean): Promise<void> {
    const { current } = this;
    if (!current) return;
    try {
      await api.inboxPause(current.name, paused);
    } catch (error) {
      this.around.say(ApiError.describe(error), "bad");
    }
    await this.refresh();
  }
}
