import assert from "node:assert/strict";
import { test } from "node:test";

import type { Header, Message } from "../src/api";
import { type Part, asField, comparable, fields, hexLines, parts, read, withLineEnds, xmlLines } from "../src/body";
import * as diff from "../src/diff";
import { bytes, duration } from "../src/format";
import * as json from "../src/json";

function message(body: string, type = "application/json"): Message {
  return { headers: [["Content-Type", type]], body_size: body.length, body_truncated: false, body };
}

function binary(bytes: Uint8Array, type: string): Message {
  const body_base64 = Buffer.from(bytes).toString("base64");
  return { headers: [["content-type", type]], body_size: bytes.length, body_truncated: false, body_base64 };
}

/** A document as it is found piece by piece. */
function taken(text: string, node: json.Node): unknown {
  if (!json.isContainer(node)) return text.slice(node.start, node.end);
  const found: [string | null, unknown][] = [];
  for (let at = node.start + 1; at >= 0;) {
    const [children, next] = json.children(text, node, 2, at);
    for (const child of children) found.push([child.key, taken(text, child.node)]);
    at = next;
  }
  return found;
}

test("JSON is shown as it was sent", () => {
  const text = ' {"n": 12345678901234567890, "f":1.0 ,"a":[ ],"s":"\\u00e9\\"}","n":null,"o":{"x" : [true,{}]}}\n';
  const root = json.document(text);
  assert.ok(root);
  assert.deepEqual(taken(text, root), [
    ['"n"', "12345678901234567890"],
    ['"f"', "1.0"],
    ['"a"', []],
    ['"s"', '"\\u00e9\\"}"'],
    ['"n"', "null"],
    [
      '"o"',
      [
        [
          '"x"',
          [
            [null, "true"],
            [null, []],
          ],
        ],
      ],
    ],
  ]);
  assert.equal(
    json.pretty('{"a":[1,{"b":2.50}],"c":{}}', json.document('{"a":[1,{"b":2.50}],"c":{}}')!),
    '{\n  "a": [\n    1,\n    {\n      "b": 2.50\n    }\n  ],\n  "c": {}\n}',
  );
});

test("any document comes out of its pieces", () => {
  let seed = 7;
  const random = (below: number) => (seed = (seed * 48_271) % 2_147_483_647) % below;
  const make = (depth: number): unknown => {
    const kind = random(depth > 4 ? 4 : 6);
    if (kind === 0) return random(1_000_000) / 8;
    if (kind === 1) return ['"', "\\", 'a\\"b', "é", "{[", "\n"][random(6)];
    if (kind === 2) return [true, false, null][random(3)];
    if (kind === 3) return "";
    const inner = Array.from({ length: random(5) }, () => make(depth + 1));
    return kind === 4 ? inner : Object.fromEntries(inner.map((value, at) => [`${at}"\\`, value]));
  };
  for (let round = 0; round < 300; round += 1) {
    const value = make(0);
    for (const text of [
      JSON.stringify(value),
      JSON.stringify(value, null, 2),
      ` ${JSON.stringify(value, null, "\t")}\r\n`,
    ]) {
      const root = json.document(text)!;
      assert.deepEqual(JSON.parse(json.pretty(text, root)), value);
      const again = (node: json.Node): unknown => {
        if (!json.isContainer(node)) return JSON.parse(text.slice(node.start, node.end));
        const [children] = json.children(text, node, Infinity);
        if (node.kind === "array") return children.map((child) => again(child.node));
        return Object.fromEntries(children.map((child) => [JSON.parse(child.key!), again(child.node)]));
      };
      assert.deepEqual(again(root), value);
    }
  }
});

test("only so much of a document is open at first", () => {
  const text = JSON.stringify({ small: { a: 1 }, large: Array.from({ length: 1_000 }, (_, id) => ({ id })) });
  const root = json.document(text)!;
  const open = json.opened(text, root, 50, 100);
  assert.ok(open.has(0) && open.has(text.indexOf('{"a"')) && !open.has(text.indexOf("[")));
  const deep = "[".repeat(100_000) + "]".repeat(100_000);
  assert.ok(json.opened(deep, json.document(deep)!, 400, 100).size < 40);
});

test("what hides or reorders its neighbours is shown as what it is", () => {
  assert.equal(json.readable('"\\u202eabc\\u200b\\u0007é"'), '"\\u202eabc\\u200b\\u0007é"');
  assert.equal(json.readable('"\u202eabc"'), '"\\u202eabc"');
});

test("the best view comes first", () => {
  const views = (body: string, type: string) => read(message(body, type)).views;
  assert.deepEqual(views('{"a":1}', "text/plain"), ["json", "text", "hex"]);
  assert.deepEqual(views("{", "application/json"), ["text", "hex"]);
  assert.deepEqual(views("<a/>", "application/soap+xml"), ["xml", "text", "hex"]);
  assert.deepEqual(views("<p>", "text/html"), ["text", "hex"]);
  assert.deepEqual(views("a=1", "application/x-www-form-urlencoded; charset=utf-8"), ["form", "text", "hex"]);
  assert.deepEqual(read(binary(Uint8Array.of(0xff, 0), "application/json")).views, ["hex"]);
  assert.deepEqual(fields("?a=1%202&&b=%3Cx%3E&a=&", 9), [
    [
      ["?a", "1 2"],
      ["b", "<x>"],
      ["a", ""],
    ],
    false,
  ]);
});

test("XML is set in lines, also where it is none", () => {
  const lines = [
    '<?xml version="1.0"?>',
    '<a x="1">',
    "  <b>one</b>",
    "  <c/>",
    "  <d>",
    "    <e>2</e>",
    "  </d>",
    "</a>",
  ];
  const text = '<?xml version="1.0"?><a x="1"><b>one</b><c/><d><e>2</e></d></a>';
  assert.deepEqual(xmlLines(text, Infinity), [lines, false]);
  // A line that has been begun is ended.
  assert.deepEqual(xmlLines(text, 36), [lines.slice(0, 3), true]);
  for (const odd of ["<a", "</a></b>", "<<<<", "<!--", "a > b", "<![CDATA[<x>]]>"])
    assert.equal(xmlLines(odd, Infinity)[0].join(""), odd);
  // Each of these would take minutes, were it looked at once for each of its characters.
  for (const odd of ["<", "<!--", "<a>", "<![CDATA["])
    assert.ok(xmlLines(odd.repeat(200_000), Infinity)[0].length > 0);
});

test("a multipart body is taken apart", () => {
  const head = (name: string) => `Content-Disposition: form-data; name="${name}"`;
  const start = `--x\r\n${head("a")}\r\n\r\none\r\n--x\r\n${head("é")}\r\n\r\n`;
  const body = Buffer.concat([Buffer.from(start), Buffer.of(0xff, 0x0a, 0), Buffer.from("\r\n--x--\r\n")]);
  const type = "multipart/form-data; boundary=x";
  const found = parts(binary(body, type), body, 9);
  const expected: Part[] = [
    { head: head("a"), text: "one", size: 3 },
    { head: head("é"), text: null, size: 3 },
  ];
  assert.deepEqual(found, [expected, false]);
  assert.deepEqual(parts(binary(body, type), body, 1), [expected.slice(0, 1), true]);
  assert.deepEqual(read(binary(body, type)).views, ["parts", "hex"]);
  assert.deepEqual(read(binary(body, `${type}${"x".repeat(70)}`)).views, ["hex"], "no boundary is so long");
  const cut = body.subarray(0, 50);
  assert.ok(parts(binary(cut, type), cut, 9)[0].length < 2);
});

test("no more is taken apart than is looked at", () => {
  const most = 10 * 1024 * 1024;
  const fill = (piece: string) => piece.repeat(most / piece.length);
  const took = (work: () => unknown[]) => {
    const before = process.memoryUsage().heapUsed;
    assert.ok(work().length <= 1_000);
    return (process.memoryUsage().heapUsed - before) / most;
  };
  const form = fill("a&");
  const xml = fill("<>");
  const mixed = message(fill("--x\n"), "multipart/mixed; boundary=x");
  const bytes = read(mixed).bytes();
  const types = ["application/x-www-form-urlencoded", "application/xml"];
  for (const [name, work] of Object.entries({
    fields: () => fields(form, 100)[0],
    empty: () => fields(fill("&"), 100)[0],
    lines: () => xmlLines(xml, 32_768)[0],
    parts: () => parts(mixed, bytes, 100)[0],
  }))
    assert.ok(took(work) < 4, name);
  for (const type of types) {
    const body = type.endsWith("xml") ? xml : form;
    assert.ok(comparable(read(message(body, type)), 2 * 1024 * 1024).length < 200_000, type);
  }
});

test("bytes are shown in hex", () => {
  const line = "00000010  41 42 00 ff                                       AB..";
  const all = new Uint8Array(20);
  all.set([0x41, 0x42, 0, 0xff], 16);
  assert.equal(hexLines(all, 16, 32), line);
});

test("lines are compared the shortest way", () => {
  const told = (a: string, b: string) =>
    diff
      .lines([...a], [...b])
      .map(({ side, text }) => ({ both: "", first: "-", second: "+" })[side] + text)
      .join(" ");
  assert.equal(told("abc", "abc"), "a b c");
  assert.equal(told("", "ab"), "+a +b");
  assert.equal(
    told("abcabba", "cbabac")
      .split(" ")
      .filter((word) => word.length > 1).length,
    5,
  );
  assert.equal(told("axb", "ayb"), "a -x +y b");
  let seed = 3;
  const random = (below: number) => (seed = (seed * 48_271) % 2_147_483_647) % below;
  for (let round = 0; round < 500; round += 1) {
    const [a, b] = [0, 0].map(() => Array.from({ length: random(12) }, () => "abc"[random(3)]!));
    const found = diff.lines(a!, b!);
    const side = (other: string) => found.filter((line) => line.side !== other).map((line) => line.text);
    assert.deepEqual([side("second"), side("first")], [a, b]);
  }
  const many = Array.from({ length: 20_000 }, (_, at) => `a${at}`);
  assert.equal(
    diff.lines(
      many,
      many.map((line) => `b${line}`),
    ).length,
    40_000,
  );
});

test("headers are compared by name, in any case and however often", () => {
  const first: Header[] = [
    ["Host", "a"],
    ["X-A", "1"],
    ["x-a", "2"],
    ["Date", "x"],
  ];
  const second: Header[] = [
    ["host", "a"],
    ["x-a", "1"],
    ["X-New", "n"],
    ["date", "x"],
  ];
  assert.deepEqual(diff.headers(first, second), [
    { name: "x-a", first: "1\n2", second: "1" },
    { name: "x-new", first: null, second: "n" },
  ]);
});

test("documents are compared by what they say", () => {
  const compare = (a: string, b: string) => {
    const side = (text: string) => ({ text, node: json.document(text)! });
    return diff.documents(side(a), side(b), 100).map(({ name, first, second }) => `${name} ${first} ${second}`);
  };
  assert.deepEqual(compare('{"a":1,"b":[1,2]}', '{ "b" : [1, 2], "a": 1.0 }'), []);
  assert.deepEqual(compare('{"a":"\\u00e9"}', '{"a":"é"}'), []);
  assert.deepEqual(compare('{"a":1,"b/~":2}', '{"a":2,"c":null}'), ["/a 1 2", "/b~1~0 2 null", "/c null null"]);
  assert.deepEqual(compare("[1,2,3]", "[1,9,2,3]"), ["/1 null 9"]);
  assert.deepEqual(compare('[{"x":1},2]', '[{"x":2},2]'), ["/0/x 1 2"]);
  assert.deepEqual(compare("9007199254740993", "9007199254740992"), [" 9007199254740993 9007199254740992"]);
  assert.deepEqual(compare("[]", "{}"), [" [] {}"]);
  const deep = (end: string) => "[".repeat(5_000) + end + "]".repeat(5_000);
  assert.equal(compare(deep("1"), deep("2")).length, 1);
});

test("what is compared as lines is laid out first", () => {
  const lines = (body: string, type: string) => comparable(read(message(body, type)), 1_000);
  assert.deepEqual(lines('{"a":1}', "application/json"), ["{", '  "a": 1', "}"]);
  assert.deepEqual(lines("a=1&b=2", "application/x-www-form-urlencoded"), ["a = 1", "b = 2"]);
  assert.deepEqual(lines("one\ntwo", "text/plain"), ["one", "two"]);
});

test("figures are short", () => {
  assert.deepEqual([0.25, 9.96, 34.4, 999.6, 3_800, 59_960, 125_000].map(duration), [
    "0.3 ms",
    "10 ms",
    "34 ms",
    "1 s",
    "3.8 s",
    "1 min",
    "2 min 5 s",
  ]);
  assert.deepEqual([0, 1023, 1536, 10 * 1024 * 1024].map(bytes), ["0 B", "1023 B", "1.5 KiB", "10 MiB"]);
});

test("line ends stay as they were where a text is changed in a field", () => {
  const crlf = "--x\r\na: b\r\n\r\none\ntwo\r\n--x--\r\n";
  const change = (before: string, from: string, to: string) => withLineEnds(before, asField(before).replace(from, to));
  assert.equal(asField("a\r\nb\rc\nd"), "a\nb\nc\nd");
  assert.equal(change(crlf, "", ""), crlf);
  assert.equal(change(crlf, "one", "1"), crlf.replace("one", "1"));
  assert.equal(change(crlf, "two", "2\n3\n4"), crlf.replace("two", "2\r\n3\r\n4"));
  assert.equal(
    withLineEnds(crlf, "--x\na: b\nc: d\n\none\n2\n--x--\n"),
    crlf.replace("b\r\n", "b\r\nc: d\r\n").replace("two", "2"),
  );
  assert.equal(change(crlf, "a: b\n", ""), crlf.replace("a: b\r\n", ""));
  assert.equal(change(crlf, "--x--\n", "--x--"), crlf.replace("--x--\r\n", "--x--"));
  assert.equal(change(crlf, "--x\n", "new\n--x\n"), `new\r\n${crlf}`);
  assert.equal(change("a\nb", "b", "c\nd"), "a\nc\nd");
  assert.equal(change("a\rb\rc", "b", "B"), "a\rB\rc");
  assert.equal(withLineEnds("a\r\nb", "x\ny\nz"), "x\r\ny\r\nz");
  assert.equal(withLineEnds("a\r\nb", ""), "");
  assert.equal(withLineEnds("", "a\nb"), "a\nb");
});
