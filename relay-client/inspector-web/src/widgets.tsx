// Small parts that stand in several places.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { number } from "./format";
import type { Model } from "./model";

/** Puts a text on the clipboard. */
export async function copy(model: Model, text: string, what: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    model.say(`Copied ${what}`, "good");
  } catch {
    model.say(`The browser does not let this page copy ${what}`, "bad");
  }
}

interface CopyProps {
  model: Model;
  text: string;
  what: string;
  class?: string;
  children?: ComponentChildren;
}

/** A button that copies, named by what it copies. */
export function Copy({ model, text, what, class: style = "copy", children = "Copy" }: CopyProps) {
  return (
    <button type="button" class={style} title={`Copy ${what}`} onClick={() => void copy(model, text, what)}>
      {children}
    </button>
  );
}

/** A link, where it is one that a page may lead to. */
export function Link({ url, children }: { url: string; children: ComponentChildren }) {
  if (!/^https?:\/\//i.test(url)) return <span>{children}</span>;
  return (
    <a href={url} target="_blank" rel="noopener noreferrer">
      {children}
    </a>
  );
}

/** A long text, as much at a time as a browser lays out quickly. */
export function Long({ text, chunk, class: style }: { text: string; chunk: number; class?: string }) {
  const [shown, setShown] = useState(chunk);
  const rest = text.length - shown;
  if (rest <= 0) return <span class={style}>{text}</span>;
  return (
    <>
      <span class={style}>{text.slice(0, shown)}</span>
      <More onClick={() => setShown(shown + 4 * chunk)}>{number(rest)} more characters</More>
    </>
  );
}

export function More({ onClick, children }: { onClick(): void; children: ComponentChildren }) {
  return (
    <button type="button" class="more" onClick={onClick}>
      {children}
    </button>
  );
}
