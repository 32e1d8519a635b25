// Own messages on their way to the server: one after the other, and each until it is there or is refused. A message keeps
// its client_id however often it is sent, so the server never has it twice.

import { randomId, sentence } from "./text.js";

/** Refusals that pass: the same message will do later. */
const PASSING = new Set(["busy", "unavailable", "rate_limited", "slow_mode", "internal", "timeout"]);
const TRIES = 8;
const FIRST_WAIT = 1_500; // ms before a second try, where the server does not say

export class Outbox {
  /**
   * `send(fields)` sends one and resolves with the ack; `ready()`: whether there is any use in trying now.
   * `onsent(item)`, `onslow(seconds)` (slow mode holds the next one up) and `onfail(item)` tell of how it goes.
   */
  constructor({ timeline, roomId, send, ready, onsent, onslow, onfail }) {
    Object.assign(this, { timeline, roomId, send, ready, onsent, onslow, onfail });
  }

  #busy = false;
  #timer = 0;

  add({ text, replyTo = null, uploads = [] }) {
    const item = this.timeline.addDraft({ text, replyTo, uploads, clientId: randomId() });
    item.tries = 0;
    this.pump();
    return item;
  }

  retry(item) {
    Object.assign(item, { state: "pending", error: "", retryAt: 0, tries: 0 });
    for (const upload of item.uploads) if (upload.state === "failed") upload.start();
    this.timeline.changed(item);
    this.pump();
  }

  discard(item) {
    for (const upload of item.uploads) upload.cancel();
    this.timeline.discard(item);
    this.pump();
  }

  /** Give up all that is not sent yet. */
  fail(why) {
    for (const item of this.timeline.pending) this.#fail(item, why);
  }

  /** Send what waits, if nothing stands in its way. */
  async pump() {
    if (this.#busy) return;
    this.#busy = true;
    clearTimeout(this.#timer);
    try {
      for (let item = this.#next(); item && this.ready(); item = this.#next()) {
        const wait = item.retryAt - Date.now();
        if (wait > 0) {
          this.#timer = setTimeout(() => this.pump(), wait);
          break;
        }
        if (!(await this.#post(item))) break;
      }
    } finally {
      this.#busy = false;
    }
  }

  #next() {
    return this.timeline.pending.find((item) => item.state === "pending");
  }

  /** Returns whether the next one may go. */
  async #post(item) {
    try {
      const files = [];
      for (const upload of item.uploads) files.push((await upload.done).id);
      const { text, clientId, replyTo, thread } = item;
      const ack = await this.send({
        room_id: this.roomId,
        message: text,
        client_id: clientId,
        ...(replyTo && { reply_to: replyTo }),
        ...(thread && { thread }),
        ...(files.length && { files }),
      });
      this.timeline.confirm(clientId, ack.id, { timestamp: ack.timestamp });
      this.onsent(item);
      return true;
    } catch (error) {
      return this.#refused(item, error);
    }
  }

  #refused(item, error) {
    if (error.code === "connection_lost") return false; // it goes out once we are back
    if (!this.timeline.pending.includes(item)) return true; // it was discarded meanwhile
    if (!PASSING.has(error.code) || ++item.tries >= TRIES) {
      this.#fail(item, sentence(error.message));
      return true;
    }
    const wait = error.retryAfter ? error.retryAfter * 1000 + 50 : FIRST_WAIT * 2 ** Math.min(item.tries - 1, 4);
    Object.assign(item, { retryAt: Date.now() + wait, error: sentence(error.message) });
    if (error.code === "slow_mode") {
      item.tries = 0;
      this.onslow(wait / 1000);
    }
    this.timeline.changed(item);
    this.#timer = setTimeout(() => this.pump(), wait);
    return false;
  }

  #fail(item, error) {
    Object.assign(item, { state: "failed", error, retryAt: 0 });
    this.timeline.changed(item);
    this.onfail(item);
  }
}
