// A list as a table, of which a page at a time is shown, and those rows alone that fit what is searched for.

import type { ComponentChildren } from "preact";

import { number } from "../../../relay-client/inspector-web/src/format";
import { More } from "../../../relay-client/inspector-web/src/widgets";
import { type Model, PAGE_ROWS } from "./model";

export interface Column<T> {
  title: string;
  /** `minor` gives way on a narrow screen, `count` is a number, `deeds` are buttons. */
  kind?: "minor" | "count" | "deeds";
  cell(row: T): ComponentChildren;
}

interface Props<T> {
  model: Model;
  /** What the rows are called. */
  name: string;
  rows: T[] | null;
  columns: Column<T>[];
  /** What tells a row from others. */
  id(row: T): string;
  /** What is searched. */
  text(row: T): string;
  /** What is said where there are none. */
  none: ComponentChildren;
  /** What can be done beside the rows. */
  children?: ComponentChildren;
  /** The relay has older ones, which it has not told. */
  hasMore?: boolean;
}

export function Table<T>({ model, name, rows, columns, id, text, none, children, hasMore = false }: Props<T>) {
  const words = model.query.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = rows?.filter((row) => {
    const said = text(row).toLowerCase();
    return words.every((word) => said.includes(word));
  });
  const shown = fitting?.slice(0, model.rows);
  const all = hasMore ? `the latest ${number(rows?.length ?? 0)}` : number(rows?.length ?? 0);
  const rest = (fitting?.length ?? 0) - (shown?.length ?? 0);
  return (
    <section class="list-of" aria-label={name}>
      <div class="bar">
        <input
          id="search"
          type="search"
          placeholder={`Search ${name.toLowerCase()}`}
          aria-label={`Search ${name.toLowerCase()}`}
          autocomplete="off"
          spellcheck={false}
          value={model.query}
          onInput={(event) => model.search(event.currentTarget.value)}
        />
        <span class="words" role="status">
          {rows && fitting && (words.length === 0 ? all : `${number(fitting.length)} of ${all}`)}
        </span>
        {children}
      </div>
      {shown && shown.length > 0 && (
        <table>
          <thead>
            <tr>
              {columns.map(({ title, kind }) => (
                <th key={title} scope="col" class={kind}>
                  {kind === "deeds" ? <span class="unseen">{title}</span> : title}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {shown.map((row) => (
              <tr key={id(row)} data-id={id(row)}>
                {columns.map(({ title, kind, cell }) => (
                  <td key={title} class={kind}>
                    {kind === "deeds" ? <div class="deeds-of">{cell(row)}</div> : cell(row)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {!rows && <p class="none">Loading…</p>}
      {rows?.length === 0 && <p class="none">{none}</p>}
      {rows && rows.length > 0 && fitting?.length === 0 && (
        <p class="none">{hasMore ? `None of ${all} fits this search.` : "None fits this search."}</p>
      )}
      {(rest > 0 || hasMore) && (
        <p class="rest">
          <More onClick={() => model.more()}>{rest > 0 ? `${number(Math.min(rest, PAGE_ROWS))} of ${number(rest)} more` : "More"}</More>
        </p>
      )}
    </section>
  );
}
