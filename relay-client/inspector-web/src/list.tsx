// The list, of which only the rows that can be seen are on the page.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import type { Summary } from "./api";
import { type Entry, positionAfter } from "./exchanges";
import { allowance, duration, judgement, moment, number, outcome, time, verdict } from "./format";
import type { Model } from "./model";

/** As in the style sheet. */
const ROW = 28;

/** Rows beyond the edges, so that a quick scroll meets no blank. */
const MARGIN = 6;

export function List({ model }: { model: Model }) {
  const list = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(800);

  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setHeight(entry!.contentRect.height));
    observer.observe(list.current!);
    return () => observer.disconnect();
  }, []);

  // What is selected by a key is brought into sight.
  const place = model.place(model.selected);
  useLayoutEffect(() => {
    const box = list.current!;
    if (place < 0) return;
    if (place * ROW < box.scrollTop) box.scrollTop = place * ROW;
    else if ((place + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (place + 1) * ROW - box.clientHeight;
  }, [model.selected]);

  const { rows, hidden } = model;
  const first = Math.max(0, Math.min(Math.floor(top / ROW), rows - Math.ceil(height / ROW)) - MARGIN);
  const last = Math.min(rows, first + Math.ceil(height / ROW) + 2 * MARGIN);
  const shown: Entry[] = [];
  for (let at = first; at < last; at += 1) {
    const entry = model.row(at);
    if (entry) shown.push(entry);
  }
  const release = () => {
    if (model.paused) model.pause(false);
    model.hold(false);
    list.current!.scrollTop = 0;
  };
  return (
    <div class="rows">
      {hidden > 0 && (
        <button type="button" class="newer" onClick={release}>
          {number(hidden)} newer
        </button>
      )}
      <div
        id="list"
        ref={list}
        class="list"
        role="listbox"
        tabIndex={0}
        aria-label="Requests, newest first"
        aria-activedescendant={place >= first && place < last ? `row-${model.selected}` : undefined}
        onScroll={(event) => {
          setTop(event.currentTarget.scrollTop);
          model.hold(event.currentTarget.scrollTop > 0);
        }}
        onMouseDown={(event) => {
          const row = (event.target as HTMLElement).closest<HTMLElement>("[data-id]");
          if (row && event.button === 0) model.select(row.dataset.id!);
        }}
      >
        <div class="extent" style={{ height: `${rows * ROW}px` }}>
          <div class="window" style={{ transform: `translateY(${first * ROW}px)` }}>
            {shown.map((entry, index) => (
              <Row
                key={entry.id}
                entry={entry}
                summary={entry.summary}
                attempts={entry.attempts?.length ?? 1}
                selected={entry.id === model.selected}
                marked={entry.id === model.marked}
                place={first + index + 1}
                rows={rows}
              />
            ))}
          </div>
        </div>
        {rows === 0 && <p class="none">{model.query ? "No request fits this search." : "Nothing here yet."}</p>}
      </div>
    </div>
  );
}

interface RowProps {
  entry: Entry;
  summary: Summary;
  attempts: number;
  selected: boolean;
  marked: boolean;
  place: number;
  rows: number;
}

function Row({ entry, summary, attempts, selected, marked, place, rows }: RowProps) {
  const { id, at, method, path, provider, provider_name, event_type, duration_ms, replay_of, inbox_attempt } = summary;
  const [clock, at_ms] = time(at).split(/(?=\.)/);
  const attempt = entry.attempts && attempts > 1 ? positionAfter(entry.attempts, id) : 0;
  return (
    <div
      id={`row-${id}`}
      class={marked ? "row marked" : "row"}
      role="option"
      aria-selected={selected}
      aria-setsize={rows}
      aria-posinset={place}
      data-id={id}
    >
      <span class={`code ${outcome(summary)}`}>{summary.status ?? (summary.error ? "error" : "…")}</span>
      <span class="method">{method}</span>
      <span class="path" title={path}>
        {path}
      </span>
      <span class="event">
        <span class="type" title={event_type ?? ""}>
          {event_type}
        </span>
        {marked && <span class="mark">compare</span>}
        {replay_of && <span class="mark">replay</span>}
        {inbox_attempt && (
          <span class="mark" title={`Out of the inbox, attempt ${inbox_attempt}`}>
            inbox
          </span>
        )}
        {attempt > 0 && (
          <span class="mark" title={`${attempts} attempts of one event`}>
            {attempt}/{attempts}
          </span>
        )}
      </span>
      <span class="provider">{provider_name ?? provider}</span>
      <Sign code={summary.verdict} />
      <span class={`spent ${pressure(summary)}`} title={allowance(summary)}>
        {duration_ms === null ? "" : duration(duration_ms)}
      </span>
      <span class="time" title={moment(at)}>
        {clock}
        <span class="ms">{at_ms}</span>
      </span>
    </div>
  );
}

/** A verdict in one character. */
export function Sign({ code }: { code: string | null }) {
  if (!code) return <span class="sign" />;
  const taken = judgement(code);
  return (
    <span class={`sign ${taken}`} role="img" aria-label={verdict(code)} title={verdict(code)}>
      {taken === "good" ? "✓" : taken === "bad" ? "✗" : "–"}
    </span>
  );
}

/** How near the time is to what the provider waits. */
export function pressure({ duration_ms, allowed_ms }: Summary): "" | "near" | "over" {
  if (duration_ms === null || !allowed_ms) return "";
  return duration_ms > allowed_ms ? "over" : duration_ms > 0.7 * allowed_ms ? "near" : "";
}
