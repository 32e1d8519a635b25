// Messages outside of their room: what a search found, what is pinned, mentions, threads. A press goes to the message.

import { $, avatar, h, iconButton, setText, show, timeOf } from "./dom.js";
import { textNodes } from "./row.js";
import { excerpt, markedParts, plural, sentence, short } from "./text.js";
import { parseTime } from "./time.js";

/** A message as a card. `marks`: what was found in it; `room`: its name, where it is not clear. */
function card({ wire, roomName = "", marks = null, me, onopen, extra = null }) {
  const text = marks?.length
    ? markedParts(wire.message, marks).map((part) => (part.marked ? h("mark", {}, part.text) : document.createTextNode(part.text)))
    : textNodes(excerpt(wire.message, 280), wire.mentions ?? [], { me });
  const files = (wire.files ?? []).map((file) => file.name).join(", ");
  const button = h("button", { class: "card-open", type: "button", onclick: onopen },
    h("span", { class: "card-head" }, avatar(String(wire.user_id)), h("bdi", { class: "card-author" }, String(wire.user_id)),
      roomName && h("span", { class: "card-room" }, h("bdi", {}, roomName)), timeOf(parseTime(wire.timestamp), true)),
    h("span", { class: "card-text", dir: "auto" }, ...(wire.deleted_at ? [h("em", {}, "Message deleted")] : text)),
    files && h("span", { class: "card-files" }, files),
    wire.replies && h("span", { class: "card-replies" }, plural(wire.replies.replies, "reply", "replies"),
      wire.replies.unread > 0 && h("span", { class: "badge" }, short(wire.replies.unread))));
  return h("li", { class: "card" }, button, extra);
}

/** Marked words and links inside a button would be buttons in a button: cards show links as text. */
class Cards {
  constructor(desk, prefix) {
    this.desk = desk;
    this.list = $(`${prefix}-list`);
    this.state = $(`${prefix}-state`);
  }

  say(text) {
    setText(this.state, text);
    show(this.state, text !== "");
  }

  card(roomId, wire, options = {}) {
    const element = card({ wire, me: this.desk.me, onopen: () => this.desk.jump(roomId, wire.id, wire.thread ?? null), ...options });
    for (const link of element.querySelectorAll("a")) link.replaceWith(h("span", { class: "card-link" }, link.textContent));
    return element;
  }

  nameOf(roomId) {
    return this.desk.rooms.get(roomId)?.name ?? roomId;
  }
}

export class SearchPanel extends Cards {
  constructor(desk) {
    super(desk, "search");
    this.field = $("search-field");
    $("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.search();
    });
    this.field.addEventListener("input", () => this.#later());
    for (const radio of document.querySelectorAll("[name='search-scope']")) radio.addEventListener("change", () => this.search());
    this.more = $("search-more");
    this.more.addEventListener("click", () => this.#page(this.#next));
  }

  #timer = 0;
  #turn = 0;
  #next = null;
  #asked = null;

  open() {
    this.desk.panels.open("search-panel");
    const { room } = this.desk;
    show($("search-scopes"), Boolean(room));
    setText($("search-here-name"), room ? room.name : "this room");
    if (!room?.stored) $("search-everywhere").checked = true;
    this.field.focus();
    this.field.select();
  }

  /** In another room, what was found in the one before is of no use. */
  roomChanged() {
    const { room } = this.desk;
    setText($("search-here-name"), room ? room.name : "this room");
    if (this.#asked && $("search-here").checked && this.#asked.room_id !== room?.id) this.clear();
  }

  clear() {
    this.#turn++;
    this.#asked = null;
    this.list.replaceChildren();
    show(this.more, false);
    this.say("Words that all must be there; \"several words\" next to one another; -word is not there.");
  }

  #later() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.search(), 400);
  }

  search() {
    clearTimeout(this.#timer);
    const query = this.field.value.trim();
    if (!query) return this.clear();
    const here = $("search-here").checked && this.desk.room;
    this.#asked = { query, ...(here && { room_id: this.desk.room.id }) };
    return this.#page(null);
  }

  async #page(before) {
    const turn = ++this.#turn;
    if (!before) this.list.replaceChildren();
    this.say(before ? "" : "Searching…");
    show(this.more, false);
    try {
      const { hits, next } = await this.desk.client.request("search_messages", { ...this.#asked, ...(before && { before }) });
      if (turn !== this.#turn) return;
      this.#next = next ?? null;
      this.list.append(...hits.map((hit) => this.card(hit.room_id, hit.message, {
        marks: hit.marks, roomName: this.#asked.room_id ? "" : this.nameOf(hit.room_id),
      })));
      this.say(this.list.childElementCount ? "" : "Nothing was found.");
      show(this.more, Boolean(next));
    } catch (error) {
      if (turn !== this.#turn) return;
      this.say(sentence(error.message));
      show(this.more, Boolean(before));
    }
  }
}

export class PinsPanel extends Cards {
  constructor(desk) {
    super(desk, "pins");
  }

  #turn = 0;

  open() {
    this.desk.panels.open("pins-panel");
    this.list.replaceChildren();
    this.say("Loading…");
    $("pins-title").focus();
    return this.load();
  }

  /** Load what is pinned now: also when something was pinned, edited or deleted while the panel is open. */
  async load() {
    const { room, panels } = this.desk;
    if (!room || panels.side !== "pins-panel") return;
    const turn = ++this.#turn;
    try {
      const { messages } = await this.desk.client.request("list_pins", { room_id: room.id });
      if (turn !== this.#turn) return;
      this.list.replaceChildren(...messages.map((wire) => this.card(room.id, wire, { extra: room.may("pin") && iconButton("unpin", "Unpin", {
        onclick: () => this.desk.client.request("unpin_message", { room_id: room.id, id: wire.id }).catch((error) => this.say(sentence(error.message))),
      }) })));
      this.say(messages.length ? "" : "Nothing is pinned. Pin what people look for again and again.");
    } catch (error) {
      if (turn === this.#turn) this.say(sentence(error.message));
    }
  }
}

/** Mentions of the user, or threads that they follow: over all rooms. */
export class InboxPanel extends Cards {
  constructor(desk, { prefix, type, key, empty }) {
    super(desk, prefix);
    Object.assign(this, { prefix, type, key, empty });
    this.more = $(`${prefix}-more`);
    this.more?.addEventListener("click", () => this.#page(this.#next));
  }

  #turn = 0;
  #next = null;

  open() {
    this.desk.panels.open(`${this.prefix}-panel`);
    $(`${this.prefix}-title`).focus();
    return this.load();
  }

  async load() {
    if (this.desk.panels.side !== `${this.prefix}-panel`) return;
    await this.#page(null);
  }

  async #page(before) {
    const turn = ++this.#turn;
    if (!this.list.childElementCount) this.say("Loading…");
    try {
      const answer = await this.desk.client.request(this.type, before ? { before } : {});
      if (turn !== this.#turn) return;
      const cards = answer[this.key].map(({ room_id: roomId, message }) =>
        this.card(roomId, message, { roomName: this.nameOf(roomId), onopen: () => this.#go(roomId, message) }));
      if (before) this.list.append(...cards);
      else this.list.replaceChildren(...cards);
      this.#next = answer.next ?? null;
      if (this.more) show(this.more, Boolean(answer.next));
      this.say(this.list.childElementCount ? "" : this.empty);
    } catch (error) {
      if (turn === this.#turn) this.say(sentence(error.message));
    }
  }

  #go(roomId, message) {
    if (this.type === "list_threads") this.desk.jump(roomId, message.replies?.last_id ?? message.id, message.id);
    else this.desk.jump(roomId, message.id, message.thread ?? null);
  }
}
