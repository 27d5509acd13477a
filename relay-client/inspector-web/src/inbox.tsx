// The inbox: what the relay keeps for the tunnels, and what is done with it.

import { useEffect } from "preact/hooks";

import { type Kept, type Webhook, keptBodyUrl } from "./api";
import { BodyView } from "./body_view";
import { Fact, Headers, MOST_HEADING } from "./detail";
import { duration, moment, number, time, verdict } from "./format";
import { type InboxModel, STATES } from "./inbox_model";
import type { Model } from "./model";
import { Copy, More } from "./widgets";

/** How often the relay is asked while somebody looks. */
const LOOK_MS = 3_000;

const NAMES = { waiting: "Waiting", delivered: "Delivered", dead: "Dead" };

export function InboxPane({ model }: { model: Model }) {
  const { inbox } = model;
  useEffect(() => {
    void inbox.refresh();
    const timer = setInterval(() => {
      if (!document.hidden) void inbox.refresh();
    }, LOOK_MS);
    return () => clearInterval(timer);
  }, [inbox]);
  const { current, state, webhooks, next } = inbox;
  if (!current) {
    return (
      <div class="empty">
        <h2>No inbox</h2>
        <p>No tunnel of this client has one. relay http 3000 --subdomain NAME --inbox opens one.</p>
      </div>
    );
  }
  return (
    <>
      <div class="status inbox-tools">
        {inbox.all.length > 1 && (
          <select
            aria-label="Inbox"
            value={current.name}
            onChange={(event) => inbox.choose(event.currentTarget.value, state)}
          >
            {inbox.all.map(({ name }) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        )}
        <div class="tabs" role="radiogroup" aria-label="Which webhooks are shown">
          {STATES.map((way) => (
            <button
              key={way}
              type="button"
              role="radio"
              aria-checked={way === state}
              onClick={() => inbox.choose(current.name, way)}
            >
              {NAMES[way]} {number(current[way])}
            </button>
          ))}
        </div>
        <span class="words">
          {current.paused ? "paused · " : ""}
          {current.how}
        </span>
        <div class="tools">
          <button
            type="button"
            class="toggle"
            aria-pressed={current.paused}
            onClick={() => void inbox.pause(!current.paused)}
            title="Deliver nothing for now, and keep what comes"
          >
            {current.paused ? "Resume" : "Pause deliveries"}
          </button>
          {state !== "delivered" && (
            <button type="button" disabled={!current[state]} onClick={() => void inbox.retry({ all: state })}>
              Retry all
            </button>
          )}
          <button
            type="button"
            disabled={!current[state]}
            onClick={() => inbox.drop({ all: state }, `all ${number(current[state])} that are ${words(state)}`)}
          >
            Drop all
          </button>
        </div>
      </div>
      <div class="list kept-list" role="listbox" aria-label={`Webhooks, the newest first: ${NAMES[state]}`}>
        {webhooks.map((webhook) => (
          <Row key={webhook.id} inbox={inbox} webhook={webhook} />
        ))}
        {!webhooks.length && <p class="none">None.</p>}
        {next && <More onClick={() => inbox.more()}>more</More>}
      </div>
    </>
  );
}

function words(state: (typeof STATES)[number]): string {
  return state === "dead" ? "dead letters" : state;
}

function Row({ inbox, webhook }: { inbox: InboxModel; webhook: Webhook }) {
  const { id, method, path, status, attempts, state, event_type, provider, first_at } = webhook;
  const style = status === null ? "pending" : status < 300 ? "good" : "bad";
  return (
    <button
      type="button"
      class="kept"
      role="option"
      aria-selected={inbox.selected === id}
      onClick={() => inbox.select(id)}
    >
      <span class={`code ${style}`}>{status ?? "–"}</span>
      <span class="method">{method}</span>
      <span class="path">{path.slice(0, MOST_HEADING)}</span>
      <span class="event">{[provider, event_type].filter(Boolean).join(" ")}</span>
      <span class="reason">
        {webhook.under_way
          ? "being tried"
          : state === "waiting" && attempts && webhook.due_at
            ? `${tried(attempts)}, next ${time(webhook.due_at).slice(0, 8)}`
            : tried(attempts)}
      </span>
      <span class="time">{moment(first_at).slice(0, 19)}</span>
    </button>
  );
}

function tried(attempts: number): string {
  return attempts ? `${number(attempts)} ${attempts === 1 ? "attempt" : "attempts"}` : "not tried yet";
}

/** A webhook with its attempts. */
export function KeptPane({ model }: { model: Model }) {
  const { inbox } = model;
  const { loaded, selected } = inbox;
  const kept = loaded?.kept;
  const which = { ids: selected ? [selected] : [] };
  return (
    <section id="detail" class="detail" tabIndex={-1} aria-label="The selected webhook">
      <div class="heading">
        <button type="button" class="back" onClick={() => inbox.select(null)} aria-label="Back to the list" title="Back">
          ←
        </button>
        <h2>
          {kept && (
            <>
              <span class="method">{kept.method}</span> <span class="path">{kept.path.slice(0, MOST_HEADING)}</span>
            </>
          )}
        </h2>
        <div class="tools">
          <button
            type="button"
            disabled={!kept || kept.state === "delivered"}
            onClick={() => void inbox.retry(which)}
            title="Try it at once"
          >
            Retry
          </button>
          <button type="button" disabled={!kept} onClick={() => inbox.drop(which, "this one")} title="Forget it">
            Drop
          </button>
        </div>
      </div>
      {!loaded && <p class="none content">Loading…</p>}
      {loaded?.error && <p class="problem">{loaded.error}</p>}
      {kept && (
        <div class="content" key={kept.id}>
          <Overview model={model} kept={kept} />
          <section class="message" aria-label="Request">
            <h3>Request</h3>
            <Headers model={model} title="Headers" headers={kept.headers} />
            {kept.headers_first && (
              <Headers model={model} title="Headers of its first copy" headers={kept.headers_first} />
            )}
            <KeptBody model={model} kept={kept} />
          </section>
        </div>
      )}
    </section>
  );
}

function Overview({ model, kept }: { model: Model; kept: Kept }) {
  return (
    <dl class="facts">
      <Fact name="State">
        {kept.state}
        {kept.ended_at && <span class="reason">since {moment(kept.ended_at)}</span>}
        {kept.reason && <span class="reason">{kept.reason}</span>}
      </Fact>
      {kept.provider && <Fact name="Provider">{kept.provider}</Fact>}
      {(kept.event_type || kept.event_id) && (
        <Fact name="Event">
          {kept.event_type && <span class="type">{kept.event_type} </span>}
          {kept.event_id}
        </Fact>
      )}
      {kept.verdict && <Fact name="Signature">{verdict(kept.verdict)}</Fact>}
      {kept.tried.length > 0 && (
        <Fact name="Attempts">
          <ul class="attempts">
            {kept.tried.map(({ number: nth, at, status, error, duration_ms }) => (
              <li key={nth}>
                <span>{nth}</span>
                <span class="time">{moment(at)}</span>
                <span class={`code ${status !== null && status < 300 ? "good" : "bad"}`}>{status ?? error ?? "–"}</span>
                <span class="reason">{duration(duration_ms)}</span>
              </li>
            ))}
          </ul>
        </Fact>
      )}
      <Fact name="Received">
        {moment(kept.first_at)}
        {kept.copies > 0 && (
          <span class="reason">
            again {number(kept.copies)} {kept.copies === 1 ? "time" : "times"}, last {moment(kept.received_at)}
          </span>
        )}
        {kept.remote && <span class="reason">from {kept.remote}</span>}
      </Fact>
      {kept.differs_from && <Fact name="Differs from">{kept.differs_from}</Fact>}
      <Fact name="URL">{kept.url.slice(0, 2_000)}</Fact>
      <Fact name="Id">
        <Copy model={model} text={kept.id} class="id" what="the id">
          {kept.id}
        </Copy>
      </Fact>
    </dl>
  );
}

function KeptBody({ model, kept }: { model: Model; kept: Kept }) {
  const name = model.inbox.current?.name ?? "";
  const url = keptBodyUrl(name, kept.id);
  if (kept.message) return <BodyView model={model} message={kept.message} name="Request body" url={url} />;
  if (kept.state === "delivered") return <p class="none">The body is not kept any more.</p>;
  return (
    <p class="none">
      The body is too long to be shown.{" "}
      <a class="button" href={url} download="" title="Save its bytes">
        Save
      </a>
    </p>
  );
}
