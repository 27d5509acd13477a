// Small parts that stand in several places.

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { number } from "./format";

/** Who tells a person what has come of something. */
export interface Teller {
  say(text: string, kind: "good" | "bad"): void;
}

/** Puts a text on the clipboard. */
export async function copy(model: Teller, text: string, what: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    model.say(`Copied ${what}`, "good");
  } catch {
    model.say(`The browser does not let this page copy ${what}`, "bad");
  }
}

interface CopyProps {
  model: Teller;
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

interface FrameProps {
  title: string;
  close(): void;
  onKey?(event: KeyboardEvent): void;
  children: ComponentChildren;
}

/** What stands above the page until it is closed. The focus goes back to where it was. */
export function Frame({ title, close, onKey, children }: FrameProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  // At once: the next key is for it.
  useLayoutEffect(() => {
    const before = document.activeElement;
    dialog.current!.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby="dialog-title" onClose={close} onKeyDown={onKey}>
      <div class="heading">
        <h2 id="dialog-title">{title}</h2>
        <button type="button" onClick={close} aria-label="Close" title="Close (Esc)">
          ✕
        </button>
      </div>
      {children}
    </dialog>
  );
}
