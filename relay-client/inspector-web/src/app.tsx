// The page as a whole: what stands around the list and what is selected in it, and the keys.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { HAR_URL } from "./api";
import { Compare } from "./compare";
import { DetailPane } from "./detail";
import { Dialogs } from "./dialogs";
import { type Facet, MOST, mostFrequent } from "./exchanges";
import { number, time, verdict } from "./format";
import { InboxPane, KeptPane } from "./inbox";
import { List } from "./list";
import type { Model } from "./model";
import { valueOf, withValue } from "./query";
import { Copy } from "./widgets";

export function App({ model }: { model: Model }) {
  const [, redraw] = useState(0);
  useEffect(() => model.subscribe(() => redraw((count) => count + 1)), [model]);
  useEffect(() => {
    const listener = (event: KeyboardEvent) => pressed(model, event);
    document.addEventListener("keydown", listener);
    return () => document.removeEventListener("keydown", listener);
  }, [model]);
  const { inbox, tab } = model;
  if (tab === "inbox") {
    return (
      <div class={inbox.selected ? "page split" : "page"}>
        <Top model={model} />
        <Lost model={model} />
        <main>
          <section class="left" aria-label="Inbox">
            <InboxPane model={model} />
          </section>
          {inbox.selected && <KeptPane model={model} />}
        </main>
        <Around model={model} />
      </div>
    );
  }
  const aside = model.compared ? <Compare model={model} pair={model.compared} /> : <DetailPane model={model} />;
  const isOpen = model.selected !== null || model.compared !== null;
  return (
    <div class={isOpen ? "page split" : "page"}>
      <Top model={model} />
      <Lost model={model} />
      <main>
        <section class="left" aria-label="Requests">
          <Status model={model} />
          {model.exchanges.all.length || model.connection !== "live" || !model.complete ? (
            <List model={model} />
          ) : (
            <Empty model={model} />
          )}
        </section>
        {isOpen && aside}
      </main>
      <Around model={model} />
    </div>
  );
}

/** What stands over the page. */
function Around({ model }: { model: Model }) {
  return (
    <>
      <Dialogs model={model} />
      <div class="notices" role="status" aria-live="polite">
        {model.notice && (
          <button type="button" class={`notice ${model.notice.kind}`} title="Dismiss" onClick={() => model.dismiss()}>
            {model.notice.text}
          </button>
        )}
      </div>
    </>
  );
}

/** Where there is an inbox, the way to it and back. */
function Tabs({ model }: { model: Model }) {
  const { inbox, tab } = model;
  if (!inbox.all.length && tab === "requests") return null;
  const waiting = inbox.all.reduce((sum, { waiting }) => sum + waiting, 0);
  const dead = inbox.all.reduce((sum, { dead }) => sum + dead, 0);
  const told = [waiting && `${number(waiting)} waiting`, dead && `${number(dead)} dead`].filter(Boolean).join(", ");
  return (
    <nav aria-label="What is shown" class="tabs">
      <button type="button" aria-pressed={tab === "requests"} onClick={() => model.turn("requests")}>
        Requests
      </button>
      <button type="button" aria-pressed={tab === "inbox"} onClick={() => model.turn("inbox")}>
        Inbox{told && ` (${told})`}
      </button>
    </nav>
  );
}

function Top({ model }: { model: Model }) {
  return (
    <header class="top">
      <h1>relay</h1>
      <Tabs model={model} />
      {model.tab === "requests" && <Search model={model} />}
    </header>
  );
}

function Search({ model }: { model: Model }) {
  const search = useRef<HTMLInputElement>(null);
  // Typing is shown at once, whatever the list takes.
  return (
    <>
      <input
        ref={search}
        id="search"
        type="search"
        placeholder="Search, or provider:stripe status:5xx path:/hooks/*"
        aria-label="Search and filter requests"
        autocomplete="off"
        spellcheck={false}
        value={model.query}
        onInput={(event) => model.setQuery(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape" && model.query) model.setQuery("");
          else if (event.key === "Escape" || event.key === "Enter" || event.key === "ArrowDown") focusList();
          else return;
          event.preventDefault();
          event.stopPropagation();
        }}
      />
      <nav aria-label="Filters" class="filters">
        <Menu model={model} field="provider" facet="provider" label="Provider" />
        <Menu model={model} field="type" facet="event_type" label="Type" />
        <Menu model={model} field="status" options={STATUSES} label="Status" />
        <Menu model={model} field="method" facet="method" label="Method" />
        <Menu model={model} field="verdict" facet="verdict" label="Verdict" name={verdict} />
        {(model.exchanges.facets.get("tunnel")?.size ?? 0) > 1 && (
          <Menu model={model} field="tunnel" facet="tunnel" label="Tunnel" />
        )}
      </nav>
      <div class="tools">
        <Toggle on={model.grouped} onClick={() => model.setGrouped(!model.grouped)} title="One row for each event (g)">
          Group
        </Toggle>
        <Toggle on={model.paused} onClick={() => model.pause(!model.paused)} title="Let the list stand still (p)">
          Pause
        </Toggle>
        <a class="button" href={HAR_URL} download="relay.har" title="Save all as an HTTP archive">
          HAR
        </a>
        <button type="button" onClick={() => model.open("clear")} title="Forget all requests">
          Clear
        </button>
        <button type="button" onClick={() => model.open("help")} aria-label="Help" title="Keys and search words (?)">
          ?
        </button>
      </div>
    </>
  );
}

function Toggle(props: { on: boolean; onClick(): void; title: string; children: ComponentChildren }) {
  return (
    <button type="button" class="toggle" aria-pressed={props.on} onClick={props.onClick} title={props.title}>
      {props.children}
    </button>
  );
}

const STATUSES = ["2xx", "3xx", "4xx", "5xx", "error", "pending"];

/** More values than this are found by typing. */
const MOST_OPTIONS = 200;

interface MenuProps {
  model: Model;
  field: string;
  label: string;
  facet?: Facet;
  options?: string[];
  name?(value: string): string;
}

/** Writes a word into the search box. */
function Menu({ model, field, label, facet, options, name = (value) => value }: MenuProps) {
  const value = valueOf(model.query, field);
  const counts = facet && model.exchanges.facets.get(facet);
  const known = options ?? (counts ? mostFrequent(counts, MOST_OPTIONS) : []);
  const chosen = known.find((option) => option.toLowerCase() === value) ?? value;
  const all = chosen && !known.includes(chosen) ? [chosen, ...known] : known;
  return (
    <select
      class={chosen ? "chosen" : ""}
      aria-label={label}
      value={chosen}
      onChange={(event) => model.setQuery(withValue(model.query, field, event.currentTarget.value))}
    >
      <option value="">{label}</option>
      {all.map((option) => (
        <option key={option} value={option}>
          {name(option)}
        </option>
      ))}
    </select>
  );
}

function Status({ model }: { model: Model }) {
  const { all, view } = model.exchanges;
  const loaded = model.complete || all.length >= model.total ? "" : ` of ${number(model.total)}`;
  const older = model.total > MOST && all.length >= MOST ? ", the newest" : "";
  return (
    <div class="status">
      <span class={`lamp ${model.connection}`} aria-hidden="true" />
      <span class="words">
        {STATES[model.connection]}
        {" · "}
        {view.length === all.length ? "" : `${number(view.length)} of `}
        {number(all.length)} {all.length === 1 ? "request" : "requests"}
        {loaded && `, loading${loaded}`}
        {older}
        {model.searching && " · searching bodies…"}
      </span>
      {model.tunnels.slice(0, 3).map((tunnel) => (
        <Copy key={tunnel.name} model={model} text={tunnel.public_url} class="address" what="the URL">
          {tunnel.public_url}
        </Copy>
      ))}
    </div>
  );
}

const STATES = { starting: "connecting", live: "live", lost: "not connected" };

function Lost({ model }: { model: Model }) {
  if (model.connection !== "lost") return null;
  return (
    <p class="lost" role="alert">
      The relay client has not answered since {time(new Date(model.lostAt).toISOString()).slice(0, 8)}. What is here is
      what it said before; this page goes on when it is back.
    </p>
  );
}

function Empty({ model }: { model: Model }) {
  const url = model.tunnels[0]?.public_url;
  const lines = [
    `curl -d '{"hello":"world"}' -H 'content-type: application/json' ${url ?? "PUBLIC_URL"}/hooks`,
    "relay trigger stripe invoice.paid",
  ];
  return (
    <div class="empty">
      <h2>No requests yet</h2>
      {url ? (
        <p>
          Give this address to the sender of your webhooks. What comes is shown here at once.
          <Copy model={model} text={url} class="line" what="the URL">
            {url}
          </Copy>
        </p>
      ) : (
        <p>No tunnel is open. Start one with relay http 3000.</p>
      )}
      <p>
        Or send one yourself:
        {lines.map((line) => (
          <Copy key={line} model={model} text={line} class="line" what="the command">
            {line}
          </Copy>
        ))}
      </p>
    </div>
  );
}

function focusList(): void {
  document.getElementById("list")?.focus();
}

/** What a key does where nothing is typed. */
function pressed(model: Model, event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || model.dialog) return;
  if (target.closest("input, textarea, select")) return;
  if (model.tab === "inbox") {
    if (event.key === "Escape" && !model.inbox.dropping) model.inbox.select(null);
    return;
  }
  const action = actions(model, target)[event.key];
  if (!action || action() === false) return;
  event.preventDefault();
}

function actions(model: Model, target: HTMLElement): Record<string, () => unknown> {
  const list = document.getElementById("list");
  const within = target === list || target === document.body;
  const page = Math.max(1, Math.floor((list?.clientHeight ?? 0) / 28) - 1);
  const ifSelected = (action: () => void) => () => (model.selected ? action() : false);
  return {
    j: () => model.move(1),
    k: () => model.move(-1),
    ArrowDown: () => (within ? model.move(1) : false),
    ArrowUp: () => (within ? model.move(-1) : false),
    PageDown: () => (within ? model.move(page) : false),
    PageUp: () => (within ? model.move(-page) : false),
    Home: () => (within ? model.move(-Infinity) : false),
    End: () => (within ? model.move(Infinity) : false),
    Enter: () => {
      if (!within) return false;
      if (!model.selected) model.move(0);
      document.getElementById("detail")?.focus();
      return true;
    },
    "/": () => document.getElementById("search")?.focus(),
    r: ifSelected(() => void model.replay()),
    e: ifSelected(() => model.open("edit")),
    c: ifSelected(() => model.mark()),
    x: ifSelected(() => model.open("export")),
    g: () => model.setGrouped(!model.grouped),
    p: () => model.pause(!model.paused),
    "?": () => model.open("help"),
    Escape: () => {
      model.leave();
      focusList();
    },
  };
}
