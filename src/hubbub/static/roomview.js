// The open room: its head, its messages, what is unread in it, who has seen it, who types.

import { Conversation } from "./conversation.js";
import { $, announce, h, setText, show } from "./dom.js";
import { plural, short } from "./text.js";

export class RoomView {
  /** `desk`: what the page shares (see app.js). `reading`: keeps the user's marks. */
  constructor(desk, reading) {
    this.desk = desk;
    this.reading = reading;
    this.room = null;
    this.conversation = new Conversation(desk, {
      parts: {
        scroller: $("thread"), list: $("messages"), top: $("thread-top"), topText: $("thread-top-text"), topRetry: $("thread-retry"),
        foot: $("receipts"), toEnd: $("to-newest"), toEndText: $("to-newest-text"),
      },
      host: $("compose"),
      prefix: "composer",
      onread: () => this.look(),
      onsay: () => this.#unmark(),
      onnewest: () => this.#newest(),
    });
    this.list = this.conversation.list;
    this.list.onends = () => this.paintEnds();
    $("unread-jump").addEventListener("click", () => this.#toFirstUnread());
    $("unread-close").addEventListener("click", () => this.#unmark());
    $("notice-close").addEventListener("click", () => this.tell(""));
  }

  #ends = [];
  #mutedTimer = 0;

  /** Whether somebody looks at the end of the room. */
  get watched() {
    return document.visibilityState === "visible" && document.hasFocus() && this.list.atEnd;
  }

  show(room) {
    if (this.room) this.#leave();
    this.room = room;
    this.tell("");
    for (const end of this.#ends) end();
    this.#ends = [];
    if (room) {
      const on = (what, then) => this.#ends.push(room.on(what, then));
      on("info", () => this.paintHead());
      on("people", () => this.paintHead());
      on("typing", () => this.#paintTyping());
      on("receipts", () => this.#paintReaders());
      this.#ends.push(room.timeline.on("changed", () => this.#paintReaders()), room.timeline.on("inserted", () => this.#paintReaders()));
    }
    this.conversation.show(room, room?.timeline ?? null, room?.newFrom ?? null);
    this.paint();
    if (room?.timeline.loaded) {
      this.#findFirstUnread();
      this.list.refresh(room.newFrom);
      this.list.toUnread();
      this.look();
    } else {
      this.load();
    }
  }

  /** What was new on this visit is not new on the next one. */
  #leave() {
    const { timeline } = this.room;
    this.room.newFrom = null;
    this.conversation.list.newFrom = null;
    if (timeline.after) timeline.forget(); // next time the newest is wanted
  }

  // -- fetching

  /** The newest page of the room, once this connection is in it. */
  async load({ around = null } = {}) {
    const { room } = this;
    if (!room || room.state !== "here" || room.timeline.loaded || room.timeline.fetching("all")) return;
    try {
      await room.timeline.open(around ? { around } : {});
    } catch (error) {
      if (around && error.code === "not_found") await room.timeline.open().catch(() => {});
    }
    if (room !== this.room || !room.timeline.loaded) return;
    this.#findFirstUnread();
    this.list.refresh(room.newFrom);
    if (around) this.list.reveal(around);
    else this.list.toUnread();
    this.paintEnds();
    this.look();
    this.#loadReceipts(room);
  }

  async #loadReceipts(room) {
    if (!room.stored || room.info.kind !== "group" || !room.member) return room.setReceipts(null);
    try {
      room.setReceipts((await this.desk.client.patiently("list_receipts", { room_id: room.id })).receipts);
    } catch {
      room.setReceipts(null); // it has too many members for that
    }
  }

  /** The connection is back in the room, and missed nothing but what passes by. */
  returned() {
    if (!this.room.timeline.loaded) return this.load();
    this.look();
    return this.#loadReceipts(this.room);
  }

  /** Something was lost on the way: fetch again what is shown, and say so. */
  async reload(room, why) {
    const { timeline } = room;
    const around = room === this.room && !this.list.stuck ? (timeline.anchor?.id ?? null) : null;
    timeline.forget();
    if (room !== this.room) return;
    await this.load({ around });
    this.tell(why);
  }

  async #newest() {
    await this.room.timeline.open().catch(() => {});
    this.list.end();
    this.look();
    this.conversation.composer.field.focus();
  }

  /** Show a message, wherever in the room it is. False if it is not there. */
  async jump(id) {
    const { room } = this;
    if (this.list.reveal(id)) return true;
    try {
      await room.timeline.open({ around: id });
    } catch {
      return false;
    }
    return room === this.room && this.list.reveal(id);
  }

  // -- what is new

  #findFirstUnread() {
    const { room } = this;
    if (room.newFrom === null && room.unread > 0) {
      const { items, before } = room.timeline;
      const at = items.findIndex((item) => item.id > room.read && !item.own && !item.system);
      if (at > 0 || (at === 0 && !before)) room.newFrom = items[at].id;
      else if (at === 0) this.#further = { read: room.read, count: room.unread };
    }
    this.#paintUnread();
  }

  #further = null; // the first unread message lies before what is shown: {read, count}

  #paintUnread() {
    show($("unread-bar"), this.#further !== null);
    if (this.#further) setText($("unread-text"), `${short(this.#further.count)} new ${this.#further.count === 1 ? "message" : "messages"}`);
  }

  async #toFirstUnread() {
    const { room } = this;
    const { read } = this.#further;
    this.#further = null;
    this.#paintUnread();
    const { timeline } = room;
    try {
      const page = await this.desk.client.patiently("get_messages", { room_id: room.id, after: read, limit: 1 });
      const [first] = page.messages;
      if (!first || room !== this.room) return;
      room.newFrom = first.id;
      if (!timeline.find(first.id)) await timeline.open({ around: first.id });
      this.list.refresh(first.id);
      this.list.reveal(first.id);
    } catch {
      announce("It could not be loaded");
    }
  }

  #unmark() {
    this.#further = null;
    this.#paintUnread();
    if (!this.room?.newFrom) return;
    this.room.newFrom = null;
    this.list.refresh(null);
  }

  /** The user looks: if the end is in sight, all of it is read. */
  look() {
    const { room } = this;
    if (!room?.timeline.loaded || !this.watched) return;
    const newest = room.timeline.newest?.id ?? 0;
    if (!newest || !room.member) return;
    this.reading.saw(room, newest);
    if (room.unread || room.mentions) room.seen(newest);
  }

  /** Something was said in the room. `item`: as it stands in the window, if it does. */
  said(data, item) {
    const { room, list } = this;
    if (data.thread) return;
    if (item) list.arrived([item]);
    else if (room.timeline.after && data.user_id !== this.desk.me && !data.system) list.missed();
    if (this.watched) {
      this.look();
    } else if (item && !item.own && !item.system && room.newFrom === null && this.#further === null) {
      room.newFrom = item.id;
      list.refresh(item.id);
    }
    this.#paintReaders();
  }

  // -- what is shown around the messages

  /** A calm word above the messages, until it is closed; "" takes it away. */
  tell(text) {
    show($("room-notice"), text !== "");
    setText($("notice-text"), text);
    if (text) announce(text);
  }

  paint() {
    $("room").classList.toggle("none", this.room === null);
    this.#further = null;
    this.#paintUnread();
    this.paintHead();
    this.paintEnds();
    this.#paintTyping();
    this.#paintReaders();
  }

  paintHead() {
    const { room } = this;
    show($("room-head"), room !== null);
    show($("compose"), room !== null);
    if (!room) return;
    setText($("room-name"), room.name);
    setText($("room-sub"), this.#subtitle(room));
    setText($("room-topic"), room.info.topic ?? "");
    show($("room-topic"), Boolean(room.info.topic));
    $("room-topic").title = room.info.topic ?? "";
    setText($("people-count"), short(room.count));
    show($("pins-button"), room.stored);
    show($("search-button"), room.stored);
    show($("settings-button"), room.stored && room.state !== "gone");
    clearTimeout(this.#mutedTimer);
    const muted = room.mutedFor();
    if (muted > 0) this.#mutedTimer = setTimeout(() => this.#refreshMuted(room), Math.min(muted + 100, 20_000));
  }

  #refreshMuted(room) {
    if (room !== this.room) return;
    this.conversation.address();
    this.paintHead();
  }

  #subtitle(room) {
    if (!this.desk.client.online) return "Not connected";
    if (room.state !== "here") return room.state === "entering" ? "Entering…" : "";
    const here = `${room.count === 1 ? "Only you are" : `${plural(room.count, "person is", "people are")}`} here`;
    return room.info.archived_at ? `Archived · ${here}` : here;
  }

  /** In place of messages: nothing yet, no room, no such room any more. */
  paintEnds() {
    const [title, text, action] = this.#emptyWords();
    show($("thread-empty"), title !== "");
    setText($("empty-title"), title);
    setText($("empty-text"), text);
    show($("empty-action"), action !== "");
    setText($("empty-action"), action);
    this.#paintBeginning();
  }

  #paintBeginning() {
    const { room } = this;
    const timeline = room?.timeline;
    const begins = Boolean(timeline?.loaded && !timeline.before && timeline.all.length > 0 && room.stored);
    show($("beginning"), begins);
    if (!begins) return;
    const kept = room.info.retention_days ? `Messages are kept for ${plural(room.info.retention_days, "day")}.` : "";
    const joined = room.info.history === "joined" ? "What was said before you joined is not shown." : "";
    const where = room.direct ? ["This is the beginning of what you and ", h("bdi", {}, room.name), " say to each other."]
      : ["This is the beginning of ", h("bdi", {}, room.name), "."];
    $("beginning").replaceChildren(h("span", {}, ...where), ...[kept, joined].filter(Boolean).map((line) => h("span", {}, ` ${line}`)));
  }

  #emptyWords() {
    const { room, desk } = this;
    if (!room) return desk.client.online && desk.rooms.listed ? ["No room is open", "Pick one of the list, or make a new one.", "New room"] : ["", "", ""];
    if (room.state === "gone") return ["You are not in this room", room.reason, ""];
    const { timeline } = room;
    if (timeline.fault && !timeline.loaded) return ["The messages could not be loaded", timeline.fault, "Try again"];
    if (room.state === "here" && timeline.loaded && timeline.all.length === 0) {
      const obstacle = room.obstacle();
      return ["Nothing said yet", obstacle || (room.direct ? "Only the people of this room will see it." : "The first word is yours."), ""];
    }
    return ["", "", ""];
  }

  #paintTyping() {
    const names = this.room ? [...this.room.typing.keys()] : [];
    const text = names.length === 0 ? ""
      : names.length === 1 ? `${names[0]} is typing`
      : names.length === 2 ? `${names[0]} and ${names[1]} are typing`
      : "Several people are typing";
    if (text) setText($("typing-text"), text); // it keeps its words while it fades
    $("typing").classList.toggle("on", text !== "");
    $("typing").setAttribute("aria-hidden", String(text === ""));
  }

  #paintReaders() {
    const { room } = this;
    const timeline = room?.timeline;
    const last = timeline && !timeline.after ? timeline.items.findLast((item) => !item.system) : null;
    this.list.showReaders(last && room.receipts ? room.readersOf(last) : []);
  }
}
