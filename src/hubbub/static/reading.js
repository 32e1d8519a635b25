// What the user has read, as they read it: told to the server a second after the end came into sight, and only forward.

const AFTER = 1_000; // ms

export class Reading {
  constructor(client) {
    this.client = client;
  }

  #waiting = new Map(); // room and thread → {timer, id, send}
  #told = new Map(); // room and thread → id

  /** The user sees the end of a room, or of a thread, and `id` is its newest message. */
  saw(room, id, thread = null) {
    const key = `${room.id} ${thread ?? ""}`;
    const told = Math.max(this.#told.get(key) ?? 0, thread ? 0 : room.read);
    if (!id || id <= told) return;
    const waiting = this.#waiting.get(key);
    if (waiting) {
      waiting.id = Math.max(waiting.id, id);
      return;
    }
    const entry = { id, timer: setTimeout(() => this.#tell(key, room, thread), AFTER) };
    this.#waiting.set(key, entry);
  }

  async #tell(key, room, thread) {
    const { id } = this.#waiting.get(key);
    this.#waiting.delete(key);
    this.#told.set(key, id);
    try {
      const ack = await this.client.request("mark_read", { room_id: room.id, id, ...(thread && { thread }) });
      if (!thread) room.setRead(ack);
      else room.timeline.readThread(thread, ack.unread);
    } catch (error) {
      if (thread && error.code === "not_found") return; // the user does not follow it: there is no mark
      this.#told.delete(key); // the next look tells it again
    }
  }

  forget() {
    for (const { timer } of this.#waiting.values()) clearTimeout(timer);
    this.#waiting.clear();
    this.#told.clear();
  }
}
