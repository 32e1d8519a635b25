// One room: what it is, who is there, what is unread, what this user may do in it. Nothing here knows of a document.

import { Emitter } from "./emitter.js";
import { calls } from "./message.js";
import { Timeline } from "./timeline.js";
import { duration } from "./text.js";

/** ms after which a typing mark ends even if the server's word of it was lost. */
const TYPING_BOUND = 60_000;
/** Members of a room in which everybody may call all, where the server has its default. */
const GROUP = 100;
const RANKS = { owner: 3, moderator: 2, member: 1 };
const WRITING = new Set(["write", "react", "edit", "pin", "invite", "remove", "roles"]);

/**
 * It tells:
 *   info()       its name, topic, settings, or the user's own side of it
 *   counts()     what is unread
 *   people()     who is here
 *   typing()     who types
 *   receipts()   how far others have read
 *   members(user, change)
 *   took(type, data, offset)   anything that everybody heard
 */
export class Room extends Emitter {
  /** `info`: a RoomInfo of the wire. `load(query)`: fetches a page of messages. */
  constructor(info, { me, admin = false, load }) {
    super();
    this.id = info.room_id;
    this.info = { name: info.room_id };
    this.self = me;
    this.admin = admin;
    this.me = null; // MyRoom of the wire, or null: no member
    this.leaving = false; // the user is about to be in it no longer
    this.state = "away"; // away, entering, here, gone
    this.reason = ""; // why it is gone
    this.users = new Map(); // user id → devices
    this.usersKnown = true; // false in large rooms: only the count is told
    this.count = 0;
    this.typing = new Map(); // user id → timer
    this.receipts = null; // user id → id of the message read last; null: this room has none
    this.newFrom = null; // id of the first unread message, as of the last visit
    this.timeline = new Timeline({ me, load });
    this.thread = null; // the Timeline of the open thread
    this.update(info);
  }

  mentions = 0; // unread messages that call the user
  #total = 0; // messages that the room has
  #readCount = 0; // how many of them the user has read
  #countedTo = 0; // mentions up to this number are counted

  get direct() {
    return this.info.visibility === "direct";
  }

  get stored() {
    return this.info.kind !== "live";
  }

  get member() {
    return this.me?.role !== undefined;
  }

  /** What the user sees: a direct room is named by the others in it. */
  get name() {
    const others = this.others;
    return others.length ? others.join(", ") : this.info.name;
  }

  get others() {
    return this.direct ? (this.info.people ?? []).filter((user) => user !== this.self) : [];
  }

  get notify() {
    return this.me?.notify ?? "all";
  }

  get rank() {
    return this.admin ? 4 : (RANKS[this.me?.role] ?? 0);
  }

  /** The room as the server says it is now. What is left out of the user's own side stays. */
  update(info) {
    const { me = this.info.me, people = this.info.people, users = this.info.users } = info;
    this.info = { kind: "group", visibility: "public", history: "shared", ...info, me, people, users };
    if (info.me) this.setMine(info.me);
    this.#total = Math.max(this.#total, info.message_count ?? 0);
    this.emit("info");
    this.emit("counts");
  }

  /** The user's own side of it. */
  setMine(me) {
    this.me = me;
    this.#total = Math.max(this.#total, this.info.message_count ?? 0);
    this.#readCount = (this.info.message_count ?? 0) - (me.unread ?? 0);
    this.mentions = me.mentions ?? 0;
    this.emit("info");
    this.emit("counts");
  }

  /**
   * What a list says of the room, which may be older than what was heard since, or know of what was said while the connection
   * was just entering. Both numbers only grow, so the larger ones hold.
   */
  compare(info) {
    const { me, ...rest } = info;
    const read = (info.message_count ?? 0) - (me?.unread ?? 0);
    this.#readCount = Math.max(this.#readCount, read);
    this.update(rest);
  }

  changeMine(values) {
    this.me = { ...this.me, ...values };
    this.emit("info");
    this.emit("counts");
  }

  // -- unread

  get unread() {
    return this.member ? Math.max(0, this.#total - this.#readCount) : 0;
  }

  /** The id of the message read last. */
  get read() {
    return this.me?.read ?? 0;
  }

  /** What had happened when the user's own side was told: later mentions are counted here. */
  countFrom(offset) {
    this.#countedTo = offset;
  }

  /** The user has read up to a message, here or on another device. A mark never goes back. */
  setRead({ read, unread, mentions }) {
    if (!this.me || read < this.read) return;
    this.me = { ...this.me, read };
    this.#readCount = this.#total - unread;
    this.mentions = mentions;
    this.emit("counts");
  }

  /** The user sees the end: nothing is unread, as soon as the server has it too. */
  seen(id) {
    this.setRead({ read: Math.max(id, this.read), unread: 0, mentions: 0 });
  }

  #count(data) {
    this.#total = Math.max(this.#total, data.number ?? data.id);
    if (!data.thread) this.info.last_at = data.timestamp;
    if (!this.me) return;
    const own = data.user_id === this.self && !data.system;
    if (own && !data.thread) {
      this.seen(data.id);
    } else if (!own && data.id > this.#countedTo && this.notify !== "none" && calls(data.mentions, this.self)) {
      this.mentions++;
    }
    this.emit("counts");
  }

  // -- what happens

  /** Something that everybody in the room heard. Returns the message that was added to the window, if one was. */
  take(type, data, offset) {
    switch (type) {
      case "message":
        this.setTyping(data.user_id, false);
        this.#count(data);
        if (this.receipts && !data.system && !data.thread) this.setReceipt(data.user_id, data.id);
        break;
      case "room_updated":
        this.update(data);
        break;
      case "member":
        this.#memberChanged(data);
        break;
    }
    const added = this.timeline.take(type, data, offset);
    const replied = this.thread?.take(type, data, offset);
    this.emit("took", type, data, offset);
    return replied ?? added;
  }

  #memberChanged({ user_id: user, change, role, until }) {
    if (change === "kicked" || change === "banned" || change === "left") this.receipts?.delete(user);
    if (user === this.self && this.me) {
      if (change === "role") this.changeMine({ role });
      if (change === "muted") this.changeMine({ muted_until: until });
      if (change === "unmuted") this.changeMine({ muted_until: null });
    }
    this.emit("members", user, change);
  }

  // -- what the user may do here; the server decides, this only keeps useless buttons away

  may(act, now = Date.now()) {
    const { rank, info, direct } = this;
    if (info.archived_at && WRITING.has(act)) return false;
    if (!this.stored) return act === "write" || act === "see";
    const muted = this.mutedFor(now) > 0;
    switch (act) {
      case "write": return !muted && rank >= (info.kind === "broadcast" ? 2 : 1);
      case "react":
      case "edit": return !muted && rank >= 1;
      case "pin": return rank >= (info.visibility === "public" || info.kind !== "group" ? 2 : 1);
      case "moderate": return rank >= (direct ? 4 : 2);
      case "call_all": return rank >= (info.kind === "group" && info.member_count <= GROUP ? 1 : 2);
      case "invite": return !direct && rank >= 1;
      case "remove":
      case "configure":
      case "review": return !direct && rank >= 2;
      case "own": return !direct && rank >= 3;
      case "leave": return !direct && this.member;
      default: return rank >= 1;
    }
  }

  /** Whether the user has more to say than somebody of a role. */
  over(role) {
    return this.rank > (RANKS[role] ?? 0);
  }

  /** ms for which the user may not write yet. */
  mutedFor(now = Date.now()) {
    const until = this.me?.muted_until ? new Date(this.me.muted_until).getTime() : 0;
    return this.rank >= 4 ? 0 : Math.max(0, until - now);
  }

  /** Why the user cannot write here, in words; "" if nothing stands in the way. */
  obstacle(now = Date.now()) {
    if (this.state === "gone") return this.reason || "This room is not there any more.";
    if (this.info.archived_at) return "This room is archived: it can be read, and nothing is added to it.";
    const muted = this.mutedFor(now);
    if (muted > 0) return `A moderator has muted you here. You may write again in ${duration(muted / 1000)}.`;
    if (!this.may("write", now) && this.info.kind === "broadcast") return "Only moderators write in this room.";
    return "";
  }

  // -- who is here, who types, how far they have read

  setUsers(users, count) {
    this.usersKnown = Array.isArray(users);
    this.users = new Map((users ?? []).map((user) => [user.user_id, user.devices ?? 1]));
    this.count = count;
    this.emit("people");
  }

  userJoined(user) {
    if (!this.users.has(user)) this.users.set(user, 1);
    this.count = this.users.size;
    this.emit("people");
  }

  userLeft(user) {
    this.users.delete(user);
    this.count = this.users.size;
    this.setTyping(user, false);
    this.emit("people");
  }

  setTyping(user, active) {
    if (!active && !this.typing.has(user)) return;
    clearTimeout(this.typing.get(user));
    this.typing.delete(user);
    if (active) this.typing.set(user, setTimeout(() => this.setTyping(user, false), TYPING_BOUND));
    this.emit("typing");
  }

  clearTyping() {
    for (const timer of this.typing.values()) clearTimeout(timer);
    this.typing.clear();
    this.emit("typing");
  }

  setReceipts(receipts) {
    this.receipts = receipts && new Map(Object.entries(receipts));
    this.emit("receipts");
  }

  setReceipt(user, id) {
    if (!this.receipts || id <= (this.receipts.get(user) ?? 0)) return;
    this.receipts.set(user, id);
    this.emit("receipts");
  }

  /** Who of the others has read a message. */
  readersOf(item) {
    const readers = [];
    for (const [user, id] of this.receipts ?? []) if (id >= item.id && user !== this.self && user !== item.user) readers.push(user);
    return readers;
  }
}
