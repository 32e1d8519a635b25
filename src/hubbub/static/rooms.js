// All rooms that this user has to do with: which there are, which of them this connection is in, and what they hear.

import { Emitter } from "./emitter.js";
import { Room } from "./room.js";
import { sentence } from "./text.js";

/** Rooms that a connection is in at once; the server allows some more. */
const ENTERED = 100;
const AT_ONCE = 20; // of them without a pause
const PAUSE = 100; // ms
const LISTED = 200; // other public rooms shown at once: further ones are found by their name
const NUMBERED = ["message", "message_updated", "message_deleted", "reaction", "pinned", "member", "room_updated", "user_erased"];

/**
 * It tells:
 *   list()                which rooms there are
 *   room(room)            one of them looks different in a list
 *   entered(room, how)    the connection is in a room (again): `how` is what the client says of it
 *   gone(room)            the user is in a room no longer
 *   message(room, data, item)   something was said; `item` if it went into the room's window
 *   event(room, type, data)     something else happened
 */
export class Rooms extends Emitter {
  constructor(client) {
    super();
    this.client = client;
    this.all = new Map(); // id → Room: those of the user, and those that were looked into
    this.invitations = new Map(); // id → RoomInfo
    this.others = []; // RoomInfo of public rooms that the user is not in
    this.more = false; // whether there are further ones
    this.listed = false; // whether the server has said which there are
    this.query = "";
    this.self = "";
    this.admin = false;
    this.#listen();
  }

  #looking = null; // the list that is being fetched

  forget() {
    for (const room of this.all.values()) room.clearTyping();
    this.all.clear();
    this.invitations.clear();
    this.others = [];
    this.listed = false;
    this.query = "";
  }

  get(id) {
    return this.all.get(id) ?? null;
  }

  /** The user's rooms, by name. */
  get channels() {
    return [...this.all.values()].filter((room) => !room.direct).sort(byName);
  }

  /** The user's direct rooms, the liveliest first. */
  get directs() {
    return [...this.all.values()].filter((room) => room.direct).sort((a, b) => activity(b) - activity(a));
  }

  // -- which there are

  /** Ask the server for the lists. Does nothing while that is being done. */
  refresh() {
    this.#looking ??= this.#refresh().catch(() => false).finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  async #refresh() {
    const before = new Set(this.all.keys()); // what is added meanwhile may be missing from an older list
    const mine = [];
    for (let after = null; ; ) {
      const page = await this.client.patiently("list_rooms", { mine: true, ...(after && { after }) });
      mine.push(...page.rooms);
      if (!page.more) break;
      after = page.rooms.at(-1).room_id;
    }
    this.#takeMine(mine, before);
    await this.look(this.query);
    return true;
  }

  #takeMine(listed, before) {
    const invited = listed.filter((info) => info.me?.invited_by);
    this.invitations = new Map(invited.map((info) => [info.room_id, info]));
    for (const info of listed) {
      if (info.me?.invited_by) continue;
      const room = this.all.get(info.room_id);
      if (!room) this.add(info);
      else if (room.state === "here") room.compare(info);
      else room.update(info);
    }
    const ids = new Set(listed.map((info) => info.room_id));
    for (const room of [...this.all.values()]) {
      if (room.member && before.has(room.id) && !ids.has(room.id)) this.#lose(room, "You are not in this room any more.");
    }
    this.listed = true;
  }

  /** Other public rooms, those with `query` in their name. */
  async look(query = "") {
    this.query = query;
    const page = await this.client.patiently("list_rooms", { query: query.slice(0, 100), limit: LISTED });
    if (query !== this.query) return;
    this.others = page.rooms.filter((info) => !info.me);
    this.more = page.more;
    this.emit("list");
  }

  /** A room that is not here yet, as the server describes it. */
  add(info) {
    if (this.all.has(info.room_id)) return this.all.get(info.room_id);
    const room = new Room(info, {
      me: this.self,
      admin: this.admin,
      load: (query) => (room.stored ? this.client.patiently("get_messages", { room_id: room.id, ...query }) : this.#liveHistory(room, query)),
    });
    this.all.set(room.id, room);
    this.invitations.delete(room.id);
    for (const what of ["info", "counts", "people"]) room.on(what, () => this.emit("room", room));
    this.emit("list");
    return room;
  }

  /** A room that keeps no messages has a short past in its channel. */
  async #liveHistory(room, { before, after, limit }) {
    const page = await this.client.patiently("history", { channel: `room:${room.id}`, before, after, limit });
    const messages = page.messages.filter(({ type }) => type === "message").map(({ data }) => data);
    const position = { epoch: page.epoch, offset: page.offset };
    return { messages, before: after === undefined && page.more, after: after !== undefined && page.more, position };
  }

  // -- coming and going

  /** The room of an id, entered by this connection. In a public room the user becomes a member by that. */
  enter(id) {
    const room = this.all.get(id) ?? this.add(this.#known(id) ?? { room_id: id, name: id });
    if (room.state === "entering" || room.state === "here") return room;
    room.state = "entering";
    room.reason = "";
    this.#makePlace(room);
    room.entering = this.client.join(id).catch(() => {}); // what it says comes as room_joined or room_refused
    return room;
  }

  #known(id) {
    return this.invitations.get(id) ?? this.others.find((info) => info.room_id === id);
  }

  /** Be in the liveliest rooms, so that they hear what is said. One after the other: the rate is limited. */
  async enterAll() {
    const lively = [...this.all.values()].filter((room) => room.member).sort((a, b) => activity(b) - activity(a));
    let entered = 0;
    for (const room of lively.slice(0, ENTERED)) {
      if (!this.client.online || this.all.get(room.id) !== room || room.state !== "away") continue;
      await this.enter(room.id).entering;
      if (++entered > AT_ONCE) await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
    if (entered) await this.refresh(); // what was said in a room while we were just entering it, nobody has told us
  }

  #makePlace(wanted) {
    const here = [...this.all.values()].filter((room) => room.state === "here" || room.state === "entering");
    if (here.length <= ENTERED) return;
    const [quietest] = here.filter((room) => room !== wanted && !room.timeline.loaded).sort((a, b) => activity(a) - activity(b));
    if (!quietest) return;
    quietest.state = "away";
    this.client.leave(quietest.id).catch(() => {});
  }

  /** Leave a room: for good where the user is a member. */
  async leave(room) {
    room.leaving = true; // then it is no surprise that we are out of it
    try {
      if (room.member) await this.client.request("leave_room", { room_id: room.id, membership: true });
      else this.client.leave(room.id).catch(() => {});
    } finally {
      room.leaving = false;
    }
    this.#lose(room, "", true);
  }

  async decline(id) {
    await this.client.request("leave_room", { room_id: id, membership: true });
    this.invitations.delete(id);
    this.emit("list");
  }

  /** We are out of a room; `remains`: it is still there, among the other ones if it is public. */
  #lose(room, reason, remains = false) {
    if (this.all.get(room.id) !== room) return;
    this.all.delete(room.id);
    if (remains && room.info.visibility === "public" && !this.others.some((info) => info.room_id === room.id)) {
      this.others = [...this.others, { ...room.info, me: null }];
    }
    room.state = "gone";
    room.reason = reason;
    room.clearTyping();
    this.client.forget(room.id);
    this.emit("gone", room);
    this.emit("list");
  }

  // -- what the server tells

  #listen() {
    const on = (type, listener) => this.client.addEventListener(type, ({ detail }) => listener(detail));
    const inRoom = (type, listener) => on(type, (detail) => {
      const room = this.all.get(detail.room_id);
      if (room) listener(room, detail);
    });
    for (const type of NUMBERED) inRoom(type, (room, detail) => this.#happened(room, type, detail));
    on("room_added", ({ room }) => this.#roomAdded(room));
    on("room_removed", ({ room_id: id, reason }) => this.#roomRemoved(id, reason));
    inRoom("room_left", (room, { reason }) => reason && this.#roomRemoved(room.id, reason));
    inRoom("room_joined", (room, detail) => this.#joined(room, detail));
    inRoom("room_refused", (room, { error }) => this.#refused(room, error));
    inRoom("read", (room, detail) => {
      if (detail.thread) room.timeline.readThread(detail.thread, detail.unread);
      else room.setRead(detail);
    });
    inRoom("receipt", (room, { user_id: user, id }) => room.setReceipt(user, id));
    inRoom("typing", (room, { user_id: user, active }) => user !== this.self && room.setTyping(user, active));
    inRoom("room_count", (room, { count }) => room.setUsers(null, count));
    inRoom("user_joined", (room, { user_id: user }) => this.#roster(room, () => room.userJoined(user)));
    inRoom("user_left", (room, { user_id: user }) => this.#roster(room, () => room.userLeft(user)));
  }

  #happened(room, type, { data, offset = data.id }) {
    const before = type === "message_updated" || type === "message_deleted" ? room.timeline.find(data.id)?.mentions : null;
    const item = room.take(type, data, offset);
    if (type === "message") this.emit("message", room, data, item);
    else this.emit("event", room, type, data);
    if (before !== null && data.id > room.read && room.member) this.#recount(room);
  }

  /** An edit may call the user, or no longer; the server counts that better than we could. */
  async #recount(room) {
    try {
      const { room: info } = await this.client.patiently("get_room", { room_id: room.id });
      room.update(info);
    } catch {
      // the next mark brings it into order
    }
  }

  #roomAdded(info) {
    if (info.me?.invited_by) {
      this.invitations.set(info.room_id, info);
      this.emit("list");
      return;
    }
    const known = this.all.get(info.room_id);
    if (known) known.update(info);
    else this.add(info);
    this.others = this.others.filter((other) => other.room_id !== info.room_id);
    this.enter(info.room_id);
    this.emit("list");
  }

  #roomRemoved(id, reason) {
    if (this.invitations.delete(id)) this.emit("list");
    const room = this.all.get(id);
    const why = { kicked: "A moderator removed you from this room.", banned: "You are banned from this room.", left: "You left this room on another device." };
    if (room) this.#lose(room, room.leaving ? "" : (why[reason] ?? "You are not in this room any more."), reason in why);
  }

  #joined(room, detail) {
    room.state = "here";
    room.update(detail.room);
    room.countFrom(detail.position.offset);
    if (detail.missed) room.timeline.forget();
    room.setUsers(detail.users, detail.count);
    room.clearTyping();
    this.others = this.others.filter((info) => info.room_id !== room.id);
    this.emit("list");
    this.emit("entered", room, detail);
  }

  #refused(room, error) {
    if (error.code === "too_many" && room.member) {
      room.state = "away"; // in too many at once: this one is looked at from time to time
      return;
    }
    this.#lose(room, error.code === "not_found" ? "This room is not there, or not for you." : sentence(error.message));
  }

  async #roster(room, change) {
    if (room.usersKnown) {
      change();
      return;
    }
    try { // the room has become small enough for a list
      const { users, count } = await this.client.request("presence", { channel: `room:${room.id}` });
      const list = Object.entries(users).map(([user, here]) => ({ user_id: user, ...here }));
      room.setUsers(list.length === count ? list : null, count);
    } catch {
      // the next change asks again
    }
  }
}

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function byName(a, b) {
  return collator.compare(a.name, b.name) || (a.id < b.id ? -1 : 1);
}

/** When something was last said in a room. */
function activity(room) {
  return new Date(room.info.last_at ?? room.info.created_at ?? 0).getTime();
}
