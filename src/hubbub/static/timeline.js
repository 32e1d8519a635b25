// A window onto the messages of a room, or of a thread in it: so many of them, in order, without holes between them.
// It may be anywhere; where its end is the room's end (`after` is false), what is said is added to it as it comes.

import { Emitter } from "./emitter.js";
import { draftOf, erase, messageOf, pin, react, renew, replied, revise } from "./message.js";

/** Messages fetched at once. */
export const PAGE = 50;
/** Messages that a window holds; what is furthest from the eye goes first. */
export const KEPT = 300;

/**
 * It tells:
 *   reset()          everything is another: show it anew
 *   inserted(items)  these came, each at its place
 *   removed(items)   these are not here any more
 *   changed(item)    this one looks different
 *   ends()           whether there is more before or after, or whether that is being fetched
 */
export class Timeline extends Emitter {
  /** `load(query)` fetches a page: {messages, before, after, position}. `thread`: the number of its first message. */
  constructor({ load, me, thread = null }) {
    super();
    this.load = load;
    this.me = me;
    this.thread = thread;
    this.items = []; // what the server has, by id
    this.pending = []; // own ones that it has not yet, in the order in which they were said
    this.before = false; // whether there are earlier ones that are not here
    this.after = false; // whether there are later ones
    this.loaded = false;
    this.fault = ""; // why the last page could not be fetched
    this.anchor = null; // the item that the reader looks at; null: the end
  }

  #ids = new Map(); // id → item
  #drafts = new Map(); // client id → pending item
  #fetching = new Map(); // which page → the promise of it
  #meanwhile = null; // what happened while a page was on its way
  #turn = 0; // counts resets: a page asked for before one is of no use after it

  /** All that is to be shown, in order. */
  get all() {
    return this.after ? this.items : [...this.items, ...this.pending];
  }

  get newest() {
    return this.items.at(-1) ?? null;
  }

  find(id) {
    return this.#ids.get(id) ?? null;
  }

  fetching(which) {
    return this.#fetching.has(which);
  }

  // -- pages

  /** Show the newest page; with `around`, the one with that message in its middle. Rejects if it cannot be had. */
  open(query = {}) {
    this.#fetching.clear();
    const turn = ++this.#turn;
    return this.#fetch("all", query, (page) => {
      if (turn !== this.#turn) return;
      this.#ids.clear();
      this.items = [];
      this.anchor = null;
      this.#settle(page);
      this.#place(page);
      Object.assign(this, { before: page.before, after: page.after, loaded: true });
      this.#replay(page.position.offset);
      this.emit("reset");
    });
  }

  earlier() {
    const first = this.items[0];
    if (!this.before || !first) return Promise.resolve();
    return this.#fetchMore("before", { before: first.id }, (page) => {
      this.before = page.before;
    });
  }

  later() {
    const last = this.items.at(-1);
    if (!this.after || !last) return Promise.resolve();
    return this.#fetchMore("after", { after: last.id }, (page) => {
      this.after = page.after;
    });
  }

  /** What is here is not to be relied on any more: it is fetched anew when somebody looks at it. */
  forget() {
    this.loaded = false;
    this.#turn++;
    this.#fetching.clear();
  }

  #fetchMore(which, query, then) {
    const turn = this.#turn;
    return this.#fetch(which, query, (page) => {
      if (turn !== this.#turn) return;
      this.#settle(page);
      const fresh = this.#place(page);
      const detached = this.after;
      then(page);
      this.emit("inserted", fresh);
      if (detached && !this.after && this.pending.length) this.emit("inserted", this.pending);
      this.#replay(page.position.offset, true);
      this.#trim();
    }).catch(() => {}); // `fault` says it, beside the button that tries again
  }

  #fetch(which, query, then) {
    const before = this.#fetching.get(which);
    if (before) return before;
    this.#meanwhile ??= [];
    this.fault = "";
    const done = (async () => {
      try {
        then(await this.load({ limit: PAGE, ...query, ...(this.thread && { thread: this.thread }) }));
      } catch (error) {
        this.fault = error.message;
        throw error;
      } finally {
        if (this.#fetching.get(which) === done) this.#fetching.delete(which);
        if (this.#fetching.size === 0) this.#meanwhile = null;
        this.emit("ends");
      }
    })();
    this.#fetching.set(which, done);
    this.emit("ends");
    return done;
  }

  /** Own messages that the server turns out to have are not pending any more. */
  #settle(page) {
    for (const wire of page.messages) {
      const draft = wire.user_id === this.me && wire.client_id ? this.#drafts.get(wire.client_id) : undefined;
      if (draft) this.discard(draft);
    }
  }

  #place(page) {
    const fresh = [];
    for (const wire of page.messages) {
      const known = this.#ids.get(wire.id);
      if (!known) fresh.push(this.#insert(messageOf(wire, this.me, page.position.offset)));
      else if (renew(known, wire, page.position.offset)) this.emit("changed", known);
    }
    return fresh;
  }

  /** A page shows the room as it was when it was read; what happened since is done again. */
  #replay(position, tell = false) {
    for (const { type, data, offset } of this.#meanwhile ?? []) {
      if (offset > position) this.#apply(type, data, offset, tell);
    }
  }

  #insert(item) {
    let at = this.items.length;
    while (at > 0 && this.items[at - 1].id > item.id) at--;
    this.items.splice(at, 0, item);
    this.#ids.set(item.id, item);
    return item;
  }

  #trim() {
    const extra = this.items.length - KEPT;
    if (extra <= 0) return;
    const seen = this.anchor ? this.items.indexOf(this.anchor) : -1;
    const fromStart = seen < 0 || seen > this.items.length / 2;
    const gone = fromStart ? this.items.splice(0, extra) : this.items.splice(-extra);
    const apart = !fromStart && !this.after ? this.pending : []; // what is not sent stands at the room's end only
    if (fromStart) this.before = true;
    else this.after = true;
    for (const item of gone) this.#ids.delete(item.id);
    this.emit("removed", [...gone, ...apart]);
    this.emit("ends");
  }

  // -- what happens in the room

  /** Something that the room heard. Twice, or late, is as good as once. */
  take(type, data, offset) {
    this.#meanwhile?.push({ type, data, offset });
    return this.#apply(type, data, offset, true);
  }

  /** Returns the item, if a message was added. */
  #apply(type, data, offset, tell) {
    if (type === "message") return this.#said(data, tell);
    if (type === "user_erased") {
      for (const item of this.items) if (erase(item, data.user_id) && tell) this.emit("changed", item);
      return null;
    }
    const item = this.#ids.get(data.id);
    const changed = item && this.#change(type, item, data, offset);
    if (changed && tell) this.emit("changed", item);
    return null;
  }

  #change(type, item, data, offset) {
    switch (type) {
      case "message_updated":
      case "message_deleted":
        return revise(item, data, offset);
      case "reaction":
        return react(item, data, this.me, offset);
      case "pinned":
        return pin(item, data.pinned, offset);
      default:
        return false;
    }
  }

  #said(wire, tell) {
    const draft = wire.user_id === this.me && wire.client_id ? this.#drafts.get(wire.client_id) : undefined;
    if (draft && this.#belongs(wire)) {
      this.confirm(wire.client_id, wire.id, wire);
      return null;
    }
    if (!this.#belongs(wire)) {
      const root = this.thread === null ? this.#ids.get(wire.thread) : undefined;
      if (root && replied(root, wire, this.me) && tell) this.emit("changed", root);
      return null;
    }
    if (!this.loaded || this.after || this.#ids.has(wire.id)) return null;
    const item = this.#insert(messageOf(wire, this.me));
    if (tell) this.emit("inserted", [item]);
    if (tell) this.#trim();
    return item;
  }

  #belongs(wire) {
    return (wire.thread ?? null) === this.thread;
  }

  /** How much of a thread the user has not read is another now. */
  readThread(root, unread) {
    const item = this.#ids.get(root);
    if (!item?.replies || item.replies.unread === unread) return;
    item.replies = { ...item.replies, unread };
    this.emit("changed", item);
  }

  // -- own messages on their way

  addDraft(fields) {
    const item = draftOf({ ...fields, user: this.me, thread: this.thread });
    this.#drafts.set(item.clientId, item);
    this.pending.push(item);
    if (!this.after) this.emit("inserted", [item]);
    return item;
  }

  /** The server has it: it gets its number, and its place. `wire`: the message itself, or only its `timestamp`. */
  confirm(clientId, id, wire) {
    const item = this.#drafts.get(clientId);
    if (!item) return;
    this.#drafts.delete(clientId);
    this.pending.splice(this.pending.indexOf(item), 1);
    if (!this.loaded || this.after || this.#ids.has(id)) {
      this.emit("removed", [item]);
      return;
    }
    const sent = messageOf({ message: item.text, user_id: item.user, ...wire, id }, this.me);
    const files = wire.files ?? item.uploads.map((upload) => upload.info).filter(Boolean);
    const { replyTo, key, mentions } = item;
    Object.assign(item, sent, { key, files, clientId, replyTo, thread: this.thread, mentions: wire.mentions ?? mentions });
    const behind = this.items.length === 0 || this.items.at(-1).id < id;
    this.#insert(item);
    if (behind && this.pending.length === 0) this.emit("changed", item);
    else this.emit("inserted", [item]);
    this.#trim();
  }

  changed(item) {
    this.emit("changed", item);
  }

  discard(item) {
    this.#drafts.delete(item.clientId);
    const at = this.pending.indexOf(item);
    if (at < 0) return;
    this.pending.splice(at, 1);
    this.emit("removed", [item]);
  }
}
