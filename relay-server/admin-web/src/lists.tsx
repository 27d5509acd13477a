// What the relay has at this moment, each kind as a table.

import { bytes, moment, number } from "../../../relay-client/inspector-web/src/format";
import { Link } from "../../../relay-client/inspector-web/src/widgets";
import type { Block as Kept, Certificate, Entry, Name, Session, Token, Tunnel } from "./api";
import { Block, Create, isDomain, Limits, Release, Reserve, Sure } from "./dialogs";
import { type Model, placeOf } from "./model";
import { type Column, Table } from "./table";
import { plural, since, until } from "./words";

export function Sessions({ model }: { model: Model }) {
  const end = ({ id, token, address, tunnels }: Session) =>
    model.open(() => (
      <Sure
        model={model}
        title="End the session?"
        verb="Disconnect"
        done="The session is ended"
        act={(api) => api.endSession(id)}
      >
        The client of {token} at {address} is disconnected, and {plural(tunnels.length, "tunnel")} of it with what is under way. It
        comes back where it may: to keep it out, revoke its token or block it.
      </Sure>
    ));
  const columns: Column<Session>[] = [
    { title: "Token", cell: ({ token }) => token },
    { title: "Tunnels", cell: ({ tunnels }) => few(tunnels) },
    { title: "From", kind: "minor", cell: ({ address }) => <span class="id">{address}</span> },
    { title: "Client", kind: "minor", cell: ({ client }) => client || "–" },
    { title: "For", kind: "minor", cell: ({ since: at }) => <span title={moment(at)}>{since(at)}</span> },
    { title: "Under way", kind: "count", cell: ({ streams }) => number(streams) },
    {
      title: "What can be done",
      kind: "deeds",
      cell: (session) => (
        <button type="button" onClick={() => end(session)} aria-label={`Disconnect ${session.token} at ${session.address}`}>
          Disconnect
        </button>
      ),
    },
  ];
  return (
    <Table
      model={model}
      name="Sessions"
      rows={model.list<Session>()}
      columns={columns}
      id={({ id }) => id}
      text={({ id, token, address, client, tunnels }) => [id, token, address, client, ...tunnels].join(" ")}
      none="No client is connected. relay http 3000 connects one."
    />
  );
}

export function Tunnels({ model }: { model: Model }) {
  const columns: Column<Tunnel>[] = [
    { title: "Name", cell: ({ name }) => name },
    { title: "URL", kind: "minor", cell: ({ url }) => <Link url={url}>{url}</Link> },
    { title: "Token", cell: ({ token }) => token },
    { title: "Inbox", kind: "minor", cell: (tunnel) => tunnel.inbox && <a href={placeOf(tunnel)}>inbox</a> },
    {
      title: "What can be done",
      kind: "deeds",
      cell: ({ name }) => (
        <button
          type="button"
          onClick={() => model.open(() => <Block model={model} what="name" value={name} />)}
          aria-label={`Block ${name}`}
        >
          Block…
        </button>
      ),
    },
  ];
  return (
    <Table
      model={model}
      name="Tunnels"
      rows={model.list<Tunnel>()}
      columns={columns}
      id={({ name }) => name}
      text={({ name, url, token }) => [name, url, token].join(" ")}
      none="No tunnel is open."
    />
  );
}

export function Tokens({ model }: { model: Model }) {
  const revoke = ({ name }: Token) =>
    model.open(() => (
      <Sure
        model={model}
        title={`Revoke ${name}?`}
        verb="Revoke"
        done={`The token ${name} is revoked`}
        act={(api) => api.revoke(name)}
      >
        Its clients are disconnected, and nobody gets in with it any more. This cannot be undone; a token that is made with the same name
        takes over its names.
      </Sure>
    ));
  const columns: Column<Token>[] = [
    { title: "Name", cell: ({ name }) => name },
    { title: "State", cell: ({ state }) => <span class={state === "valid" ? "good" : "other"}>{state}</span> },
    { title: "Names", kind: "minor", cell: ({ reserved, leased }) => few([...reserved, ...leased]) },
    {
      title: "Used",
      kind: "minor",
      cell: ({ last_used_at }) => (last_used_at ? <span title={moment(last_used_at)}>{since(last_used_at)} ago</span> : "never"),
    },
    { title: "Ends", kind: "minor", cell: ({ expires_at }) => expires_at && <span title={moment(expires_at)}>{until(expires_at)}</span> },
    {
      title: "This month",
      kind: "count",
      cell: ({ month_bytes, max_bytes }) => `${bytes(month_bytes)}${max_bytes === null ? "" : ` of ${bytes(max_bytes)}`}`,
    },
    {
      title: "What can be done",
      kind: "deeds",
      cell: (token) =>
        token.state === "revoked" || (
          <>
            <button
              type="button"
              class="minor"
              onClick={() => model.open(() => <Block model={model} what="token" value={token.name} />)}
              aria-label={`Block ${token.name}`}
            >
              Block…
            </button>
            <button
              type="button"
              class="minor"
              onClick={() => model.open(() => <Limits model={model} token={token} />)}
              aria-label={`Limits of ${token.name}`}
            >
              Limits…
            </button>
            <button type="button" onClick={() => revoke(token)} aria-label={`Revoke ${token.name}`}>
              Revoke
            </button>
          </>
        ),
    },
  ];
  return (
    <Table
      model={model}
      name="Tokens"
      rows={model.list<Token>()}
      columns={columns}
      // One that was revoked may have left its name to another.
      id={({ name, created_at, state }) => `${name} ${created_at} ${state}`}
      text={({ name, state, reserved, leased }) => [name, state, ...reserved, ...leased].join(" ")}
      none="There is no token yet, so that nobody can connect."
    >
      <button type="button" onClick={() => model.open(() => <Create model={model} />)}>
        Make a token…
      </button>
    </Table>
  );
}

export function Names({ model }: { model: Model }) {
  const reserve = async (held?: Name) => {
    const tokens = await model.need((api) => api.tokens());
    if (tokens) model.open(() => <Reserve model={model} tokens={tokens} {...(held ? { held } : {})} />);
  };
  const columns: Column<Name>[] = [
    { title: "Name", cell: ({ name }) => name },
    { title: "Token", cell: ({ token }) => token },
    { title: "Held", kind: "minor", cell: ({ state }) => (state === "reserved" ? "for good" : "while it is used") },
    { title: "Provider", kind: "minor", cell: ({ provider }) => provider },
    {
      title: "What can be done",
      kind: "deeds",
      cell: (held) => (
        <>
          <button type="button" class="minor" onClick={() => void reserve(held)} aria-label={`Reserve ${held.name}`}>
            Reserve…
          </button>
          {(held.state === "reserved" || isDomain(held)) && (
            <button
              type="button"
              onClick={() => model.open(() => <Release model={model} held={held} />)}
              aria-label={`Release ${held.name}`}
            >
              Release
            </button>
          )}
        </>
      ),
    },
  ];
  return (
    <Table
      model={model}
      name="Names"
      rows={model.list<Name>()}
      columns={columns}
      id={({ name }) => name}
      text={({ name, token, state, provider }) => [name, token, state, provider].join(" ")}
      none="No token holds a name."
    >
      <button type="button" onClick={() => void reserve()}>
        Reserve a name…
      </button>
    </Table>
  );
}

export function Blocks({ model }: { model: Model }) {
  const what = ({ address, name, token }: Kept) => address ?? name ?? token ?? "";
  const columns: Column<Kept>[] = [
    { title: "What", cell: ({ address, name }) => (address ? "address" : name ? "name" : "token") },
    { title: "Which", cell: (block) => <span class="id">{what(block)}</span> },
    { title: "Why", kind: "minor", cell: ({ reason }) => reason },
    { title: "Since", kind: "minor", cell: ({ at }) => moment(at).slice(0, 16) },
    {
      title: "What can be done",
      kind: "deeds",
      cell: (block) => (
        <button
          type="button"
          onClick={() => void model.act((api) => api.unblock(block.id), `${what(block)} is let in again`)}
          aria-label={`Let ${what(block)} in again`}
        >
          Let in
        </button>
      ),
    },
  ];
  return (
    <Table
      model={model}
      name="Blocks"
      rows={model.list<Kept>()}
      columns={columns}
      id={({ id }) => String(id)}
      text={(block) => `${what(block)} ${block.reason}`}
      none="Nothing is kept out."
    >
      <button type="button" onClick={() => model.open(() => <Block model={model} />)}>
        Block…
      </button>
    </Table>
  );
}

export function Certificates({ model }: { model: Model }) {
  const columns: Column<Certificate>[] = [
    { title: "For", cell: ({ domain, names }) => domain ?? (few(names) || "the relay itself") },
    {
      title: "Ends",
      cell: ({ not_after }) => (not_after ? <span title={moment(not_after)}>{until(not_after)}</span> : <span class="bad">none yet</span>),
    },
    { title: "Issuer", kind: "minor", cell: ({ issuer }) => issuer },
    { title: "Source", kind: "minor", cell: ({ source }) => source },
    { title: "In the way", cell: ({ trouble }) => trouble && <span class="bad">{trouble}</span> },
  ];
  return (
    <Table
      model={model}
      name="Certificates"
      rows={model.list<Certificate>()}
      columns={columns}
      id={({ domain }) => domain ?? ""}
      text={({ domain, names, issuer, trouble }) => [domain, ...names, issuer, trouble].join(" ")}
      none="The relay serves no HTTPS itself: the proxy before it has the certificates."
    />
  );
}

export function Audit({ model }: { model: Model }) {
  const who = ({ by }: Entry) => {
    if (by.via === "api") return `API, ${by.address ?? ""}`;
    if (by.via === "signal") return "a signal";
    return `user ${by.user ?? ""}${by.process ? `, process ${by.process}` : ""}`;
  };
  const columns: Column<Entry>[] = [
    { title: "When", cell: ({ at }) => <span class="time">{moment(at).slice(0, 19)}</span> },
    { title: "What", cell: ({ operation }) => <span class="id">{operation}</span> },
    { title: "With", cell: ({ subject }) => subject },
    { title: "Detail", kind: "minor", cell: ({ detail }) => detail },
    { title: "By", kind: "minor", cell: who },
  ];
  const entries = model.list<Entry>();
  return (
    <Table
      model={model}
      name="Audit log"
      rows={entries}
      columns={columns}
      id={({ id }) => String(id)}
      text={(entry) => [entry.operation, entry.subject, entry.detail, who(entry)].join(" ")}
      none="Nothing was done yet."
      hasMore={model.hasOlder}
    />
  );
}

/** Of many names the first ones. */
function few(names: string[]): string {
  const [most, rest] = [names.slice(0, 3).join(", "), names.length - 3];
  return rest > 0 ? `${most} and ${number(rest)} more` : most;
}
