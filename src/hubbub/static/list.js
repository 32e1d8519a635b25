// A timeline as a list that is scrolled: earlier and later messages come as they are needed, and what is being read
// stays where it is while others write, pictures arrive, and what is far away is dropped.

import { announce, avatar, h, setText, show } from "./dom.js";
import { Row } from "./row.js";
import { plural, short } from "./text.js";
import { dayName, sameDay } from "./time.js";

const TOGETHER = 5 * 60_000; // ms between two messages of one person that stand together
const NEAR = 60; // px from the end that count as the end
const AHEAD = 1.5; // screenfuls before the edge at which the next page is fetched
const FACES = 5;

export class MessageList {
  /**
   * `parts`: {scroller, list, top, topText, topRetry, foot, toEnd, toEndText}, elements of the page.
   * `actions`: for the rows. `onread()`: the reader has come to the end; `onjump()`: the newest is asked for.
   */
  constructor(parts, actions, { onread = () => {}, onnewest = () => {} } = {}) {
    Object.assign(this, parts);
    this.actions = actions;
    this.onread = onread;
    this.onnewest = onnewest;
    this.timeline = null;
    this.rows = new Map(); // item → Row
    this.newFrom = null; // id of the first unread message
    this.stuck = true; // at the end, and staying there
    this.unseen = 0;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.toEnd.addEventListener("click", () => this.newest());
    this.topRetry.addEventListener("click", () => this.timeline?.earlier());
    const resized = new ResizeObserver(() => this.#settle());
    resized.observe(this.scroller);
    resized.observe(this.list);
    this.#listenToKeys();
  }

  #ends = []; // functions that end listening to the timeline
  #anchor = null; // {item, top}: what is being read, and where it stands
  #lit = 0;

  /** Whether the room's newest message is in sight. */
  get atEnd() {
    return this.stuck && Boolean(this.timeline?.loaded) && !this.timeline.after;
  }

  show(timeline, newFrom = null) {
    for (const end of this.#ends) end();
    this.#ends = [];
    this.#clear();
    this.timeline = timeline;
    this.newFrom = newFrom;
    if (timeline) {
      const on = (type, then) => this.#ends.push(timeline.on(type, then));
      on("reset", () => this.#reset());
      on("inserted", (items) => this.#inserted(items));
      on("removed", (items) => this.#removed(items));
      on("changed", (item) => this.#changed(item));
      on("ends", () => this.#paintEnds());
      this.#reset();
    }
    this.#paintEnds();
  }

  #clear() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.list.replaceChildren();
    this.#anchor = null;
    this.unseen = 0;
    this.stuck = true;
  }

  #reset() {
    this.#clear();
    const { all } = this.timeline;
    for (const item of all) this.rows.set(item, new Row(item, this.actions));
    this.list.append(...all.map((item) => this.rows.get(item).element));
    all.forEach((_, index) => this.#dress(index));
    this.#rove();
    this.end();
    this.#paintEnds();
  }

  // -- where the reader is

  /** To the end of what is here. */
  end() {
    this.stuck = true;
    this.unseen = 0;
    this.#keep(null);
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#button();
  }

  /** To the newest message of the room, wherever that is. */
  newest() {
    if (this.timeline?.after) this.onnewest();
    else this.end();
  }

  /** To the first unread message if that is further up than the last screenful, else to the end. */
  toUnread() {
    this.end();
    const item = this.newFrom && this.timeline.find(this.newFrom);
    const mark = item && this.rows.get(item)?.element;
    const above = mark ? this.scroller.getBoundingClientRect().top - mark.getBoundingClientRect().top : 0;
    if (above <= 0) return;
    this.stuck = false;
    this.scroller.scrollTop -= above + 16;
    this.#keep();
    this.#button();
  }

  /** Show a message in the middle, and (`light`) make it stand out for a moment. False if it is not here. */
  reveal(id, light = true) {
    const item = this.timeline?.find(id);
    const row = item && this.rows.get(item);
    if (!row) return false;
    const { element } = row;
    this.stuck = false;
    const { top, height } = element.getBoundingClientRect();
    const view = this.scroller.getBoundingClientRect();
    this.scroller.scrollTop += top - view.top - Math.max(0, (view.height - height) / 2);
    this.#scrolledNow();
    element.focus({ preventScroll: true });
    clearTimeout(this.#lit);
    for (const lit of this.list.querySelectorAll(".lit")) lit.classList.remove("lit");
    element.classList.toggle("lit", light);
    this.#lit = setTimeout(() => element.classList.remove("lit"), 2_500);
    return true;
  }

  #frame = 0;

  #scrolled() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#scrolledNow();
    });
  }

  #scrolledNow() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    if (clientHeight === 0 || !this.timeline) return;
    this.stuck = scrollHeight - scrollTop - clientHeight < NEAR && !this.timeline.after;
    this.#keep();
    if (this.stuck) {
      this.unseen = 0;
      this.onread();
    }
    this.#button();
    this.#fetch();
  }

  /** Remember what stands at the top of the view, so that it can be put there again. */
  #keep(found = this.stuck ? null : this.#firstInView()) {
    this.#anchor = found;
    if (this.timeline) this.timeline.anchor = found?.item ?? null;
  }

  #firstInView() {
    const edge = this.scroller.getBoundingClientRect().top;
    const { all } = this.timeline;
    let low = 0;
    let high = all.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      const bottom = this.rows.get(all[middle])?.element.getBoundingClientRect().bottom ?? 0;
      if (bottom > edge) high = middle;
      else low = middle + 1;
    }
    const row = this.rows.get(all[low]);
    return row ? { item: all[low], top: row.element.getBoundingClientRect().top - edge } : null;
  }

  /** After anything changed its size: the end stays the end, and what is being read stays where it is. */
  #settle() {
    if (this.stuck) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
    } else {
      const row = this.#anchor && this.rows.get(this.#anchor.item);
      if (row) {
        const moved = row.element.getBoundingClientRect().top - this.scroller.getBoundingClientRect().top - this.#anchor.top;
        if (Math.abs(moved) >= 1) this.scroller.scrollTop += moved;
      }
    }
    this.#fetch();
  }

  #fetch() {
    const { timeline, scroller } = this;
    if (!timeline?.loaded || timeline.fault || scroller.clientHeight === 0) return;
    const near = scroller.clientHeight * AHEAD;
    const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    if (timeline.before && scroller.scrollTop < near && !timeline.fetching("before")) timeline.earlier();
    else if (timeline.after && below < near && !timeline.fetching("after")) timeline.later();
  }

  #button() {
    const shown = this.rows.size > 0 && (!this.stuck || this.timeline.after);
    show(this.toEnd, shown);
    setText(this.toEndText, this.unseen ? plural(this.unseen, "new message") : "Jump to newest");
  }

  #paintEnds() {
    const { timeline } = this;
    const fetching = timeline?.fetching("before") || timeline?.fetching("all");
    const fault = Boolean(timeline?.fault && (timeline.before || !timeline.loaded));
    show(this.topRetry, fault && Boolean(timeline?.loaded));
    show(this.topText, Boolean(timeline?.loaded && timeline.before) || Boolean(fetching));
    setText(this.topText, fault ? "Earlier messages could not be loaded." : "Loading messages…");
    this.scroller.setAttribute("aria-busy", String(Boolean(fetching)));
    this.onends?.();
    this.#button();
  }

  // -- what the timeline tells

  #inserted(items) {
    const { all } = this.timeline;
    const fresh = new Set(items);
    const touched = new Set();
    for (const item of items) {
      const row = this.rows.get(item) ?? new Row(item, this.actions);
      row.paint();
      this.rows.set(item, row);
    }
    for (let index = all.length - 1, next = null; index >= 0; index--) {
      const row = this.rows.get(all[index]);
      if (!row) continue;
      if (fresh.has(all[index]) && (row.element.nextElementSibling !== next || !row.element.isConnected)) {
        this.list.insertBefore(row.element, next);
      }
      if (fresh.has(all[index])) touched.add(index).add(index + 1);
      next = row.element;
    }
    for (const index of touched) this.#dress(index);
    this.#rove();
    const last = items.at(-1);
    if (last?.own && last.state === "pending" && !this.timeline.after) this.end();
    else this.#settle();
    this.#button();
    this.onends?.();
  }

  #removed(items) {
    const { all } = this.timeline;
    for (const item of items) {
      const row = this.rows.get(item);
      if (!row) continue;
      if (row.element.contains(document.activeElement)) this.scroller.focus({ preventScroll: true });
      row.remove();
      this.rows.delete(item);
    }
    if (this.#anchor && !this.rows.has(this.#anchor.item)) this.#anchor = null;
    all.forEach((item, index) => (index === 0 || item === all.at(-1) || items.length === 1) && this.#dress(index));
    this.#rove();
    this.#settle();
    this.#button();
    this.onends?.();
  }

  #changed(item) {
    const row = this.rows.get(item);
    if (!row) return;
    row.paint();
    this.requote(item.id);
    if (!this.stuck) this.#settle(); // at once: before the next scroll event takes where things stand now for what is read
  }

  /** The original of some quotes is known, or is another one now. */
  requote(id) {
    for (const [item, row] of this.rows) if (item.replyTo === id && !item.system) row.paintQuote();
  }

  /** New messages of others: count those that are out of sight, and say them aloud. */
  arrived(items) {
    const others = items.filter((item) => !item.own && !item.system);
    if (!this.stuck) this.unseen += others.length;
    this.#button();
    if (others.length > 3) announce(`${others.length} new messages`);
    else for (const item of others) announce(`${item.user}: ${item.text.slice(0, 300)}`);
  }

  /** Something was said that does not go into this window, since that is elsewhere. */
  missed() {
    this.unseen++;
    this.#button();
  }

  /** Day, author and "new" marks depend on the row before. */
  #dress(index) {
    const { all } = this.timeline;
    const item = all[index];
    const row = item && this.rows.get(item);
    if (!row) return;
    const before = all[index - 1];
    const newDay = !before || !sameDay(before.at, item.at);
    const isNew = this.newFrom !== null && item.id === this.newFrom;
    const continues = Boolean(before) && !newDay && !isNew && !before.system && !item.system && before.user === item.user
      && item.at - before.at < TOGETHER && !item.replyTo;
    row.dress({ day: newDay && dayName(item.at), isNew, continues });
  }

  /** The first unread message is another one, or the day has changed. */
  refresh(newFrom = this.newFrom) {
    this.newFrom = newFrom;
    this.timeline?.all.forEach((_, index) => this.#dress(index));
  }

  /** Who has read the last message. */
  showReaders(names) {
    const shown = names.slice(0, FACES);
    show(this.foot, names.length > 0);
    const text = names.length === 1 ? "Seen by " : `Seen by ${short(names.length)}`;
    this.foot.title = names.slice(0, 30).join(", ");
    this.foot.replaceChildren(h("span", { class: "faces", "aria-hidden": "true" }, ...shown.map(avatar)),
      h("span", {}, text, ...(names.length === 1 ? [h("bdi", {}, names[0])] : [])));
    if (this.stuck) this.#settle();
  }

  // -- with the keyboard: one stop for Tab, arrows from message to message

  #stop = null; // the row that Tab comes to

  #rove() {
    const last = this.timeline.all.at(-1);
    if (!last || (this.#stop?.isConnected && this.list.contains(document.activeElement))) return;
    this.#stopAt(this.rows.get(last).element);
  }

  #stopAt(row) {
    if (this.#stop && this.#stop !== row) {
      this.#stop.tabIndex = -1;
      this.#stop.classList.remove("active");
      for (const button of this.#stop.querySelectorAll("[data-reachable]")) {
        button.tabIndex = -1;
        delete button.dataset.reachable;
      }
    }
    this.#stop = row;
    row.tabIndex = 0;
  }

  /** In the message that has the focus, its own buttons are reached with Tab. */
  #enter(row) {
    this.#stopAt(row);
    row.classList.add("active");
    for (const button of row.querySelectorAll("button[tabindex='-1']:not([aria-hidden])")) {
      button.tabIndex = 0;
      button.dataset.reachable = "";
    }
  }

  #listenToKeys() {
    this.list.addEventListener("focusin", ({ target }) => {
      const row = target.closest(".row");
      if (row) this.#enter(row);
    });
    this.list.addEventListener("keydown", (event) => {
      const row = event.target.closest(".row");
      if (event.target !== row || event.altKey || event.ctrlKey || event.metaKey) return;
      const to = { ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling, End: this.list.lastElementChild }[event.key];
      if (to === undefined) return this.onkey?.(event, this.itemOf(row));
      event.preventDefault();
      to?.focus();
    });
  }

  itemOf(element) {
    for (const [item, row] of this.rows) if (row.element === element) return item;
    return null;
  }

  rowOf(item) {
    return this.rows.get(item) ?? null;
  }
}
