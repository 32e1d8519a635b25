// What is in a text: mentions, links, found words. Pure: text in, parts out; nothing here knows of a document.

/** As the server reads mentions: `@name`, `@[any name]`, and nothing that looks like a mail address. */
const MENTION = /(?<![\p{L}\p{N}_@])@(?:\[([^[\]\r\n\u2028\u2029]{1,128})\]|([\p{L}\p{N}_.-]*[\p{L}\p{N}_]))/gu;
const PLAIN_NAME = /^[\p{L}\p{N}_.-]*[\p{L}\p{N}_]$/u;
/** No control or format characters: an address must read as what it is, in whatever direction. */
const LINK = /\bhttps?:\/\/[^\s<>"'`\p{Cc}\p{Cf}]{1,2000}/giu;
const JUMBO = /^(?:(?:\p{Extended_Pictographic}|\p{Regional_Indicator}{2})[\p{Emoji_Modifier}\u200d\ufe0f]*){1,12}$/u;

export const EVERYONE = "@room";

/** How to mention somebody; null if that name cannot be mentioned. */
export function mentionOf(name) {
  if (name === EVERYONE) return EVERYONE;
  if (PLAIN_NAME.test(name) && name !== "room") return `@${name}`;
  return /[[\]\r\n\u2028\u2029]/.test(name) ? null : `@[${name}]`;
}

/**
 * A message's text as parts, in order: {kind: "text", text}, {kind: "link", text, url}, {kind: "mention", text, name}.
 * `mentions`: the names that the server took for mentions; all else that looks like one is text.
 */
export function partsOf(text, mentions = []) {
  const found = [...linksIn(text), ...mentionsIn(text, new Set(mentions))].sort((a, b) => a.from - b.from);
  const parts = [];
  let at = 0;
  for (const { from, to, part } of found) {
    if (from < at) continue; // a mention inside of a link is part of it
    if (from > at) parts.push({ kind: "text", text: text.slice(at, from) });
    parts.push(part);
    at = to;
  }
  if (at < text.length) parts.push({ kind: "text", text: text.slice(at) });
  return parts;
}

function linksIn(text) {
  const found = [];
  for (const match of text.matchAll(LINK)) {
    const address = withoutTail(match[0]);
    const url = URL.canParse(address) ? new URL(address) : null;
    if (!url?.hostname) continue;
    const part = { kind: "link", text: address, url: url.href };
    found.push({ from: match.index, to: match.index + address.length, part });
  }
  return found;
}

/** Without what ends a sentence, or closes a bracket that was opened before the address. */
function withoutTail(address) {
  for (;;) {
    const last = address.at(-1);
    const opening = { ")": "(", "]": "[", "}": "{" }[last];
    const count = (letter) => address.split(letter).length;
    if (!".,;:!?*_~".includes(last) && !(opening && count(last) > count(opening))) return address;
    address = address.slice(0, -1);
  }
}

function mentionsIn(text, names) {
  const found = [];
  if (names.size === 0) return found;
  for (const match of text.matchAll(MENTION)) {
    const name = match[1] ?? (match[2] === "room" ? EVERYONE : match[2]);
    if (!names.has(name)) continue;
    const shown = name === EVERYONE ? name : `@${name}`;
    found.push({ from: match.index, to: match.index + match[0].length, part: { kind: "mention", text: shown, name } });
  }
  return found;
}

/** The mention that is being written at the end of what stands before the cursor: {from, query}, or null. */
export function mentionAt(before) {
  const match = /(?<![\p{L}\p{N}_@])@(\[?)([^@[\]\r\n]{0,40})$/u.exec(before);
  if (!match) return null;
  const [, bracket, query] = match;
  if (!bracket && /\s/.test(query)) return null;
  return { from: match.index, query };
}

/** Whether a text is a few emoji and nothing else. */
export const isJumbo = (text) => text.length <= 60 && JUMBO.test(text.replace(/\s/g, ""));

/**
 * What was found of a text: parts {text, marked}, at most `length` characters beginning a little before the first mark.
 * `marks` count characters, where JavaScript's indices count UTF-16 units.
 */
export function markedParts(text, marks, length = 280) {
  const letters = [...text];
  const lead = Math.max(0, (marks[0]?.[0] ?? 0) - 50);
  const from = lead > 20 ? lead : 0;
  const to = Math.min(letters.length, from + length);
  const parts = from > 0 ? [{ text: "…", marked: false }] : [];
  let at = from;
  const add = (upto, marked) => {
    if (upto > at) parts.push({ text: letters.slice(at, upto).join(""), marked });
    at = Math.max(at, upto);
  };
  for (const [first, last] of marks) {
    if (first >= to) break;
    add(first, false);
    add(Math.min(last, to), true);
  }
  add(to, false);
  if (to < letters.length) parts.push({ text: "…", marked: false });
  return parts;
}

/** The beginning of a text, in one line. */
export function excerpt(text, length = 120) {
  const line = text.slice(0, length * 4).replace(/\s+/g, " ").trim();
  const letters = [...line];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : line;
}

/** What a server says begins without a capital and ends without a stop, and may name a path. */
export function sentence(text) {
  const plain = String(text).replace(/ - at `\$.*$/, "");
  return `${plain.charAt(0).toUpperCase()}${plain.slice(1)}${/[.!?]$/.test(plain) ? "" : "."}`;
}

/** "1 message", "2 messages". */
export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** A count as a badge shows it. */
export const short = (count) => (count > 999 ? "999+" : String(count));

/** "3.4 MB". */
export function sizeOf(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let at = 0;
  let size = bytes;
  for (; size >= 1000 && at < units.length - 1; at++) size /= 1000;
  return `${at && size < 10 ? size.toFixed(1) : Math.round(size)} ${bytes === 1 ? "byte" : units[at]}`;
}

/** Seconds as people say them: "45 s", "10 min", "2 h", "3 d". */
export function duration(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3570) return `${Math.round(seconds / 60)} min`;
  if (seconds < 84_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** An id made of a name: "Tea & Cake" → "tea-cake". */
export function idOf(name) {
  const plain = name.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  return plain.replace(/[^a-z0-9_.]+/g, "-").replace(/^[-.]+|-+$/g, "").slice(0, 64);
}

/** randomUUID is there only in secure contexts, and plain http on a network is none. */
export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
