// Messages, and the field below them where one writes: the same for a room and for a thread.

import { Composer } from "./composer.js";
import { Deeds } from "./deeds.js";
import { announce } from "./dom.js";
import { MessageList } from "./list.js";
import { Outbox } from "./outbox.js";
import { Toolbar } from "./toolbar.js";
import { EVERYONE } from "./text.js";

export class Conversation {
  /**
   * `desk`: what the page shares (see app.js). `parts`: elements for the list. `host`, `prefix`: for the composer.
   * `onread()`: its end is in sight; `onsay()`: the user says something; `onnewest()`: the newest is asked for.
   */
  constructor(desk, { parts, host, prefix, inThread = false, onread, onsay = () => {}, onnewest }) {
    this.desk = desk;
    this.inThread = inThread;
    this.onsay = onsay;
    this.room = null;
    this.timeline = null;
    this.deeds = new Deeds(desk, this);
    this.list = new MessageList(parts, this.#rowActions(), { onread, onnewest });
    this.composer = new Composer(host, prefix, {
      onsend: (message) => this.#say(message),
      ontyping: () => this.room?.state === "here" && desk.client.send("typing", { room_id: this.room.id }),
      oneditlast: () => this.#editLast(),
      candidates: (query) => this.#candidates(query),
      token: () => desk.client.token,
    });
    this.toolbar = new Toolbar(this.list, this.deeds, { inThread });
  }

  #ends = [];

  #rowActions() {
    const { desk, deeds } = this;
    const conversation = this;
    return {
      get me() {
        return desk.me;
      },
      pictures: desk.pictures,
      quoted: (id) => conversation.room && desk.quotesOf(conversation.room).get(id),
      jump: (id) => desk.jump(conversation.room.id, id, conversation.inThread ? conversation.timeline.thread : null),
      openThread: (item) => deeds.thread(item),
      react: (item, emoji) => deeds.may("react", item) && deeds.react(item, emoji),
      person: (name, anchor) => desk.person(conversation.room, name, anchor),
      versions: (item, anchor) => deeds.versions(item, anchor),
      retry: (item) => conversation.timeline.outbox.retry(item),
      discard: (item) => conversation.timeline.outbox.discard(item),
      saveEdit: (item, text) => deeds.saveEdit(item, text),
      showPicture: (info, url, opener) => deeds.showPicture(info, url, opener),
      download: (info) => deeds.download(info),
    };
  }

  /** Show a room's timeline, and go on with what was being written there. */
  show(room, timeline, newFrom = null) {
    if (this.timeline) this.timeline.draft = this.composer.draft;
    for (const end of this.#ends) end();
    this.#ends = [];
    this.room = room;
    this.timeline = timeline;
    if (room) {
      timeline.outbox ??= this.#outbox(room, timeline);
      this.composer.roomId = room.id;
      this.#ends.push(this.desk.quotesOf(room).on("known", (id) => this.list.requote(id)));
      this.#ends.push(room.on("info", () => this.address()));
    }
    this.list.show(timeline, newFrom);
    this.composer.draft = timeline?.draft ?? {};
    this.composer.hold(((timeline?.heldUntil ?? 0) - Date.now()) / 1000);
    if (room) this.address();
  }

  /** Say for whom the field is, or why nothing can be written. */
  address() {
    const { room } = this;
    if (!room) return;
    const what = this.inThread ? "Reply in this thread" : `Message ${room.direct ? "" : "#"}${room.name}`;
    this.composer.address(what, room.obstacle(), room.stored);
    if (!room.info.slow_mode || room.rank >= 2) this.composer.free();
  }

  #outbox(room, timeline) {
    const { desk } = this;
    return new Outbox({
      timeline,
      roomId: room.id,
      send: (fields) => desk.client.request("chat_message", fields),
      ready: () => desk.client.online && room.state === "here",
      onsent: (item) => {
        for (const upload of item.uploads) upload.release();
        if (room.info.slow_mode && room.rank < 2) this.#hold(timeline, room.info.slow_mode);
      },
      onslow: (seconds) => this.#hold(timeline, seconds),
      onfail: () => timeline === this.timeline && announce("A message was not sent"),
    });
  }

  #hold(timeline, seconds) {
    timeline.heldUntil = Date.now() + seconds * 1000;
    if (timeline === this.timeline) this.composer.hold(seconds);
  }

  async #say({ text, replyTo, uploads }) {
    const { room, timeline } = this;
    this.onsay();
    if (timeline.after) await timeline.open().catch(() => {}); // one's own words stand at the end: go there first
    const item = timeline.outbox.add({ text, replyTo, uploads });
    for (const upload of uploads) upload.onchange = () => timeline.changed(item);
    if (room === this.room && timeline === this.timeline) this.list.end();
  }

  #editLast() {
    const last = this.timeline?.items.findLast((item) => item.own && !item.deletedAt);
    if (last && this.deeds.may("edit", last)) {
      this.list.reveal(last.id, false);
      this.deeds.edit(last);
    }
  }

  async #candidates(query) {
    const { room, timeline } = this;
    if (!room) return [];
    const names = new Map();
    const add = (name, note) => name !== this.desk.me && !names.has(name) && names.set(name, note);
    for (const { user } of timeline.items.toReversed()) add(user, room.users.has(user) ? "here" : "");
    for (const user of room.users.keys()) add(user, "here");
    for (const user of await this.desk.membersOf(room, query)) add(user, room.users.has(user) ? "here" : "");
    const list = [...names].map(([name, note]) => ({ name, note }));
    if (room.may("call_all") && !room.direct) list.push({ name: EVERYONE, note: "everybody in the room" });
    return list;
  }
}
