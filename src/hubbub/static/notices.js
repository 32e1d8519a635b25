// Notifications: a toast when one arrives, and a bell that keeps them.

import { $, h, icon, setText, show } from "./dom.js";
import { plural } from "./text.js";
import { clockTime, dayName, fullTime, parseTime, sameDay } from "./time.js";

const KEPT = 50;
const TOASTS = 3; // shown at once; an older one makes room
const SHOWN = 7_000; // ms; errors stay until they are closed

const TYPES = { info: "Info", success: "Success", warning: "Warning", error: "Error" };

export class Notices {
  /**
   * `onopen(open)` is called when the list opens or closes; `onseen()` when what is there was looked at; `onfollow(metadata)` when the
   * user wants to see the message that a notification is about.
   */
  constructor({ onopen, onseen, onfollow }) {
    this.items = []; // newest first
    this.known = new Set();
    this.unread = 0;
    this.onopen = onopen;
    this.onseen = onseen;
    this.onfollow = onfollow;
    $("bell").addEventListener("click", () => this.toggle());
    $("notices-close").addEventListener("click", () => this.toggle(false));
    $("notices-clear").addEventListener("click", () => {
      this.items = [];
      this.#paint();
      $("notices").focus();
    });
    this.#paint();
  }

  get open() {
    return !$("notices").hidden;
  }

  toggle(open = !this.open) {
    if (open === this.open) return;
    show($("notices"), open);
    $("bell").setAttribute("aria-expanded", String(open));
    this.onopen(open);
    if (open) {
      this.#seen();
      $("toasts").replaceChildren();
      $("notices").focus();
    } else {
      for (const item of this.items) item.fresh = false;
      this.#paint();
      $("bell").focus();
    }
  }

  forget() {
    this.items = [];
    this.known.clear();
    this.unread = 0;
    $("toasts").replaceChildren();
    show($("notices"), false);
    $("bell").setAttribute("aria-expanded", "false");
    this.#paint();
  }

  /** One that arrived now or, with `old`, one of the past. Returns false if it was here already. */
  add(data, { everyone = false, old = false, seen = false } = {}) {
    if (data.id && this.known.has(data.id)) return false;
    if (data.id) this.known.add(data.id);
    const type = Object.hasOwn(TYPES, data.notification_type) ? data.notification_type : "info";
    const item = {
      type,
      title: String(data.title),
      text: String(data.message),
      at: parseTime(data.timestamp),
      metadata: data.metadata && Object.keys(data.metadata).length ? data.metadata : null,
      everyone,
      fresh: !seen,
    };
    this.items.unshift(item);
    this.items.sort((a, b) => b.at - a.at);
    this.items.length = Math.min(this.items.length, KEPT);
    if (!seen) this.unread++;
    if (this.open) this.#seen();
    this.#paint();
    if (!old && !this.open) this.#toast(item);
    return true;
  }

  #seen() {
    this.unread = 0;
    this.onseen();
    this.#count();
  }

  #toast(item) {
    const close = h("button", { class: "icon-button small", type: "button", "aria-label": "Close this notification" }, icon("close"));
    const toast = h("div", {
      class: `toast ${item.type}`, dataset: { type: item.type }, role: item.type === "error" ? "alert" : "status",
    }, h("span", { class: "type-mark" }, icon(item.type)), content(item, () => {
      end();
      this.onfollow(item.metadata);
    }), close);
    const end = () => {
      clearTimeout(timer);
      const focused = toast.contains(document.activeElement);
      toast.remove();
      if (focused) $("bell").focus();
    };
    let timer = 0;
    const run = () => {
      if (item.type !== "error") timer = setTimeout(end, SHOWN);
    };
    for (const event of ["pointerenter", "focusin"]) toast.addEventListener(event, () => clearTimeout(timer));
    for (const event of ["pointerleave", "focusout"]) toast.addEventListener(event, run);
    close.addEventListener("click", end);
    $("toasts").append(toast);
    while ($("toasts").childElementCount > TOASTS) $("toasts").firstElementChild.remove();
    run();
  }

  /** Close the newest toast; false if there is none. */
  dismiss() {
    const toast = $("toasts").lastElementChild;
    toast?.querySelector("button").click();
    return toast !== null;
  }

  #count() {
    show($("bell-count"), this.unread > 0);
    setText($("bell-count"), this.unread > 99 ? "99+" : String(this.unread));
    $("bell").setAttribute("aria-label", this.unread ? `Notifications, ${this.unread} unread` : "Notifications");
  }

  #paint() {
    this.#count();
    show($("notices-empty"), this.items.length === 0);
    show($("notices-clear"), this.items.length > 0);
    $("notice-list").replaceChildren(...this.items.map((item) =>
      h("li", { class: `notice ${item.type}${item.fresh ? " fresh" : ""}`, dataset: { type: item.type } },
        h("span", { class: "type-mark" }, icon(item.type)), content(item, () => {
          this.toggle(false);
          this.onfollow(item.metadata);
        }, true)),
    ));
  }
}

function content(item, follow, long = false) {
  const mention = item.metadata?.kind === "mention";
  const today = sameDay(item.at, new Date());
  return h("div", { class: "notice-body" },
    h("p", { class: "notice-meta" },
      h("span", { class: "notice-type" }, TYPES[item.type]),
      item.everyone && h("span", {}, "to everyone"),
      h("time", { datetime: item.at.toISOString(), title: fullTime(item.at) },
        today ? clockTime(item.at) : `${dayName(item.at)}, ${clockTime(item.at)}`),
    ),
    h("p", { class: "notice-title", dir: "auto" }, item.title),
    item.text && h("p", { class: "notice-text", dir: "auto" }, item.text),
    mention && h("button", { class: "link", type: "button", onclick: follow }, "Show the message"),
    long && item.metadata && !mention && h("details", {},
      h("summary", {}, plural(Object.keys(item.metadata).length, "detail")),
      h("pre", { class: "mono" }, JSON.stringify(item.metadata, null, 2))),
  );
}
