// The originals of answers: messages that may lie far away from those that are shown.

import { Emitter } from "./emitter.js";
import { erase, messageOf, revise } from "./message.js";

const KEPT = 300;
const PAUSE = 120; // ms between two that are fetched: there may be many, and the rate is limited

/** It tells `known(id)`: a message that was asked for is known now, or is another one now. */
export class Quotes extends Emitter {
  constructor(client, room) {
    super();
    this.client = client;
    this.room = room;
    room.on("took", (type, data, offset) => this.#happened(type, data, offset));
  }

  #known = new Map(); // id → item, or null where there is none
  #wanted = []; // ids to be fetched
  #fetching = false;

  /** The message; null: there is none; undefined: that is not known yet, and will be told. */
  get(id) {
    const here = this.room.timeline.find(id) ?? this.room.thread?.find(id);
    if (here) return here;
    if (this.#known.has(id)) return this.#known.get(id);
    if (!this.#wanted.includes(id)) {
      this.#wanted.push(id);
      this.#fetch();
    }
    return undefined;
  }

  async #fetch() {
    if (this.#fetching) return;
    this.#fetching = true;
    while (this.#wanted.length) {
      const id = this.#wanted.at(-1); // what was asked for last is what is looked at
      try {
        this.#keep(id, await this.#ask(id));
      } catch (error) {
        if (error.code !== "not_found") break; // when it is asked for again
        this.#keep(id, null);
      }
      this.#wanted = this.#wanted.filter((each) => each !== id);
      this.emit("known", id);
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
    this.#wanted = [];
    this.#fetching = false;
  }

  async #ask(id) {
    const root = this.room.thread?.thread ?? null;
    const fields = { room_id: this.room.id, around: id, limit: 1 };
    const page = await this.client.patiently("get_messages", fields).catch((error) => {
      if (root === null || error.code !== "not_found") throw error;
      return this.client.patiently("get_messages", { ...fields, thread: root }); // it may be of the open thread
    });
    const wire = page.messages.find((message) => message.id === id);
    return wire ? messageOf(wire, this.room.self, page.position.offset) : null;
  }

  #keep(id, item) {
    this.#known.set(id, item);
    if (this.#known.size > KEPT) this.#known.delete(this.#known.keys().next().value);
  }

  #happened(type, data, offset) {
    if (type === "user_erased") {
      for (const [id, item] of this.#known) if (item && erase(item, data.user_id)) this.emit("known", id);
    } else if (type === "message_updated" || type === "message_deleted") {
      const item = this.#known.get(data.id);
      if (item && revise(item, data, offset)) this.emit("known", data.id);
    }
  }
}
