// Two exchanges side by side: what differs between them, which is how one understands a provider's retry.

import { useMemo, useState } from "preact/hooks";

import type { Detail, Message } from "./api";
import { type Body, comparable, read } from "./body";
import * as diff from "./diff";
import { duration, moment, number, verdict } from "./format";
import type { Loaded, Model } from "./model";
import { Long, More } from "./widgets";

/** Of a larger body only so many characters are compared. */
const MOST = 2 * 1024 * 1024;

/** Lines that are the same around those that are not. */
const CONTEXT = 3;

export function Compare({ model, pair: [first, second] }: { model: Model; pair: [Loaded, Loaded] }) {
  const problem = first.error ?? second.error;
  return (
    <section id="detail" class="detail compare" tabIndex={-1} aria-label="Two requests compared">
      <div class="heading">
        <button
          type="button"
          class="back"
          onClick={() => model.leave()}
          aria-label="Back to the request"
          title="Back (Esc)"
        >
          ←
        </button>
        <h2>Compare</h2>
      </div>
      {problem && <p class="problem">{problem}</p>}
      {first.detail && second.detail && (
        <div class="content" key={first.id + second.id}>
          <Heads first={first.detail} second={second.detail} />
          <Messages title="Request" first={first.detail.request} second={second.detail.request} />
          {first.detail.response && second.detail.response && (
            <Messages title="Response" first={first.detail.response} second={second.detail.response} />
          )}
        </div>
      )}
    </section>
  );
}

function Heads({ first, second }: { first: Detail; second: Detail }) {
  const rows: [string, (detail: Detail) => string | number | null][] = [
    ["Received", ({ at }) => moment(at)],
    ["Request", ({ method, path }) => `${method} ${path}`],
    ["Answer", ({ status, error }) => status ?? error],
    ["Time", ({ duration_ms }) => (duration_ms === null ? null : duration(duration_ms))],
    ["Event", ({ event_type, event_id }) => [event_type, event_id].filter(Boolean).join(" ") || null],
    ["Signature", (detail) => detail.verdict && verdict(detail.verdict)],
    ["From", ({ remote }) => remote],
    ["Id", ({ id }) => id],
  ];
  return (
    <table class="pairs">
      <thead>
        <tr>
          <td />
          <th scope="col">Earlier</th>
          <th scope="col">Later</th>
        </tr>
      </thead>
      <tbody>
        {rows.map(([name, of]) => {
          const [one, other] = [of(first), of(second)];
          return (
            <tr key={name} class={one === other ? "same" : "differs"}>
              <th scope="row">{name}</th>
              <td>{one}</td>
              <td>{other}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function Messages({ title, first, second }: { title: string; first: Message; second: Message }) {
  const headers = useMemo(() => diff.headers(first.headers, second.headers), [first, second]);
  return (
    <section class="message" aria-label={title}>
      <h3>{title}</h3>
      <h4>Headers</h4>
      <Changes changes={headers} />
      <h4>Body</h4>
      <Bodies first={first} second={second} />
    </section>
  );
}

function Changes({ changes }: { changes: diff.Change[] }) {
  if (!changes.length) return <p class="none">The same</p>;
  return (
    <table class="pairs">
      <tbody>
        {changes.map(({ name, first, second }) => (
          <tr key={name} class="differs">
            <th scope="row">{name || "(all of it)"}</th>
            <Side text={first} style="removed" />
            <Side text={second} style="added" />
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Side({ text, style }: { text: string | null; style: string }) {
  if (text === null) return <td class="none">none</td>;
  return (
    <td class={style}>
      <Long text={text} chunk={1_000} />
    </td>
  );
}

const MOST_CHANGES = 500;

function Bodies({ first, second }: { first: Message; second: Message }) {
  const [asLines, setLines] = useState(false);
  const [one, other] = useMemo(() => [read(first), read(second)] as const, [first, second]);
  const same = useMemo(
    () =>
      first.body === second.body && first.body_base64 === second.body_base64 && first.body_size === second.body_size,
    [first, second],
  );
  const isJson =
    one.root !== null && other.root !== null && (one.text?.length ?? 0) + (other.text?.length ?? 0) < 2 * MOST;
  const changes = useMemo(() => {
    if (same || !isJson) return [];
    const [a, b] = [one, other].map(({ text, root }) => ({ text: text!, node: root! }));
    return diff.documents(a!, b!, MOST_CHANGES);
  }, [one, other]);
  if (same) return <p class="none">{first.body_size ? "The same, byte for byte" : "None"}</p>;
  return (
    <>
      {isJson && (
        <div class="tabs" role="radiogroup" aria-label="How to compare">
          <button type="button" role="radio" aria-checked={!asLines} onClick={() => setLines(false)}>
            Values
          </button>
          <button type="button" role="radio" aria-checked={asLines} onClick={() => setLines(true)}>
            Lines
          </button>
        </div>
      )}
      {isJson && !asLines ? (
        <>
          {changes.length ? <Changes changes={changes} /> : <p class="none">The same values, written differently</p>}
          {changes.length === MOST_CHANGES && <p class="none">More differ than these {number(MOST_CHANGES)}.</p>}
        </>
      ) : (
        <Lines first={one} second={other} />
      )}
      {Math.max(first.body_size, second.body_size) > MOST && !isJson && (
        <p class="none">Only the first 2 MiB of each are compared.</p>
      )}
    </>
  );
}

function Lines({ first, second }: { first: Body; second: Body }) {
  const found = useMemo(() => {
    return shortened(diff.lines(comparable(first, MOST), comparable(second, MOST)));
  }, [first, second]);
  const [shown, setShown] = useState(1_000);
  return (
    <pre class="lines">
      {found.slice(0, shown).map((line, index) =>
        typeof line === "number" ? (
          <div key={index} class="skipped">
            {number(line)} lines are the same
          </div>
        ) : (
          <div key={index} class={{ both: "", first: "removed", second: "added" }[line.side]}>
            {{ both: "  ", first: "- ", second: "+ " }[line.side]}
            <Long text={line.text} chunk={2_000} />
          </div>
        ),
      )}
      {found.length > shown && (
        <More onClick={() => setShown(shown + 5_000)}>{number(found.length - shown)} more lines</More>
      )}
    </pre>
  );
}

/** The lines with what is far from any difference as a number only. */
function shortened(lines: diff.Line[]): (diff.Line | number)[] {
  const keep = new Uint8Array(lines.length);
  lines.forEach((line, at) => {
    if (line.side !== "both") keep.fill(1, Math.max(0, at - CONTEXT), at + CONTEXT + 1);
  });
  const found: (diff.Line | number)[] = [];
  let skipped = 0;
  const close = () => {
    if (skipped) found.push(skipped);
    skipped = 0;
  };
  lines.forEach((line, at) => {
    if (!keep[at]) {
      skipped += 1;
      return;
    }
    close();
    found.push(line);
  });
  close();
  return found;
}
