// What inboxes keep, and what is done with it.

import { bytes, duration, moment, number, time } from "../../../relay-client/inspector-web/src/format";
import type { Inbox, Webhook, WebhookState } from "./api";
import { Sure } from "./dialogs";
import { type Model, placeOf } from "./model";
import { type Column, Table } from "./table";
import { plural, since } from "./words";

export function Inboxes({ model }: { model: Model }) {
  if (model.inbox !== null) return <Webhooks model={model} name={model.inbox} />;
  const columns: Column<Inbox>[] = [
    { title: "Name", cell: (inbox) => <a href={placeOf(inbox)}>{inbox.name}</a> },
    { title: "Waiting", kind: "count", cell: ({ waiting }) => number(waiting) },
    { title: "Dead", kind: "count", cell: ({ dead }) => <span class={dead ? "bad" : ""}>{number(dead)}</span> },
    { title: "Oldest", kind: "minor", cell: ({ oldest_at }) => oldest_at && <span title={moment(oldest_at)}>{since(oldest_at)}</span> },
    { title: "Size", kind: "minor", cell: (inbox) => bytes(inbox.bytes) },
    { title: "Token", kind: "minor", cell: ({ token }) => token },
    { title: "How", kind: "minor", cell: ({ how, paused }) => (paused ? `paused · ${how}` : how) },
  ];
  return (
    <Table
      model={model}
      name="Inboxes"
      rows={model.list<Inbox>()}
      columns={columns}
      id={({ name }) => name}
      text={({ name, token, how }) => [name, token, how].join(" ")}
      none="No name has an inbox. relay http 3000 --subdomain NAME --inbox opens one."
    />
  );
}

const STATES: [WebhookState, string][] = [
  ["waiting", "Waiting"],
  ["delivered", "Delivered"],
  ["dead", "Dead"],
];

const ALL = { waiting: "that wait", delivered: "that were delivered", dead: "dead letters" };

function Webhooks({ model, name }: { model: Model; name: string }) {
  const { state, webhooks: page } = model;
  const inbox = page?.inbox;
  const drop = (which: { ids: string[] } | { all: WebhookState }, what: string) =>
    model.open(() => (
      <Sure
        model={model}
        title="Forget webhooks?"
        verb="Forget"
        done="Forgotten"
        act={(api) => api.act(name, "drop", which)}
      >
        In {name}, the relay deletes {what}. What was not delivered never will be. This cannot be undone.
      </Sure>
    ));
  const retry = (which: { ids: string[] } | { all: WebhookState }) =>
    void model.act((api) => api.act(name, "retry", which), "Tried at once, as soon as a client is there");
  const columns: Column<Webhook>[] = [
    {
      title: "Answer",
      cell: ({ status }) => <span class={`code ${status === null ? "pending" : status < 300 ? "good" : "bad"}`}>{status ?? "–"}</span>,
    },
    {
      title: "Request",
      cell: ({ method, path }) => (
        <span class="path">
          {method} {path.slice(0, 400)}
        </span>
      ),
    },
    { title: "Event", kind: "minor", cell: ({ provider, event_type }) => [provider, event_type].filter(Boolean).join(" ") },
    { title: "Attempts", kind: "minor", cell: attempts },
    { title: "Came", kind: "minor", cell: ({ first_at }) => <span class="time">{moment(first_at).slice(0, 19)}</span> },
    {
      title: "What can be done",
      kind: "deeds",
      cell: ({ id }) => (
        <>
          {state !== "delivered" && (
            <button type="button" onClick={() => retry({ ids: [id] })} aria-label={`Retry ${id}`}>
              Retry
            </button>
          )}
          <button type="button" onClick={() => drop({ ids: [id] }, "this webhook")} aria-label={`Drop ${id}`}>
            Drop
          </button>
        </>
      ),
    },
  ];
  return (
    <>
      <div class="bar">
        <a class="button" href="#inboxes" aria-label="All inboxes">
          ←
        </a>
        <h2>{name}</h2>
        <div class="tabs" role="radiogroup" aria-label="Which webhooks are shown">
          {STATES.map(([way, title]) => (
            <button key={way} type="button" role="radio" aria-checked={way === state} onClick={() => model.choose(way)}>
              {title} {inbox && number(inbox[way])}
            </button>
          ))}
        </div>
        <span class="words">{inbox && (inbox.paused ? `paused · ${inbox.how}` : inbox.how)}</span>
        {inbox && (
          <div class="tools">
            <button
              type="button"
              aria-pressed={inbox.paused}
              title="Deliver nothing for now, and keep what comes"
              onClick={() =>
                void model.act((api) => api.pause(name, !inbox.paused), inbox.paused ? "Deliveries go on" : "Deliveries rest")
              }
            >
              {inbox.paused ? "Resume" : "Pause deliveries"}
            </button>
            {state !== "delivered" && (
              <button type="button" disabled={!inbox[state]} onClick={() => retry({ all: state })}>
                Retry all
              </button>
            )}
            <button
              type="button"
              disabled={!inbox[state]}
              onClick={() =>
                drop({ all: state }, `all ${number(inbox[state])} ${ALL[state]}`)
              }
            >
              Drop all
            </button>
          </div>
        )}
      </div>
      <Table
        model={model}
        name="Webhooks"
        rows={page?.webhooks ?? null}
        columns={columns}
        id={({ id }) => id}
        text={({ id, method, path, provider, event_type, reason }) => [id, method, path, provider, event_type, reason].join(" ")}
        none="None."
        hasMore={!!page?.next}
      />
    </>
  );
}

function attempts({ attempts, under_way, due_at, reason }: Webhook): string {
  const tried = attempts ? plural(attempts, "attempt") : "not tried yet";
  if (under_way) return `${tried}, being tried`;
  if (reason) return `${tried}, ${reason}`;
  const wait = due_at ? Date.parse(due_at) - Date.now() : 0;
  return attempts && due_at && wait > 0 ? `${tried}, next ${time(due_at).slice(0, 8)}, in ${duration(wait)}` : tried;
}
