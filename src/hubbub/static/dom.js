// Building elements. Text always goes through text nodes, so nothing that somebody wrote is ever read as HTML.

import { clockTime, fullTime, shortTime } from "./time.js";

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
    else if (name === "value") element.value = value;
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

/** A button that shows only a picture; `label` is what it is called. */
export function iconButton(name, label, properties = {}) {
  return h("button", { class: "icon-button small", type: "button", "aria-label": label, title: label, ...properties }, icon(name));
}

export function show(element, visible) {
  element.hidden = !visible;
}

/** Set text only where it changes, so that live regions and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Put children into an element in this order, leaving those alone that stand where they belong. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
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

/** A point in time; `long` names the day as well, where it is not today. */
export function timeOf(date, long = false) {
  return h("time", { datetime: date.toISOString(), title: fullTime(date) }, long ? shortTime(date) : clockTime(date));
}

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

/** A word at the bottom of the page that goes by itself: something was done, or could not be. */
export function flash(text, kind = "info") {
  const line = h("p", { class: `flash ${kind}`, role: kind === "error" ? "alert" : "status" }, text);
  $("flashes").append(line);
  while ($("flashes").childElementCount > 3) $("flashes").firstElementChild.remove();
  setTimeout(() => line.remove(), kind === "error" ? 8_000 : 4_000);
}
