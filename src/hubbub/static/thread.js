// The messages of the open room on the page. A row holds everything that it may show; what is shown is a matter of
// classes, so that a message that arrives touches its own row and the next one, and no other.

import { $, announce, avatar, clockTime, dayName, fullTime, h, plural, sameDay, show } from "./dom.js";

const TOGETHER = 5 * 60_000; // ms between two messages of one person that stand together
const NEAR = 60; // px from the end that count as the end
const LONG = { characters: 1600, lines: 24 };

export class Thread {
  /** `actions`: {retry(item), discard(item), read()} */
  constructor(actions) {
    this.actions = actions;
    this.scroller = $("thread");
    this.list = $("messages");
    this.room = null;
    this.rows = new Map(); // item key → li
    this.stuck = true; // at the end, and staying there
    this.unseen = 0;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("to-newest").addEventListener("click", () => {
      this.toEnd();
      $("composer-input").focus();
    });
    new ResizeObserver(() => this.stuck && this.toEnd()).observe(this.scroller);
    new ResizeObserver(() => this.stuck && this.toEnd()).observe(this.list);
  }

  get atEnd() {
    return this.stuck;
  }

  show(room) {
    if (this.room) this.room.view = null;
    this.room = room;
    this.rows.clear();
    this.list.replaceChildren();
    this.unseen = 0;
    if (room) {
      room.view = this;
      this.inserted(room.items, { quiet: true });
      this.toUnread();
    }
    this.#button();
  }

  /** To the first unread message if that is further up than the last screenful, else to the end. */
  toUnread() {
    this.toEnd();
    const mark = this.room.newFrom && this.rows.get(this.room.newFrom);
    const above = mark ? this.scroller.getBoundingClientRect().top - mark.getBoundingClientRect().top : 0;
    if (above <= 0) return;
    this.stuck = false;
    this.scroller.scrollTop -= above + 16;
    this.#button();
  }

  toEnd() {
    this.stuck = true;
    this.unseen = 0;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#button();
  }

  /** Keep what is in view where it is while `change` puts something above it. */
  hold(change) {
    const before = this.scroller.scrollHeight - this.scroller.scrollTop;
    change();
    if (!this.stuck) this.scroller.scrollTop = this.scroller.scrollHeight - before;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.stuck = scrollHeight - scrollTop - clientHeight < NEAR;
    if (this.stuck) {
      this.unseen = 0;
      this.actions.read();
    }
    this.#button();
  }

  #button() {
    show($("to-newest"), !this.stuck && this.rows.size > 0);
    $("to-newest-text").textContent = this.unseen ? plural(this.unseen, "new message") : "Newest";
  }

  // -- what the room tells

  inserted(items, { quiet = false } = {}) {
    const stuck = this.stuck;
    const touched = new Set();
    for (const item of items) {
      this.rows.get(item.key)?.remove();
      const row = item.kind === "gap" ? gapRow(item) : this.#messageRow(item);
      this.rows.set(item.key, row);
    }
    const order = this.room.items;
    const fresh = new Set(items);
    for (let index = order.length - 1, next = null; index >= 0; index--) {
      const row = this.rows.get(order[index].key);
      if (!row) continue;
      if (fresh.has(order[index])) {
        this.list.insertBefore(row, next);
        touched.add(index).add(index + 1);
      }
      next = row;
    }
    for (const index of touched) this.#dress(index);
    if (quiet) return;
    const last = items.at(-1);
    if (stuck || (last?.own && last.state === "pending")) this.toEnd();
    else this.#button();
  }

  changed(item) {
    const row = this.rows.get(item.key);
    if (row) paintState(row, item, this.actions);
  }

  removed(item, index) {
    const row = this.rows.get(item.key);
    if (!row) return;
    this.rows.delete(item.key);
    const above = row.getBoundingClientRect().bottom < this.scroller.getBoundingClientRect().top;
    if (above) this.hold(() => row.remove());
    else row.remove();
    this.#dress(index);
  }

  /** New messages of others: count those that are out of sight, and say them aloud. */
  arrived(items) {
    const others = items.filter((item) => !item.own);
    if (!this.stuck) this.unseen += others.length;
    this.#button();
    if (others.length > 3) announce(`${others.length} new messages`);
    else for (const item of others) announce(`${item.user}: ${item.text.slice(0, 300)}`);
  }

  /** Day, author and "new" marks depend on the row before. */
  #dress(index) {
    const item = this.room?.items[index];
    const row = item && this.rows.get(item.key);
    if (!row || item.kind !== "message") return;
    const before = this.room.items[index - 1];
    const previous = before?.kind === "message" ? before : this.room.items.slice(0, index).findLast((i) => i.at);
    const newDay = !previous || !sameDay(previous.at, item.at);
    const isNew = this.room.newFrom === item.key;
    mark(row, "daymark", newDay && dayName(item.at));
    mark(row, "newmark", isNew && "New");
    const continues = before?.kind === "message" && !newDay && !isNew && before.user === item.user
      && item.at - before.at < TOGETHER;
    row.classList.toggle("continues", continues);
  }

  /** Dress all rows anew: the first unread message is another one, or the day has changed. */
  refresh() {
    this.room?.items.forEach((_, index) => this.#dress(index));
  }

  #messageRow(item) {
    const bubble = h("div", { class: "bubble", dir: "auto", title: fullTime(item.at) }, item.text);
    const row = h("li", { class: `row${item.own ? " own" : ""}`, dataset: { state: item.state } },
      avatar(item.user),
      h("div", { class: "body" },
        h("p", { class: "meta" },
          h("bdi", { class: "author" }, item.own ? "You" : item.user),
          h("time", { datetime: item.at.toISOString(), title: fullTime(item.at) }, clockTime(item.at)),
        ),
        bubble,
        h("p", { class: "note" }),
      ),
    );
    if (item.text.length > LONG.characters || item.text.split("\n", LONG.lines + 1).length > LONG.lines) {
      bubble.classList.add("folded");
      const unfold = h("button", { class: "link unfold", type: "button", onclick: () => {
        bubble.classList.remove("folded");
        unfold.remove();
        bubble.tabIndex = -1;
        bubble.focus();
      } }, "Show all of it");
      bubble.after(unfold);
    }
    paintState(row, item, this.actions);
    return row;
  }
}

function gapRow(item) {
  return h("li", { class: "gap" }, h("span", {}, item.text));
}

function mark(row, name, text) {
  const found = row.querySelector(`:scope > .${name}`);
  if (!text) found?.remove();
  else if (found) found.firstChild.textContent = text;
  else row.prepend(h("p", { class: `mark-line-row ${name}` }, h("span", {}, text)));
}

function paintState(row, item, actions) {
  row.dataset.state = item.state;
  const time = row.querySelector("time");
  time.dateTime = item.at.toISOString();
  time.title = fullTime(item.at);
  time.textContent = clockTime(item.at);
  const note = row.querySelector(".note");
  if (item.state === "pending") {
    note.replaceChildren(h("span", { class: "sending" }, "Sending…"), h("span", { class: "waiting" }, "Waits for the connection"));
  } else if (item.state === "failed") {
    note.replaceChildren(
      h("span", { class: "failure" }, `Not sent: ${item.error}`),
      h("button", { class: "link", type: "button", onclick: () => actions.retry(item) }, "Try again"),
      h("button", { class: "link", type: "button", onclick: () => actions.discard(item) }, "Discard"),
    );
  } else {
    note.replaceChildren();
  }
}
