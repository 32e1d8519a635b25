// What is known of a room: its messages in order, who is there, who types, what is unread. No DOM here.

import { parseTime } from "./dom.js";

/** Messages that a room keeps on this page; the oldest go first. */
export const KEPT = 500;
/** ms after which a typing mark ends even if the server's word of it was lost. */
const TYPING_BOUND = 60_000;

let sequence = 0;

/**
 * An item of a room's list:
 *   {kind: "message", key, era, id, user, text, at, clientId, own, state: "sent" | "pending" | "failed", error}
 *   {kind: "gap", key, era, after, text}
 * `era` counts epochs, so that ids of an older one stay before those of a newer one.
 */
export class Room {
  constructor(id, name = id) {
    this.id = id;
    this.name = name;
    this.items = [];
    this.users = new Map(); // user id → devices
    this.usersKnown = true; // false in large rooms: only the count is told
    this.count = 0;
    this.typing = new Map(); // user id → timer
    this.unread = 0;
    this.newFrom = null; // key of the first unread message
    this.readTo = null; // {epoch, offset}
    this.more = false; // whether there are earlier messages to fetch
    this.state = "entering"; // entering, here, gone
    this.error = "";
    this.draft = "";
    this.loaded = false; // whether its recent past was fetched
    this.loading = false;
    this.view = null; // {inserted(items), changed(item), removed(item, index)}
    this.onchange = () => {};
    this.era = 0;
    this.epoch = null;
    this.#ids = new Map();
    this.#clientIds = new Map();
  }

  #ids; // era:id → item
  #clientIds; // client id → own item

  get full() {
    return this.items.length >= KEPT;
  }

  /** The oldest id of this epoch that is here, or null. */
  get oldest() {
    return this.items.find((item) => item.kind === "message" && item.era === this.era && item.id)?.id ?? null;
  }

  get newest() {
    return this.items.findLast((item) => item.kind === "message" && item.era === this.era && item.id)?.id ?? null;
  }

  /** The ids count anew: what is here belongs to the past. */
  setEpoch(epoch) {
    if (this.epoch !== null && epoch !== this.epoch) this.era++;
    this.epoch = epoch;
  }

  /** Own message, before the server has it. */
  addPending(user, text, clientId) {
    const item = this.#message({ user, text, at: new Date(), clientId, own: true, state: "pending" });
    this.#clientIds.set(clientId, item);
    this.#insert(item);
    return item;
  }

  /** Messages as the server sends them; returns those that were not here. */
  addMessages(wire, me) {
    const added = [];
    for (const { data } of wire) {
      const mine = data.user_id === me;
      const waiting = mine && data.client_id ? this.#clientIds.get(data.client_id) : undefined;
      if (waiting) {
        this.confirm(data.client_id, data.id, data.timestamp);
      } else if (!this.#ids.has(`${this.era}:${data.id}`)) {
        const item = this.#message({
          id: data.id,
          user: String(data.user_id),
          text: String(data.message),
          at: parseTime(data.timestamp),
          own: mine,
        });
        this.#ids.set(`${this.era}:${data.id}`, item);
        added.push(item);
      }
    }
    if (added.length) this.#insert(...added);
    return added;
  }

  /** The server has an own message: it gets its id, and its place. */
  confirm(clientId, id, timestamp) {
    const item = this.#clientIds.get(clientId);
    if (!item) return;
    this.#clientIds.delete(clientId);
    if (this.#ids.has(`${this.era}:${id}`)) {
      this.#remove(item);
      return;
    }
    const before = this.items.indexOf(item);
    this.items.splice(before, 1);
    Object.assign(item, { id, era: this.era, at: parseTime(timestamp), state: "sent", error: "" });
    this.#ids.set(`${this.era}:${id}`, item);
    const after = this.#place(item);
    if (after === before) this.view?.changed(item);
    else this.view?.inserted([item]);
  }

  fail(clientId, error) {
    const item = this.#clientIds.get(clientId);
    if (!item) return;
    Object.assign(item, { state: "failed", error });
    this.view?.changed(item);
  }

  setPending(item) {
    Object.assign(item, { state: "pending", error: "" });
    this.view?.changed(item);
  }

  discard(item) {
    this.#clientIds.delete(item.clientId);
    this.#remove(item);
  }

  get pending() {
    return this.items.filter((item) => item.state === "pending");
  }

  /** Something between `after` and what comes next is missing. */
  addGap(text, after = this.newest ?? 0) {
    const last = this.items.findLast((item) => item.kind === "gap" || item.id);
    if (last?.kind === "gap") this.#remove(last); // nothing came between: one note is enough
    this.#insert({ kind: "gap", key: `gap-${++sequence}`, era: this.era, after, text });
  }

  #message(fields) {
    return {
      kind: "message", key: `m-${++sequence}`, era: this.era, id: 0, clientId: null, state: "sent", error: "", ...fields,
    };
  }

  /** Put items where they belong: by era and id; what is not sent yet stays at the end. */
  #insert(...items) {
    for (const item of items) this.#place(item);
    this.view?.inserted(items);
    while (this.items.length > KEPT) {
      this.more = false; // beyond this page's bound
      this.#remove(this.items[0]);
    }
  }

  #place(item) {
    let at = this.items.length;
    while (at > 0 && this.#follows(this.items[at - 1], item)) at--;
    this.items.splice(at, 0, item);
    return at;
  }

  #follows(other, item) {
    if (item.kind === "message" && !item.id) return false;
    if (other.kind === "message" && !other.id) return true;
    if (other.era !== item.era) return other.era > item.era;
    const place = (entry) => (entry.kind === "gap" ? entry.after + 0.5 : entry.id);
    return place(other) > place(item);
  }

  #remove(item) {
    const at = this.items.indexOf(item);
    if (at < 0) return;
    this.items.splice(at, 1);
    if (item.id) this.#ids.delete(`${item.era}:${item.id}`);
    this.view?.removed(item, at);
  }

  // -- who is here, who types

  setUsers(users, count) {
    this.usersKnown = Array.isArray(users);
    this.users = new Map((users ?? []).map((user) => [user.user_id, user.devices ?? 1]));
    this.count = count;
    this.onchange("users");
  }

  userJoined(user) {
    if (!this.users.has(user)) this.users.set(user, 1);
    this.count = this.users.size;
    this.onchange("users");
  }

  userLeft(user) {
    this.users.delete(user);
    this.count = this.users.size;
    this.setTyping(user, false);
    this.onchange("users");
  }

  setTyping(user, active) {
    if (!active && !this.typing.has(user)) return;
    clearTimeout(this.typing.get(user));
    this.typing.delete(user);
    if (active) this.typing.set(user, setTimeout(() => this.setTyping(user, false), TYPING_BOUND));
    this.onchange("typing");
  }

  clearTyping() {
    for (const timer of this.typing.values()) clearTimeout(timer);
    this.typing.clear();
    this.onchange("typing");
  }
}
