// Building elements. Text always goes through text nodes, so nothing that somebody wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const HUES = 10;

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `dataset`, `onclick`, attributes) and children (strings become text). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function show(element, visible) {
  element.hidden = !visible;
}

/** Set text only where it changes, so that live regions and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Up to two letters that stand for a name. */
export function initials(name) {
  const words = name.trim().split(/[\s._-]+/u).filter((word) => /[\p{L}\p{N}]/u.test(word));
  if (words.length === 0) return [...name.trim()][0] ?? "?";
  const first = (word) => [...word].find((letter) => /[\p{L}\p{N}]/u.test(letter)) ?? "";
  return (first(words[0]) + (words.length > 1 ? first(words[words.length - 1]) : "")).toLocaleUpperCase();
}

/** A class that gives a name its colour, always the same one. */
export function hue(name) {
  let hash = 2166136261;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  return `hue-${(hash >>> 0) % HUES}`;
}

export function paintAvatar(element, name) {
  element.className = `avatar ${hue(name)}`;
  element.textContent = initials(name);
  return element;
}

export const avatar = (name) => paintAvatar(h("span", { "aria-hidden": "true" }), name);

// -- time, in the reader's own zone and language

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });

export const clockTime = (date) => clock.format(date);
export const fullTime = (date) => full.format(date);
export const sameDay = (a, b) => a.toDateString() === b.toDateString();

export function dayName(date, now = new Date()) {
  if (sameDay(date, now)) return "Today";
  const yesterday = new Date(now);
  yesterday.setDate(now.getDate() - 1);
  if (sameDay(date, yesterday)) return "Yesterday";
  return (date.getFullYear() === now.getFullYear() ? dayOfYear : dayAndYear).format(date);
}

/** A server's timestamp as a Date; now if it is none. */
export function parseTime(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? new Date() : date;
}

/** "1 message", "2 messages". */
export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

let announced = 0;

/** Have a screen reader say something, once it has finished what it says. */
export function announce(text) {
  const region = $("announce");
  const line = h("p", {}, text);
  region.append(line);
  while (region.childElementCount > 5) region.firstElementChild.remove();
  const mine = ++announced;
  setTimeout(() => {
    if (mine === announced) region.replaceChildren();
    else line.remove();
  }, 10_000);
}
