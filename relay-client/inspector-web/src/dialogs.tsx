// What is asked before something is done, and the help.

import { useState } from "preact/hooks";

import { ApiError, type Changes, type Detail, type Header, exported } from "./api";
import { asField, read, withLineEnds } from "./body";
import { bytes } from "./format";
import type { Dropping } from "./inbox_model";
import * as json from "./json";
import type { Model } from "./model";
import { copy, Frame } from "./widgets";

export function Dialogs({ model }: { model: Model }) {
  if (model.inbox.dropping) return <Drop model={model} dropping={model.inbox.dropping} />;
  const detail = model.loaded?.detail;
  switch (model.dialog) {
    case "help":
      return <Help model={model} />;
    case "clear":
      return <Clear model={model} />;
    case "export":
      return model.selected ? <Export model={model} id={model.selected} /> : null;
    case "edit":
      return detail ? <Edit model={model} detail={detail} /> : null;
    case null:
      return null;
  }
}

const KEYS = [
  ["j k ↓ ↑", "next, previous request"],
  ["Enter", "go to the request"],
  ["Esc", "back"],
  ["/", "search"],
  ["r", "replay: send it again as it was"],
  ["e", "edit and replay"],
  ["c", "compare with another one"],
  ["x", "export: copy or save"],
  ["g", "one row for each event"],
  ["p", "let the list stand still"],
  ["?", "this help"],
] as const;

const WORDS = [
  ["provider:stripe", "who sent it"],
  ["type:invoice.*", "the event's type; a * stands for anything"],
  ["status:5xx,404,error", "one of several answers; also pending"],
  ["method:POST", "the method"],
  ["path:/hooks/*", "where it went"],
  ["verdict:bad_signature", "what was found of its signature"],
  ["event:evt_1 id:01K…", "one event, one request"],
  ["-path:/health", "all but these"],
  ['refund "two words"', "anywhere, also in bodies"],
] as const;

function Help({ model }: { model: Model }) {
  return (
    <Frame close={() => model.open(null)} title="Keys and search words">
      <div class="help">
        <Table rows={KEYS} />
        <Table rows={WORDS} />
      </div>
    </Frame>
  );
}

function Table({ rows }: { rows: readonly (readonly [string, string])[] }) {
  return (
    <table>
      <tbody>
        {rows.map(([key, words]) => (
          <tr key={key}>
            <th scope="row">
              <kbd>{key}</kbd>
            </th>
            <td>{words}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Clear({ model }: { model: Model }) {
  const clear = () => {
    model.open(null);
    void model.clear();
  };
  return (
    <Frame close={() => model.open(null)} title="Forget all requests?">
      <p>All that the client has recorded is deleted, for every tunnel. This cannot be undone.</p>
      <div class="choices">
        <button type="button" autofocus onClick={() => model.open(null)}>
          Keep them
        </button>
        <button type="button" class="danger" onClick={clear}>
          Forget all
        </button>
      </div>
    </Frame>
  );
}

function Drop({ model, dropping }: { model: Model; dropping: Dropping }) {
  const { inbox } = model;
  return (
    <Frame title="Forget webhooks?" close={() => inbox.keep()}>
      <p>The relay deletes {dropping.words}. What was not delivered never will be. This cannot be undone.</p>
      <div class="choices">
        <button type="button" autofocus onClick={() => inbox.keep()}>
          Keep
        </button>
        <button type="button" class="danger" onClick={() => void inbox.dropNow()}>
          Forget
        </button>
      </div>
    </Frame>
  );
}

const COPIED = [
  ["curl", "curl"],
  ["httpie", "HTTPie"],
  ["fetch", "fetch (JavaScript)"],
  ["python", "Python (requests)"],
  ["http", "raw HTTP"],
  ["json", "JSON"],
] as const;

const SAVED = [
  ["har", "HAR"],
  ["fixture", "fixture"],
  ["http", "raw HTTP"],
] as const;

function Export({ model, id }: { model: Model; id: string }) {
  const [secrets, setSecrets] = useState(false);
  const take = async (form: string, use: (file: { blob: Blob; name: string }) => Promise<void>) => {
    try {
      await use(await exported(id, form, secrets));
    } catch (error) {
      model.say(ApiError.describe(error), "bad");
    }
    model.open(null);
  };
  const onto = (form: string, name: string) =>
    take(form, async ({ blob }) => copy(model, await blob.text(), `it as ${name}`));
  const into = (form: string) => take(form, async ({ blob, name }) => save(blob, name));
  const choices = [
    ...COPIED.map(([form, name]) => ({ name, act: () => onto(form, name), saves: false })),
    ...SAVED.map(([form, name]) => ({ name, act: () => into(form), saves: true })),
  ];
  const button = ({ name, act }: (typeof choices)[number], key: number) => (
    <button key={key} type="button" autofocus={key === 1} onClick={() => void act()}>
      <kbd>{key}</kbd> {name}
    </button>
  );
  const keyed = (event: KeyboardEvent) => void choices[Number(event.key) - 1]?.act();
  return (
    <Frame close={() => model.open(null)} title="Export" onKey={keyed}>
      <h3>Copy as</h3>
      <div class="choices">{choices.map((choice, at) => !choice.saves && button(choice, at + 1))}</div>
      <h3>Save as</h3>
      <div class="choices">{choices.map((choice, at) => choice.saves && button(choice, at + 1))}</div>
      <label class="check">
        <input type="checkbox" checked={secrets} onChange={(event) => setSecrets(event.currentTarget.checked)} />
        With its secrets: Authorization, cookies and the like are masked otherwise
      </label>
    </Frame>
  );
}

function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The download has its own hold on the bytes by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A body that is larger is sent as it was, because a text field of that size is of no use. */
const MOST_EDITED = 262_144;

function Edit({ model, detail }: { model: Model; detail: Detail }) {
  const { request } = detail;
  const body = read(request);
  const isEditable = request.body_size <= MOST_EDITED && !request.body_truncated;
  const before = {
    method: detail.method,
    path: detail.path,
    headers: linesOf(request.headers),
    body: asField(body.text ?? request.body_base64 ?? ""),
  };
  const [now, setNow] = useState(before);
  const [resign, setResign] = useState("");
  const [problem, setProblem] = useState<string | null>(null);
  const [sending, setSending] = useState(false);
  const change = (field: keyof typeof before) => (event: { currentTarget: HTMLInputElement | HTMLTextAreaElement }) =>
    setNow({ ...now, [field]: event.currentTarget.value });

  const spread = () => {
    const root = json.document(now.body);
    if (root) setNow({ ...now, body: json.pretty(now.body, root) });
    setProblem(root ? null : "The body is no JSON.");
  };
  const send = async () => {
    const changes: Changes = {};
    if (now.method !== before.method) changes.method = now.method.trim();
    if (now.path !== before.path) changes.path = now.path.trim();
    if (now.body !== before.body) {
      if (body.text === null) changes.body_base64 = now.body;
      else changes.body = withLineEnds(body.text, now.body);
    }
    if (now.headers !== before.headers) {
      const headers = headersOf(now.headers);
      if (typeof headers === "string") return setProblem(`No header: ${headers}. Write Name: value on each line.`);
      changes.headers = headers;
    }
    if (resign) changes.resign = resign === "yes";
    setSending(true);
    const done = await model.replay(changes);
    setSending(false);
    if (done) model.open(null);
  };
  return (
    <Frame
      close={() => model.open(null)}
      title="Edit and replay"
      onKey={(event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void send();
      }}
    >
      <form
        class="edit"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <div class="line">
          <label class="short">
            Method
            <input value={now.method} onInput={change("method")} spellcheck={false} required />
          </label>
          <label class="long">
            Path
            <input value={now.path} onInput={change("path")} spellcheck={false} required />
          </label>
        </div>
        <label>
          Headers
          <textarea rows={8} value={now.headers} onInput={change("headers")} spellcheck={false} />
        </label>
        {isEditable ? (
          <label>
            {body.text === null ? "Body, in base64 because it is not text" : "Body"}
            <textarea
              class="wrapped"
              rows={12}
              value={now.body}
              onInput={change("body")}
              spellcheck={false}
              autofocus
            />
            {body.text?.includes("\r") && <span class="reason">Its line ends, CR LF among them, stay as they are.</span>}
          </label>
        ) : (
          <p class="none">The body, {bytes(request.body_size)}, is sent as it was.</p>
        )}
        <div class="line">
          <label class="short">
            Signature
            <select value={resign} onChange={(event) => setResign(event.currentTarget.value)}>
              <option value="">as it needs</option>
              <option value="yes">sign anew</option>
              <option value="no">leave it</option>
            </select>
          </label>
          {isEditable && body.root && (
            <button type="button" onClick={spread} title="Write the body over several lines">
              Format
            </button>
          )}
          {problem && (
            <p class="problem" role="alert">
              {problem}
            </p>
          )}
          <button type="submit" class="primary" disabled={sending} title="Send (Ctrl+Enter)">
            Send
          </button>
        </div>
      </form>
    </Frame>
  );
}

function linesOf(headers: Header[]): string {
  return headers.map(([name, value]) => `${name}: ${value}`).join("\n");
}

/** The headers, or the first line that is none. */
function headersOf(text: string): Header[] | string {
  const headers: Header[] = [];
  for (const line of text.split("\n")) {
    if (!line.trim()) continue;
    const colon = line.indexOf(":", 1);
    if (colon < 0) return line;
    headers.push([line.slice(0, colon).trim(), line.slice(colon + 1).trim()]);
  }
  return headers;
}
