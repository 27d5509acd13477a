// One exchange: what it was, what came of it, and its two messages.

import type { ComponentChildren } from "preact";

import { type Detail, type Header, type Message, bodyUrl } from "./api";
import { BodyView } from "./body_view";
import { allowance, duration, judgement, moment, number, outcome, time, verdict } from "./format";
import { pressure } from "./list";
import type { Model } from "./model";
import { Copy, Link, Long } from "./widgets";

export function DetailPane({ model }: { model: Model }) {
  const { loaded, selected } = model;
  const detail = loaded?.detail;
  const summary = detail ?? (selected ? model.exchanges.get(selected)?.summary : undefined);
  return (
    <section id="detail" class="detail" tabIndex={-1} aria-label="The selected request">
      <div class="heading">
        <button
          type="button"
          class="back"
          onClick={() => model.leave()}
          aria-label="Back to the list"
          title="Back (Esc)"
        >
          ←
        </button>
        <h2>
          {summary && (
            <>
              <span class="method">{summary.method}</span>{" "}
              <span class="path">{summary.path.slice(0, MOST_HEADING)}</span>
            </>
          )}
        </h2>
        <div class="tools">
          <button type="button" onClick={() => void model.replay()} title="Send it again (r)">
            Replay
          </button>
          <button type="button" onClick={() => model.open("edit")} disabled={!detail} title="Change it and send it (e)">
            Edit
          </button>
          <button
            type="button"
            aria-pressed={model.marked === selected}
            onClick={() => model.mark()}
            title={compareTitle(model)}
          >
            Compare
          </button>
          <button type="button" onClick={() => model.open("export")} title="Copy or save it in another form (x)">
            Export
          </button>
        </div>
      </div>
      {!loaded && <p class="none content">Loading…</p>}
      {loaded?.error && <p class="problem">{loaded.error}</p>}
      {detail && (
        // Another exchange begins at its top, with nothing opened by hand.
        <div class="content" key={detail.id}>
          <Overview model={model} detail={detail} />
          <MessageView model={model} id={detail.id} side="request" title="Request" message={detail.request} />
          {detail.response ? (
            <MessageView model={model} id={detail.id} side="response" title="Response" message={detail.response} />
          ) : (
            <p class="none">{detail.error ? `No response: ${detail.error}` : "No response yet."}</p>
          )}
        </div>
      )}
    </section>
  );
}

/** Characters of a path that fit a heading; all of it is below, in the URL. */
export const MOST_HEADING = 300;

function compareTitle({ marked, selected }: Model): string {
  if (!marked) return "Compare it with the next one that is chosen for it (c)";
  return marked === selected ? "Choose another request and press c" : "Compare it with the one that was chosen (c)";
}

function Overview({ model, detail }: { model: Model; detail: Detail }) {
  const { event_id, event_type, provider_name, provider, links, replay_of } = detail;
  return (
    <dl class="facts">
      <Fact name="Answer">
        <span class={`code ${outcome(detail)}`}>{detail.status ?? (detail.error ? "none" : "not yet")}</span>
        {detail.error && <span class="reason"> {detail.error}</span>}
      </Fact>
      <Fact name="Time">
        <Timing detail={detail} />
      </Fact>
      {(provider_name ?? provider) && (
        <Fact name="Provider">
          {provider_name ?? provider}
          {links.map(({ name, url }) => (
            <span key={url} class="link">
              <Link url={url}>{name}</Link>
            </span>
          ))}
        </Fact>
      )}
      {(event_type || event_id) && (
        <Fact name="Event">
          {event_type && <span class="type">{event_type} </span>}
          {event_id && (
            <Copy model={model} text={event_id} class="id" what="the event's id">
              {event_id}
            </Copy>
          )}
        </Fact>
      )}
      {detail.verdict && (
        <Fact name="Signature">
          <span class={`verdict ${judgement(detail.verdict)}`}>{verdict(detail.verdict)}</span>
          {detail.reason && <span class="reason">{detail.reason}</span>}
        </Fact>
      )}
      {detail.delivery && (
        <Fact name="Inbox">
          {detail.delivery.attempt > 1 ? `redelivered, attempt ${number(detail.delivery.attempt)}` : "delivered later"}
          <span class="reason">{duration(detail.delivery.age_s * 1000)} after it came</span>
        </Fact>
      )}
      <Attempts model={model} detail={detail} />
      {replay_of && (
        <Fact name="Replay of">
          <button type="button" class="id" onClick={() => model.select(replay_of)}>
            {replay_of}
          </button>
        </Fact>
      )}
      <Fact name="Received">
        {moment(detail.at)}
        {detail.remote && <span class="reason">from {detail.remote}</span>}
        {detail.tunnel && <span class="reason">by {detail.tunnel}</span>}
      </Fact>
      <Fact name="URL">
        <Copy model={model} text={detail.url} class="id" what="the URL">
          {detail.url.length > MOST_URL ? `${detail.url.slice(0, MOST_URL)}…` : detail.url}
        </Copy>
      </Fact>
      <Fact name="Id">
        <Copy model={model} text={detail.id} class="id" what="the id">
          {detail.id}
        </Copy>
      </Fact>
    </dl>
  );
}

const MOST_URL = 2_000;

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </>
  );
}

/** The time used, as a part of the time that the provider waits. */
function Timing({ detail }: { detail: Detail }) {
  const { timings, duration_ms, allowed_ms } = detail;
  const total = duration_ms ?? timings.total_ms;
  if (total === null) return <span>{allowance(detail) || "running"}</span>;
  const [edge, app] = [timings.edge_ms ?? 0, timings.upstream_ms ?? 0];
  const rest = Math.max(0, total - edge - app);
  const scale = Math.max(allowed_ms ?? 0, total, 0.001);
  const parts = [
    { name: "edge", ms: edge, words: "to reach this machine" },
    { name: "app", ms: app, words: "until the app answered" },
    { name: "rest", ms: rest, words: "until all was sent" },
  ].filter(({ ms }) => ms > 0);
  const words = parts.map(({ ms, words: what }) => `${duration(ms)} ${what}`).join(", ");
  return (
    <div class={`timing ${pressure(detail)}`}>
      <span class="used">{allowance(detail) || duration(total)}</span>
      <div class="bar" role="img" aria-label={words} title={words}>
        {parts.map(({ name, ms }) => (
          <span key={name} class={name} style={{ width: `${(100 * ms) / scale}%` }} />
        ))}
      </div>
      <span class="reason">{words}</span>
    </div>
  );
}

/** As many rows of a much repeated event as help. */
const MOST_ATTEMPTS = 20;

function Attempts({ model, detail }: { model: Model; detail: Detail }) {
  const all = model.exchanges.get(detail.id)?.attempts ?? [];
  if (all.length < 2) return null;
  const shown = all.slice(-MOST_ATTEMPTS);
  return (
    <Fact name="Attempts">
      <ul class="attempts">
        {all.length > shown.length && <li class="reason">{number(all.length - shown.length)} earlier ones</li>}
        {shown.map(({ id, summary }) => (
          <li key={id}>
            <button type="button" class="id" aria-current={id === detail.id} onClick={() => model.select(id)}>
              {time(summary.at)}
            </button>
            <span class={`code ${outcome(summary)}`}>{summary.status ?? summary.error ?? "…"}</span>
            {summary.replay_of && <span class="mark">replay</span>}
            {id === detail.id ? (
              <span class="reason">this one</span>
            ) : (
              <button type="button" class="copy" onClick={() => void model.compare(id, detail.id)}>
                Compare
              </button>
            )}
          </li>
        ))}
      </ul>
    </Fact>
  );
}

interface MessageProps {
  model: Model;
  id: string;
  side: "request" | "response";
  title: string;
  message: Message;
}

function MessageView({ model, id, side, title, message }: MessageProps) {
  return (
    <section class="message" aria-label={title}>
      <h3>{title}</h3>
      <Headers model={model} title="Headers" headers={message.headers} />
      <BodyView model={model} message={message} name={`${title} body`} url={bodyUrl(id, side)} />
      {message.trailers && <Headers model={model} title="Trailers" headers={message.trailers} />}
    </section>
  );
}

export function Headers({ model, title, headers }: { model: Model; title: string; headers: Header[] }) {
  return (
    <details open={model.headersOpen} onToggle={(event) => model.openHeaders(event.currentTarget.open)}>
      <summary>
        {title} <span class="reason">{headers.length}</span>
      </summary>
      <table class="headers">
        <tbody>
          {headers.map(([name, value], index) => (
            <tr key={index}>
              <th scope="row">{name}</th>
              <td>
                <Long text={value} chunk={2_000} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}
