// The page as a whole: who is let in, and what stands around that which is looked at.

import { useEffect, useRef, useState } from "preact/hooks";

import { time } from "../../../relay-client/inspector-web/src/format";
import { Inboxes } from "./inboxes";
import { Audit, Blocks, Certificates, Names, Sessions, Tokens, Tunnels } from "./lists";
import { type Model, TABS, type Tab } from "./model";
import { Overview } from "./overview";

export function App({ model }: { model: Model }) {
  const [, redraw] = useState(0);
  useEffect(() => model.subscribe(() => redraw((count) => count + 1)), [model]);
  useEffect(() => {
    const listener = (event: KeyboardEvent) => pressed(model, event);
    document.addEventListener("keydown", listener);
    return () => document.removeEventListener("keydown", listener);
  }, [model]);
  if (!model.api) return <Entrance model={model} />;
  const Shown = PANES[model.tab];
  return (
    <div class="page">
      <header class="top">
        <h1>relay-server</h1>
        <nav aria-label="What is shown" class="tabs">
          {TABS.map((tab) => (
            <a key={tab} class="button" href={`#${tab}`} aria-current={tab === model.tab ? "page" : undefined}>
              {tab[0]!.toUpperCase() + tab.slice(1)}
            </a>
          ))}
        </nav>
        <button type="button" class="leave" onClick={() => model.leave()} title="Forget the admin token in this tab">
          Sign out
        </button>
      </header>
      <State model={model} />
      <main key={model.tab}>
        <Shown model={model} />
      </main>
      {model.dialog?.()}
      <div class="notices" role="status" aria-live="polite">
        {model.notice && (
          <button type="button" class={`notice ${model.notice.kind}`} title="Dismiss" onClick={() => model.dismiss()}>
            {model.notice.text}
          </button>
        )}
      </div>
    </div>
  );
}

const PANES: Record<Tab, typeof Overview> = {
  overview: Overview,
  sessions: Sessions,
  tunnels: Tunnels,
  inboxes: Inboxes,
  tokens: Tokens,
  names: Names,
  blocks: Blocks,
  certificates: Certificates,
  audit: Audit,
};

function State({ model }: { model: Model }) {
  const { status, lostAt } = model;
  return (
    <section aria-label="How the relay is">
      {lostAt !== null ? (
        <p class="lost" role="alert">
          The relay has not answered since {time(new Date(lostAt).toISOString()).slice(0, 8)}. What is here is what it said before; this
          page goes on when it is back.
        </p>
      ) : (
        status && (
          <>
            <div class="status">
              <span class={`lamp ${status.ready ? "live" : "lost"}`} aria-hidden="true" />
              <span class="words">
                {status.ready ? "ready" : "not ready"} · {status.url}
              </span>
            </div>
            {status.trouble && (
              <p class="lost" role="alert">
                {status.ready ? "The relay takes requests, but " : "The relay takes no requests: "}
                {status.trouble}
              </p>
            )}
            {status.note && <p class="near">{status.note}.</p>}
          </>
        )
      )}
    </section>
  );
}

/** Where the admin token is asked for. */
function Entrance({ model }: { model: Model }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <main class="entrance">
      <form
        class="edit"
        onSubmit={(event) => {
          event.preventDefault();
          void model.enter(field.current!.value);
        }}
      >
        <h1>relay-server</h1>
        {/* For what keeps passwords: it wants to know whose. */}
        <input type="text" name="username" autocomplete="username" value="relay-server" readOnly hidden />
        <label>
          Admin token
          <input ref={field} type="password" autocomplete="current-password" required />
        </label>
        {model.refused && (
          <p class="problem" role="alert">
            {model.refused}
          </p>
        )}
        <div class="line">
          <button type="submit" class="primary">
            Enter
          </button>
        </div>
        <p class="beside">
          <code>relay-server admin-token</code> prints it on the relay's machine. This tab keeps it until it is closed.
        </p>
      </form>
    </main>
  );
}

/** What a key does where nothing is typed: a digit leads to a tab, and a slash to the search. */
function pressed(model: Model, event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || !model.api || model.dialog) return;
  if (target.closest("input, textarea, select")) {
    if (event.key === "Escape" && target.id === "search") {
      model.search("");
      target.blur();
    }
    return;
  }
  const tab = TABS[Number(event.key) - 1];
  const search = document.getElementById("search");
  if (tab) location.hash = tab;
  else if (event.key === "/" && search) search.focus();
  else return;
  event.preventDefault();
}
