// What is asked before something is done, and what is filled in for it.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { Copy, Frame } from "../../../relay-client/inspector-web/src/widgets";
import type { Api, Name, Token, TokenLimits } from "./api";
import type { Model } from "./model";

interface SureProps {
  model: Model;
  title: string;
  /** What will happen. */
  children: ComponentChildren;
  /** The word on the button. */
  verb: string;
  /** What is said once it has. */
  done: string;
  act(api: Api): Promise<unknown>;
}

/** Asks once. */
export function Sure({ model, title, children, verb, done, act }: SureProps) {
  const close = () => model.open(null);
  const go = () => {
    close();
    void model.act(act, done);
  };
  return (
    <Frame title={title} close={close}>
      <p>{children}</p>
      <div class="choices">
        <button type="button" autofocus onClick={close}>
          Leave it
        </button>
        <button type="button" class="danger" onClick={go}>
          {verb}
        </button>
      </div>
    </Frame>
  );
}

interface FormProps {
  model: Model;
  title: string;
  verb: string;
  children: ComponentChildren;
  /** Does what is filled in; false where it was refused. */
  send(fields: Record<string, string>): Promise<boolean>;
}

/** Fields, of which those that are left empty are not sent. */
function Form({ model, title, verb, children, send }: FormProps) {
  const [sending, setSending] = useState(false);
  const submit = async (form: HTMLFormElement) => {
    const fields: Record<string, string> = {};
    for (const [name, value] of new FormData(form)) {
      if (typeof value === "string" && value.trim()) fields[name] = value.trim();
    }
    setSending(true);
    const done = await send(fields);
    setSending(false);
    if (done) model.open(null);
  };
  return (
    <Frame title={title} close={() => model.open(null)}>
      <form
        class="edit"
        onSubmit={(event) => {
          event.preventDefault();
          void submit(event.currentTarget);
        }}
      >
        {children}
        {model.notice?.kind === "bad" && (
          <p class="problem" role="alert">
            {model.notice.text}
          </p>
        )}
        <div class="line">
          <button type="submit" class="primary" disabled={sending}>
            {verb}
          </button>
        </div>
      </form>
    </Frame>
  );
}

export function Block({ model, what = "address", value = "" }: { model: Model; what?: string; value?: string }) {
  const [kind, setKind] = useState(what);
  const examples: Record<string, string> = { address: "203.0.113.7 or 2001:db8::/32", name: "hooks", token: "ci" };
  const send = ({ kind, value, reason }: Record<string, string>) =>
    model.act((api) => api.block({ [kind!]: value!, ...(reason ? { reason } : {}) }), `${value} is kept out`);
  return (
    <Form model={model} title="Keep something out" verb="Keep it out" send={send}>
      <p>
        {kind === "address" && "Connections and requests from there are refused, and clients there are disconnected."}
        {kind === "name" && "Requests to that tunnel are refused, and no client gets the name."}
        {kind === "token" && "Its clients are disconnected and do not get in, and requests to its tunnels are refused."} It
        holds until it is taken back here.
      </p>
      <div class="line">
        <label class="short">
          What
          <select name="kind" value={kind} onChange={(event) => setKind(event.currentTarget.value)}>
            <option value="address">address</option>
            <option value="name">name</option>
            <option value="token">token</option>
          </select>
        </label>
        <label class="long">
          Which
          <input name="value" defaultValue={value} placeholder={examples[kind] ?? ""} required spellcheck={false} autofocus />
        </label>
      </div>
      <label>
        Why, for whoever reads the list
        <input name="reason" />
      </label>
    </Form>
  );
}

export function Reserve({ model, tokens, held }: { model: Model; tokens: Token[]; held?: Name }) {
  const send = ({ name, ...wish }: Record<string, string>) =>
    model.act((api) => api.reserve(name!, wish), `${name} is reserved for ${wish["token"]}`);
  return (
    <Form model={model} title="Reserve a name" verb="Reserve" send={send}>
      <p>The name is that token's for good, whether a client is connected or not; nobody else gets it.</p>
      <label>
        Name, or a whole custom domain
        <input name="name" defaultValue={held?.name ?? ""} placeholder="hooks" required spellcheck={false} autofocus />
      </label>
      <Whose tokens={tokens} chosen={held?.token} />
      <div class="line">
        <label class="long">
          Provider, whose handshakes are answered
          <input name="provider" defaultValue={held?.provider ?? ""} placeholder="stripe" spellcheck={false} />
        </label>
        <label class="long">
          Inbox
          <select name="inbox">
            <option value="">as it is</option>
            <option value="on">on</option>
            <option value="ordered">on, in order</option>
          </select>
        </label>
      </div>
    </Form>
  );
}

function Whose({ tokens, chosen }: { tokens: Token[]; chosen: string | undefined }) {
  const valid = tokens.filter(({ state }) => state === "valid");
  return (
    <label>
      Token
      <select name="token" required>
        {valid.map(({ name }) => (
          <option key={name} value={name} selected={name === chosen}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

/** A domain of a customer's own, and not a name below the relay's. */
export function isDomain({ name }: Name): boolean {
  return name.includes(".");
}

export function Release({ model, held }: { model: Model; held: Name }) {
  const send = ({ forget }: Record<string, string>) =>
    model.act((api) => api.release(held.name, forget === "yes"), `${held.name} is released`);
  return (
    <Form model={model} title={`Release ${held.name}?`} verb="Release" send={send}>
      <p>
        {isDomain(held)
          ? `${held.token} loses ${held.name}, and so does its client. Whoever shows by a DNS record that it is theirs has it next.`
          : `${held.name} is not reserved any more. For 30 days ${held.token} alone gets it back, so that a late webhook reaches no stranger; after that, whoever asks first.`}{" "}
        Its inbox is closed.
      </p>
      <label class="check">
        <input type="checkbox" name="forget" value="yes" />
        Forget the webhooks in its inbox that were not delivered; without this they stand in the way
      </label>
    </Form>
  );
}

export function Create({ model }: { model: Model }) {
  const send = async ({ name, reserve, expires }: Record<string, string>) => {
    const wish = {
      name,
      ...(reserve ? { reserve: reserve.split(/[\s,]+/) } : {}),
      ...(expires ? { expires_at: `${expires}T00:00:00Z` } : {}),
    };
    let secret = "";
    const made = await model.act(async (api) => (secret = await api.create(wish)), `The token ${name} is made`);
    // In the place of this form, which is not to close it.
    if (made) model.open(() => <Made model={model} name={name!} secret={secret} />);
    return false;
  };
  return (
    <Form model={model} title="Make a token" verb="Make it" send={send}>
      <p>Whoever has a token opens tunnels with it. What its owner presents is shown once, when it is made.</p>
      <label>
        Name, for you
        <input name="name" placeholder="ci" required spellcheck={false} autofocus />
      </label>
      <div class="line">
        <label class="long">
          Names that are reserved for it
          <input name="reserve" placeholder="builds hooks" spellcheck={false} />
        </label>
        <label class="short">
          Ends on
          <input name="expires" type="date" />
        </label>
      </div>
    </Form>
  );
}

/** In which sizes are said. */
const MIB = 1 << 20;

export function Limits({ model, token }: { model: Model; token: Token }) {
  const send = async (fields: Record<string, string>) => {
    const count = (name: string) => (fields[name] ? Number(fields[name]) : null);
    const size = (name: string) => (fields[name] ? Math.round(Number(fields[name]) * MIB) : null);
    const wish: TokenLimits = {
      max_tunnels: Number(fields["max_tunnels"]),
      max_names: Number(fields["max_names"]),
      max_sessions: Number(fields["max_sessions"]),
      max_rate: count("max_rate"),
      max_streams: count("max_streams"),
      max_bytes: size("max_bytes"),
      max_body: size("max_body"),
      allow: fields["allow"]?.split(/[\s,]+/) ?? [],
    };
    // What stays as it is shown here is not said: somebody else may have changed it meanwhile.
    const isOther = (name: string) => String(wish[name as keyof TokenLimits]) !== String(token[name as keyof TokenLimits]);
    const change: Partial<TokenLimits> = Object.fromEntries(Object.entries(wish).filter(([name]) => isOther(name)));
    if (Object.keys(change).length === 0) return true;
    return model.act((api) => api.limit(token.name, change), `The limits of ${token.name} are changed`);
  };
  const field = (name: keyof TokenLimits, label: string, more: object = {}) => (
    <label class="long">
      {label}
      <input name={name} type="number" min="1" defaultValue={String(token[name] ?? "")} {...more} />
    </label>
  );
  const inMib = (name: "max_bytes" | "max_body", label: string) =>
    field(name, label, { min: 1 / MIB, step: "any", defaultValue: token[name] === null ? "" : String(token[name] / MIB) });
  return (
    <Form model={model} title={`Limits of ${token.name}`} verb="Change" send={send}>
      <p>They hold at once, for clients that are connected, too: one that would have more is refused.</p>
      <div class="line">
        {field("max_tunnels", "Tunnels", { required: true, autofocus: true })}
        {field("max_names", "Names", { required: true })}
        {field("max_sessions", "Clients", { required: true })}
      </div>
      <p>What the public may have of its tunnels. A field that is left empty is no limit.</p>
      <div class="line">
        {field("max_rate", "Requests each second")}
        {field("max_streams", "Requests at once")}
      </div>
      <div class="line">
        {inMib("max_bytes", "MiB in a month")}
        {inMib("max_body", "MiB in a request")}
      </div>
      <label>
        Addresses and networks that requests may come from
        <input name="allow" defaultValue={token.allow.join(" ")} placeholder="anywhere" spellcheck={false} />
      </label>
    </Form>
  );
}

function Made({ model, name, secret }: { model: Model; name: string; secret: string }) {
  return (
    <Frame title={`The token ${name}`} close={() => model.open(null)}>
      <p>Give this to its owner. It is not shown again.</p>
      <Copy model={model} text={secret} class="line secret" what="the token">
        {secret}
      </Copy>
      <div class="choices">
        <button type="button" autofocus onClick={() => model.open(null)}>
          Done
        </button>
      </div>
    </Frame>
  );
}
