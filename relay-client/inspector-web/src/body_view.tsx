// A body, in the way that suits it or another one. Everything in it is text, and no more of it is laid out than is
// looked at.

import { useMemo, useState } from "preact/hooks";

import type { Message } from "./api";
import { type Body, type View, fields, hexLines, parts, read, xmlLines } from "./body";
import { bytes, number } from "./format";
import * as json from "./json";
import type { Model } from "./model";
import { Copy, Long, More } from "./widgets";

const NAMES: Record<View, string> = {
  json: "JSON",
  xml: "XML",
  form: "Form",
  parts: "Parts",
  text: "Text",
  hex: "Hex",
};

/** What is shown of a text at first, in characters. */
const CHUNK = 32_768;

/** What is shown of a list at first, and once more for each "more". */
const ITEMS = 100;

interface Props {
  model: Model;
  message: Message;
  name: string;
  url: string;
}

export function BodyView({ model, message, name, url }: Props) {
  const body = useMemo(() => read(message), [message]);
  const [chosen, choose] = useState<View | null>(null);
  const view = chosen && body.views.includes(chosen) ? chosen : body.views[0]!;
  if (!message.body_size) return <p class="none">No body</p>;
  const kept = body.text === null ? body.bytes().length : null;
  return (
    <div class="body">
      <div class="ways">
        <span class="name">
          Body <span class="reason">{bytes(message.body_size)}</span>
        </span>
        <div class="tabs" role="radiogroup" aria-label={`How to show the ${name.toLowerCase()}`}>
          {body.views.map((way) => (
            <button key={way} type="button" role="radio" aria-checked={way === view} onClick={() => choose(way)}>
              {NAMES[way]}
            </button>
          ))}
        </div>
        {body.text !== null && <Copy model={model} text={body.text} what={`the ${name.toLowerCase()}`} />}
        <a class="button" href={url} download="" title="Save its bytes">
          Save
        </a>
      </div>
      {message.body_truncated && (
        <p class="problem">
          Of {bytes(message.body_size)} only the beginning was kept{kept ? `: ${bytes(kept)}` : ""}.
        </p>
      )}
      <Shown body={body} view={view} message={message} />
    </div>
  );
}

function Shown({ body, view, message }: { body: Body; view: View; message: Message }) {
  const text = body.text ?? "";
  switch (view) {
    case "json":
      return <JsonView text={text} root={body.root!} />;
    case "xml":
      return <XmlView text={text} />;
    case "form":
      return <FormView text={text} />;
    case "parts":
      return <PartsView body={body} message={message} />;
    case "text":
      return (
        <pre class="text">
          <Long text={text} chunk={CHUNK} />
        </pre>
      );
    case "hex":
      return <HexView body={body} />;
  }
}

function HexView({ body }: { body: Body }) {
  const [shown, setShown] = useState(4_096);
  const all = body.bytes();
  return (
    <pre class="hex">
      {hexLines(all, 0, shown)}
      {all.length > shown && <More onClick={() => setShown(4 * shown)}>{bytes(all.length - shown)} more</More>}
    </pre>
  );
}

function XmlView({ text }: { text: string }) {
  const [shown, setShown] = useState(CHUNK);
  const [lines, isMore] = useMemo(() => {
    const [lines, isMore] = xmlLines(text, shown);
    const all = lines.join("\n");
    return [all.slice(0, shown), isMore || all.length > shown] as const;
  }, [text, shown]);
  return (
    <pre class="text">
      {lines}
      {isMore && <More onClick={() => setShown(4 * shown)}>more</More>}
    </pre>
  );
}

function FormView({ text }: { text: string }) {
  const [shown, setShown] = useState(ITEMS);
  const [all, isMore] = useMemo(() => fields(text, shown), [text, shown]);
  return (
    <>
      <table class="headers">
        <tbody>
          {all.map(([name, value], index) => (
            <tr key={index}>
              <th scope="row">
                <Long text={name} chunk={200} />
              </th>
              <td>
                <Value text={value} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {isMore && <More onClick={() => setShown(shown + 5 * ITEMS)}>more fields</More>}
    </>
  );
}

/** A field of a form, which some senders fill with JSON. */
function Value({ text }: { text: string }) {
  const root = useMemo(() => (/^\s*[[{]/.test(text) ? json.document(text) : null), [text]);
  return root ? <JsonView text={text} root={root} /> : <Long text={text} chunk={2_000} />;
}

function PartsView({ body, message }: { body: Body; message: Message }) {
  const [shown, setShown] = useState(ITEMS);
  const [all, isMore] = useMemo(() => parts(message, body.bytes(), shown), [message, shown]);
  return (
    <>
      {all.map(({ head, text, size }, index) => (
        <div key={index} class="part">
          <pre class="text">
            <Long text={head} chunk={2_000} />
          </pre>
          {text === null ? <p class="none">{bytes(size)} that are not text</p> : <Value text={text} />}
        </div>
      ))}
      {isMore && <More onClick={() => setShown(shown + 5 * ITEMS)}>more parts</More>}
    </>
  );
}

/** Lines of a document that are open at first. */
const OPEN_LINES = 400;

function JsonView({ text, root }: { text: string; root: json.Node }) {
  const open = useMemo(() => json.opened(text, root, OPEN_LINES, ITEMS), [text, root]);
  return (
    <div class="json">
      <JsonNode text={text} node={root} name={null} open={open} last />
    </div>
  );
}

interface NodeProps {
  text: string;
  node: json.Node;
  name: string | null;
  /** Those that are open at first, by where they start. */
  open: Set<number>;
  last: boolean;
}

function JsonNode({ text, node, name, open, last }: NodeProps) {
  const [isOpen, setOpen] = useState(open.has(node.start));
  const label = name !== null && (
    <>
      <span class="key">
        <Long text={json.readable(name)} chunk={200} />
      </span>
      {": "}
    </>
  );
  const comma = last ? "" : ",";
  if (!json.isContainer(node) || json.isEmpty(text, node)) {
    const literal = text.slice(node.start, node.end);
    return (
      <div class="leaf">
        {label}
        {node.kind === "string" ? (
          <StringView literal={literal} />
        ) : (
          <Long text={literal} chunk={200} class={node.kind} />
        )}
        {comma}
      </div>
    );
  }
  const [begin, end] = node.kind === "object" ? ["{", "}"] : ["[", "]"];
  return (
    <div class="branch">
      <button type="button" class="fold" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
        {label}
        {begin}
        {!isOpen && (
          <>
            <span class="reason">{summaryOf(text, node)}</span>
            {end}
            {comma}
          </>
        )}
      </button>
      {isOpen && (
        <>
          <JsonChildren text={text} node={node} open={open} />
          <div class="close">
            {end}
            {comma}
          </div>
        </>
      )}
    </div>
  );
}

function JsonChildren({ text, node, open }: { text: string; node: json.Node; open: Set<number> }) {
  const [most, setMost] = useState(ITEMS);
  const [found, next] = useMemo(() => json.children(text, node, most), [text, node, most]);
  return (
    <div class="children">
      {found.map((child, index) => (
        <JsonNode
          key={child.node.start}
          text={text}
          node={child.node}
          name={child.key}
          open={open}
          last={next < 0 && index === found.length - 1}
        />
      ))}
      {next >= 0 && <More onClick={() => setMost(most + 5 * ITEMS)}>more</More>}
    </div>
  );
}

/** Larger ones are not read only to say how many are in them. */
const MOST_COUNTED = 65_536;

function summaryOf(text: string, node: json.Node): string {
  const size = node.end - node.start;
  if (size > MOST_COUNTED) return ` ${bytes(size)} `;
  const count = json.children(text, node, Infinity)[0].length;
  if (!count) return "";
  return node.kind === "object" ? ` ${number(count)} ${count === 1 ? "name" : "names"} ` : ` ${number(count)} `;
}

function StringView({ literal }: { literal: string }) {
  // Half an escape at the cut is nothing that could be read, so what is cut stays as it was sent.
  const words = useMemo(() => (literal.length > 200_000 ? literal : json.readable(literal)), [literal]);
  return <Long text={words} chunk={2_000} class="string" />;
}
