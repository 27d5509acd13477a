// How the relay is: figures, and how they have been since the page was opened.

import type { ComponentChildren } from "preact";

import { bytes, duration, moment, number } from "../../../relay-client/inspector-web/src/format";
import type { Certificate, Status } from "./api";
import type { Model } from "./model";
import type { Rates } from "./traffic";
import { plural, rate, since, span, until } from "./words";

export function Overview({ model }: { model: Model }) {
  const { status, history } = model;
  if (!status) return <p class="none">Loading…</p>;
  const { traffic, inboxes } = status;
  const { latest, rates } = history;
  const times = rates.map(({ at }) => at);
  const wait = (at: 0 | 1 | 2) => (latest.waits ? duration(latest.waits[at] * 1000) : "–");
  return (
    <div class="overview">
      <div class="tiles">
        <Tile name="Clients" value={number(status.sessions)} to="#sessions">
          {plural(status.tunnels, "tunnel")}, {plural(status.connections, "public connection")}
        </Tile>
        <Tile name="Requests each second" value={rate(latest.requests)}>
          {plural(traffic.under_way, "request")} under way
        </Tile>
        <Tile name="Failed each second" value={rate(latest.failed)} bad={latest.failed > 0}>
          {rate(latest.own)} answered by the relay itself
        </Tile>
        <Tile name="Wait for an answer" value={wait(0)}>
          95 %: {wait(1)}, 99 %: {wait(2)}
        </Tile>
        <Tile name="Bytes each second" value={bytes(Math.round(latest.received + latest.sent))}>
          {bytes(Math.round(latest.received))} received, {bytes(Math.round(latest.sent))} sent
        </Tile>
        <Tile name="Waiting in inboxes" value={inboxes ? number(inboxes.waiting) : "–"} bad={!!inboxes?.dead} to="#inboxes">
          {inboxes ? (inboxes.dead ? plural(inboxes.dead, "dead letter") : "no dead letters") : "not known: the disk does not answer"}
          {inboxes?.oldest_at ? `, waiting for ${since(inboxes.oldest_at)}` : ""}
        </Tile>
        <CertificateTile certificates={model.list<Certificate>("certificates")} />
        <Tile name="Up for" value={span(traffic.uptime_ms)}>
          version {status.version}
        </Tile>
      </div>
      <div class="charts">
        <Chart
          title="Requests each second"
          times={times}
          lines={[
            { name: "all", style: "all", points: rates.map(({ requests }) => requests) },
            { name: "failed", style: "failed", points: rates.map(({ failed }) => failed) },
          ]}
          unit={rate}
        />
        <Chart
          title="Wait for an answer"
          times={times}
          lines={[
            { name: "half of them", style: "all", points: rates.map((rates) => waited(rates, 0)) },
            { name: "95 of 100", style: "failed", points: rates.map((rates) => waited(rates, 1)) },
          ]}
          unit={(seconds) => duration(seconds * 1000)}
        />
      </div>
      <Errors model={model} status={status} />
    </div>
  );
}

function waited({ waits }: Rates, at: 0 | 1): number | null {
  return waits && waits[at];
}

interface TileProps {
  name: string;
  value: string;
  bad?: boolean;
  to?: string;
  children: ComponentChildren;
}

function Tile({ name, value, bad = false, to, children }: TileProps) {
  return (
    <section class="tile" aria-label={name}>
      <h2>{to ? <a href={to}>{name}</a> : name}</h2>
      <p class={bad ? "value bad" : "value"}>{value}</p>
      <p class="beside">{children}</p>
    </section>
  );
}

/** The certificate that ends first, and those that cannot have the next one. */
function CertificateTile({ certificates }: { certificates: Certificate[] | null }) {
  if (!certificates?.length) {
    return (
      <Tile name="Certificates" value={certificates ? "none" : "–"}>
        {certificates ? "a proxy has them" : ""}
      </Tile>
    );
  }
  const troubled = certificates.filter(({ trouble }) => trouble).length;
  const ends = certificates.flatMap(({ not_after }) => not_after ?? []).sort();
  return (
    <Tile name="Certificates" value={number(certificates.length)} bad={troubled > 0} to="#certificates">
      {troubled ? `${number(troubled)} cannot be renewed` : ends[0] ? `the first ends ${until(ends[0])}` : "none yet"}
    </Tile>
  );
}

interface Line {
  name: string;
  style: "all" | "failed";
  points: (number | null)[];
}

const [WIDTH, HEIGHT] = [600, 120];

/** Less than a minute does not take all of the width. */
const LEAST_MS = 60_000;

interface ChartProps {
  title: string;
  /** When the points were. */
  times: number[];
  lines: Line[];
  unit(value: number): string;
}

function Chart({ title, times, lines, unit }: ChartProps) {
  const most = Math.max(...lines.flatMap(({ points }) => points.map((point) => point ?? 0)), 0);
  const past = (times.at(-1) ?? 0) - (times[0] ?? 0);
  const latest = lines.map(({ name, points }) => `${name} ${points.at(-1) == null ? "–" : unit(points.at(-1)!)}`);
  return (
    <figure class="chart">
      <figcaption>
        {title}
        <span class="keys">
          {lines.map(({ name, style }) => (
            <span key={name} class={`key-of ${style}`}>
              {name}
            </span>
          ))}
        </span>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`${title}: ${latest.join(", ")}`}>
        {lines.map(({ name, style, points }) => (
          <path key={name} class={style} d={pathOf(times, points, most)} vector-effect="non-scaling-stroke" />
        ))}
      </svg>
      <p class="scale">
        <span>{past > 0 ? `the last ${span(past)}` : "drawn from now on"}</span>
        <span>{most > 0 ? `up to ${unit(most)}` : ""}</span>
      </p>
    </figure>
  );
}

/** The newest point is on the right; where there is none the line has a gap. */
function pathOf(times: number[], points: (number | null)[], most: number): string {
  const end = times.at(-1) ?? 0;
  const width = Math.max(end - (times[0] ?? 0), LEAST_MS);
  let joined = false;
  const steps = points.map((point, at) => {
    if (point === null) {
      joined = false;
      return "";
    }
    const x = (1 - (end - (times[at] ?? end)) / width) * WIDTH;
    const y = HEIGHT - 2 - (most > 0 ? point / most : 0) * (HEIGHT - 6);
    const step = `${joined ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    // A point without neighbours is seen, too.
    const lone = !joined && points[at + 1] == null ? "h1" : "";
    joined = true;
    return step + lone;
  });
  return steps.join("");
}

function Errors({ model, status }: { model: Model; status: Status }) {
  const errors = Object.entries(status.traffic.errors).filter(([, count]) => count > 0);
  errors.sort(([, one], [, other]) => other - one);
  const started = new Date(Date.now() - status.traffic.uptime_ms).toISOString();
  return (
    <section class="list-of" aria-label="Errors">
      <h2>Errors that the relay has answered itself</h2>
      {errors.length === 0 ? (
        <p class="none">None since it began, {moment(started).slice(0, 19)}.</p>
      ) : (
        <table>
          <thead>
            <tr>
              <th scope="col">Error</th>
              <th scope="col" class="count">
                Each second
              </th>
              <th scope="col" class="count">
                Since {moment(started).slice(0, 16)}
              </th>
            </tr>
          </thead>
          <tbody>
            {errors.map(([code, count]) => (
              <tr key={code}>
                <td class="id">{code}</td>
                <td class="count">{rate(model.history.errors.get(code) ?? 0)}</td>
                <td class="count">{number(count)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
