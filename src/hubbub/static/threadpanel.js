// A thread beside its room: the message that began it, its replies, and a field of its own to write in.

import { Conversation } from "./conversation.js";
import { $, setText, show } from "./dom.js";
import { messageOf } from "./message.js";
import { Row } from "./row.js";
import { plural } from "./text.js";
import { Timeline } from "./timeline.js";

export class ThreadPanel {
  constructor(desk, reading) {
    this.desk = desk;
    this.reading = reading;
    this.room = null;
    this.root = null; // the item that began it
    this.conversation = new Conversation(desk, {
      parts: {
        scroller: $("replies-scroller"), list: $("replies"), top: $("replies-top"), topText: $("replies-top-text"), topRetry: $("replies-retry"),
        foot: $("replies-foot"), toEnd: $("replies-to-newest"), toEndText: $("replies-to-newest-text"),
      },
      host: $("thread-compose"),
      prefix: "thread-composer",
      inThread: true,
      onread: () => this.look(),
      onnewest: () => this.timeline.open().then(() => this.list.end(), () => {}),
    });
    this.list = this.conversation.list;
    this.list.onends = () => this.#paintEnds();
  }

  #row = null;
  #ends = [];

  get timeline() {
    return this.room?.thread ?? null;
  }

  get watched() {
    return document.visibilityState === "visible" && document.hasFocus() && this.list.atEnd;
  }

  /** Open the thread of a message. `around`: one of its replies that is to be shown. */
  async open(room, rootId, { around = null } = {}) {
    if (this.room !== room || this.timeline?.thread !== rootId) {
      this.close();
      this.room = room;
      room.thread = new Timeline({ me: room.self, load: room.timeline.load, thread: rootId });
      this.#ends.push(room.on("took", (type, data) => this.#happened(type, data)));
      this.conversation.show(room, room.thread);
      setText($("thread-room"), room.name);
      this.#showRoot(room, rootId);
    }
    this.desk.panels.open("thread-panel");
    this.conversation.composer.fit();
    const { thread } = room;
    if (!thread.loaded || (around && !thread.find(around))) {
      await thread.open(around ? { around } : {}).catch(() => {});
    }
    if (thread !== this.timeline) return;
    if (around) this.list.reveal(around);
    else if (this.desk.panels.roomy) this.conversation.composer.field.focus();
    this.look();
  }

  close() {
    for (const end of this.#ends) end();
    this.#ends = [];
    this.#row?.remove();
    this.#row = null;
    this.root = null;
    if (!this.room) return;
    this.conversation.show(null, null);
    this.room.thread = null;
    this.room = null;
  }

  /** The connection is back in the room: what happened in the thread meanwhile came with the rest, or is fetched anew. */
  returned(room, missed) {
    if (room !== this.room) return;
    if (missed) this.timeline.forget();
    if (!this.timeline.loaded) this.timeline.open().catch(() => {});
    this.timeline.outbox.pump();
  }

  async #showRoot(room, id) {
    let item = room.timeline.find(id);
    if (!item) {
      try {
        const page = await this.desk.client.request("get_messages", { room_id: room.id, around: id, limit: 1 });
        item = messageOf(page.messages[0], room.self, page.position.offset);
      } catch {
        return; // its replies are shown without it
      }
    }
    if (room !== this.room || this.timeline.thread !== id) return;
    this.root = item;
    this.#row = new Row(item, this.list.actions);
    this.#row.element.removeAttribute("tabindex");
    this.#row.dress({ day: "", isNew: false, continues: false });
    $("thread-root").append(this.#row.element);
    this.#ends.push(room.timeline.on("changed", (changed) => {
      if (changed.id === id) this.#paintRoot(changed);
    }));
    this.#paintEnds();
  }

  #paintRoot(item) {
    if (!this.#row) return;
    this.root = this.#row.item = item;
    this.#row.paint();
    this.#paintEnds();
  }

  #happened(type, data) {
    if (type !== "message" || data.thread !== this.timeline?.thread) return;
    const item = this.timeline.find(data.id);
    if (item && !item.own) this.list.arrived([item]);
    if (this.watched) this.look();
    this.#paintEnds();
  }

  /** The user looks: if the end is in sight, all of the thread is read. */
  look() {
    const { room, timeline } = this;
    if (!timeline?.loaded || !this.watched || !timeline.newest) return;
    const unread = this.root?.replies?.unread;
    if (!unread) return; // who does not follow it has no mark in it
    room.timeline.readThread(timeline.thread, 0);
    if (this.root.replies.unread) this.root.replies = { ...this.root.replies, unread: 0 };
    this.reading.saw(room, timeline.newest.id, timeline.thread);
  }

  #paintEnds() {
    const { timeline } = this;
    const count = timeline?.items.length ?? 0;
    const known = this.root?.replies?.replies ?? 0;
    setText($("replies-count"), timeline?.loaded ? (count || known ? plural(Math.max(count, known), "reply", "replies") : "No replies yet") : "");
    show($("replies-count"), Boolean(timeline?.loaded));
  }
}
