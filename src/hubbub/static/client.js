// A small client of the wire protocol, version 1: one WebSocket that comes back by itself.
//
//   const client = new Client({ url: websocketUrl() });
//   client.addEventListener("message", (event) => console.log(event.detail.data.message));
//   client.start(token);
//   await client.join("general");
//   await client.request("chat_message", { room_id: "general", message: "hello", client_id: crypto.randomUUID() });
//
// Events, all CustomEvents with what the server sent in `detail`: every server message under its type, and
//   state         {name, retryAt?, code?, reason?, mayRetry?}: see STATES
//   room_joined   as sent, and `resumed` (true when this was a return to a room), `missed` (true: there is a hole)
//   gap           {channel, epoch, offset}: something before this is gone for good (a slow connection)
//   room_refused  {room_id, error}: a room that cannot be entered (any more)
//   room_left     as sent; with a `reason` where the server ended it

/** What `state.name` may be. `waiting`: it comes back at `retryAt`. `stopped`: it does not come back by itself. */
export const STATES = ["signed-out", "connecting", "online", "waiting", "offline", "stopped"];

const BASE = 500; // ms of the first backoff's bound
const CAP = 30_000; // ms that the bound grows to
const STABLE = 5_000; // ms online after which the next loss starts with the first backoff again
const HANDSHAKE = 12_000; // ms from connecting to auth_success
const ANSWER = 12_000; // ms that a request waits for its reply
const LIFE_SIGN = 6_000; // ms that a ping's answer may take
const ABUSE = 5; // seconds that we stay away at least after a 4429
const AT_ONCE = 20; // rooms and channels entered again without a pause
const PAUSE = 100; // ms
const AGAIN = 4_000; // ms until a room is asked for again that could not be entered for now

const OFFENCE = new Set([1002, 1003, 1007, 1008, 1009]); // we said something wrong: again would be wrong again
const REFUSED = new Set([1000, 4403, 4404, 4409]); // somebody decided so
const PASSING = new Set(["timeout", "rate_limited", "busy", "unavailable", "internal"]); // the same may do later

/** A request that was refused (`code` as in the protocol), lost (`connection_lost`) or never answered (`timeout`). */
export class RequestError extends Error {
  constructor(code, message, retryAfter = null) {
    super(message);
    this.name = "RequestError";
    this.code = code;
    this.retryAfter = retryAfter; // seconds
  }
}

/** The address of the server's `/ws`, beside the page that asks: under whatever scheme, host and prefix. */
export function websocketUrl(base = document.baseURI) {
  const url = new URL("ws", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = url.hash = "";
  return url.href;
}

/** Exponential backoff with full jitter (AWS Architecture Blog, 2015): anything between nothing and the bound. */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(CAP, BASE * 2 ** attempt);
}

export class Client extends EventTarget {
  #url;
  #token = "";
  #session = null;
  #socket = null;
  #state = { name: "signed-out" };
  #attempt = 0;
  #timer = 0;
  #watch = 0;
  #onlineSince = 0;
  #lastInbound = 0;
  #heartbeat = 25;
  #returnAt = 0; // ms, from the server's `reconnect`
  #fault = null; // the last `error` of this connection that answered no request
  #nextRef = 0;
  #requests = new Map(); // ref → {resolve, reject, timer}
  #rooms = new Map(); // room id → {position: {epoch, offset} | null, asked: the same | null}
  #channels = new Map(); // channel → the same

  constructor({ url }) {
    super();
    this.#url = url;
    globalThis.addEventListener?.("online", () => this.#networkChanged());
    globalThis.addEventListener?.("offline", () => this.#networkChanged());
    globalThis.document?.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#networkChanged();
    });
  }

  get state() {
    return this.#state;
  }

  get online() {
    return this.#state.name === "online";
  }

  /** What the user signed in with; for the calls that go over HTTP. */
  get token() {
    return this.#token;
  }

  /** The room that is entered first after a loss: somebody looks at it. */
  foremost = null;

  /** Sign in and stay connected until `stop`. */
  start(token) {
    this.#token = token;
    this.#session = null;
    this.#attempt = 0;
    this.#connect();
  }

  /** Sign out: close, and forget who it was. */
  stop() {
    this.#token = "";
    this.#session = null;
    this.#rooms.clear();
    this.#channels.clear();
    this.#release();
    this.#become({ name: "signed-out" });
  }

  /** Connect now instead of later. */
  retry() {
    if (this.#token && !this.#socket) this.#connect();
  }

  /** Replace the token of the live session by a fresh one of the same user. */
  async refresh(token) {
    await this.request("auth", { token });
    this.#token = token;
  }

  /**
   * Enter a room, and come back to it after every loss. `since` {epoch, offset}: send what came after it.
   * Resolves with `room_joined`; while offline, once it is back.
   */
  join(roomId, since = null) {
    if (!this.#rooms.has(roomId)) this.#rooms.set(roomId, { position: since, asked: null });
    return this.online ? this.#joinRoom(roomId) : Promise.resolve(null);
  }

  async leave(roomId) {
    this.#rooms.delete(roomId);
    if (this.online) await this.request("leave_room", { room_id: roomId });
  }

  /** Do not come back to a room that this connection is not in any more. */
  forget(roomId) {
    this.#rooms.delete(roomId);
  }

  /** Subscribe to a channel, and again after every loss, from where it was. */
  follow(channel, since = null) {
    if (!this.#channels.has(channel)) this.#channels.set(channel, { position: since, asked: null });
    return this.online ? this.#subscribe(channel) : Promise.resolve(null);
  }

  /** The position {epoch, offset} up to which everything of a room has arrived, or null. */
  position(roomId) {
    return this.#rooms.get(roomId)?.position ?? null;
  }

  /** The same of a followed channel. */
  channelPosition(channel) {
    return this.#channels.get(channel)?.position ?? null;
  }

  follows(channel) {
    return this.#channels.has(channel);
  }

  /** Send without waiting for an answer. False if there is no connection. */
  send(type, fields = {}) {
    if (!this.online) return false;
    this.#write({ type, ...fields });
    return true;
  }

  /** Send, and resolve with the reply; rejects with a RequestError. */
  request(type, fields = {}, wait = ANSWER) {
    if (!this.online) return Promise.reject(new RequestError("connection_lost", "there is no connection"));
    const ref = String(++this.#nextRef);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#requests.delete(ref);
        reject(new RequestError("timeout", "the server did not answer"));
      }, wait);
      this.#requests.set(ref, { resolve, reject, timer });
      this.#write({ type, ref, ...fields });
    });
  }

  /** The same for what may as well come a little later: it is asked for again where the server is busy. */
  async patiently(type, fields) {
    for (let tries = 0; ; tries++) {
      try {
        return await this.request(type, fields);
      } catch (error) {
        if (!PASSING.has(error.code) || !error.retryAfter || tries >= 5) throw error;
        await new Promise((resolve) => setTimeout(resolve, error.retryAfter * 1000 + 100));
      }
    }
  }

  // -- the connection

  #connect() {
    this.#release();
    this.#fault = null;
    this.#become({ name: "connecting" });
    let socket;
    try {
      socket = new WebSocket(this.#url);
    } catch (error) {
      this.#become({ name: "stopped", reason: String(error.message), mayRetry: false });
      return;
    }
    this.#socket = socket;
    this.#timer = setTimeout(() => this.#drop(), HANDSHAKE);
    socket.addEventListener("open", () => {
      const hello = { type: "auth", token: this.#token };
      if (this.#session) hello.session = this.#session;
      this.#write(hello);
    });
    socket.addEventListener("message", (event) => {
      if (socket === this.#socket) this.#received(event.data);
    });
    socket.addEventListener("close", (event) => {
      if (socket === this.#socket) this.#closed(event.code, event.reason);
    });
  }

  /** Let go of the socket without hearing from it again. */
  #release() {
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    const socket = this.#socket;
    this.#socket = null;
    if (socket && socket.readyState < WebSocket.CLOSING) socket.close(1000);
    this.#abandon();
  }

  #abandon() {
    const waiting = [...this.#requests.values()];
    this.#requests.clear();
    for (const { reject, timer } of waiting) {
      clearTimeout(timer);
      reject(new RequestError("connection_lost", "the connection was lost"));
    }
  }

  /** The connection is dead, whether the browser knows it or not. */
  #drop() {
    this.#release();
    this.#closed(1006, "");
  }

  #closed(code, reason) {
    this.#release();
    if (this.#onlineSince && Date.now() - this.#onlineSince >= STABLE) this.#attempt = 0;
    this.#onlineSince = 0;
    const fault = this.#fault;
    const why = { code, reason: fault?.message ?? reason };
    const returnIn = this.#returnAt - Date.now();
    this.#returnAt = 0;
    if (code === 4401 && fault?.code !== "authentication_timeout") {
      this.#token = "";
      this.#session = null;
      this.#become({ name: "signed-out", ...why });
    } else if (OFFENCE.has(code) || REFUSED.has(code)) {
      this.#become({ name: "stopped", ...why, mayRetry: code !== 4403 && code !== 4404 });
    } else if (code === 4429) {
      this.#wait(Math.max(fault?.retry_after ?? 30, ABUSE) * 1000, { ...why, mayRetry: false });
    } else if (code === 1012 && returnIn > 0) {
      this.#wait(returnIn, { ...why, mayRetry: false });
    } else {
      this.#wait(backoff(this.#attempt++), { ...why, mayRetry: true });
    }
  }

  #wait(delay, why) {
    const name = globalThis.navigator?.onLine === false ? "offline" : "waiting";
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#become({ name, retryAt: Date.now() + delay, ...why });
  }

  #become(state) {
    this.#state = state;
    this.#emit("state", state);
  }

  /** The network changed, or the page was looked at again: do not wait for what may be possible now. */
  #networkChanged() {
    const { name, mayRetry } = this.#state;
    if (name === "online") this.#checkLife();
    else if ((name === "waiting" || name === "offline") && mayRetry && navigator.onLine !== false) this.#connect();
    else if (name === "waiting" && navigator.onLine === false) this.#become({ ...this.#state, name: "offline" });
    else if (name === "offline" && navigator.onLine !== false) this.#become({ ...this.#state, name: "waiting" });
  }

  /** The browser hides the server's pings from us, so after a silence we ask ourselves. */
  #checkLife() {
    const socket = this.#socket;
    this.request("ping", {}, LIFE_SIGN).catch((error) => {
      if (error.code === "timeout" && socket === this.#socket) this.#drop();
    });
  }

  #write(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // -- messages

  #received(data) {
    this.#lastInbound = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message === null || typeof message !== "object") return;
    this.#take(message);
    const request = message.ref === undefined ? undefined : this.#requests.get(message.ref);
    if (request === undefined) return;
    this.#requests.delete(message.ref);
    clearTimeout(request.timer);
    if (message.type === "error") {
      request.reject(new RequestError(message.code, message.message, message.retry_after ?? null));
    } else {
      request.resolve(message);
    }
  }

  #take(message) {
    switch (message.type) {
      case "auth_success":
        if (!this.online) this.#welcome(message);
        break;
      case "reconnect":
        this.#returnAt = Date.now() + message.after * 1000;
        break;
      case "error":
        if (message.ref === undefined) this.#fault = message;
        break;
      case "room_joined":
        this.#roomJoined(message);
        return;
      case "room_left":
        this.#rooms.delete(message.room_id);
        break;
      case "subscribed":
        this.#subscribed(message);
        return;
      case "message":
        if (!this.#isNew(this.#rooms.get(message.room_id), message.data.id)) return;
        break;
      case "message_updated":
      case "message_deleted":
      case "reaction":
      case "pinned":
      case "member":
      case "room_updated":
      case "user_erased":
        if (message.offset && !this.#isNew(this.#rooms.get(message.room_id), message.offset)) return;
        break;
      case "notification":
        this.#isNew(this.#channels.get(`user:${this.user}`), message.offset ?? 0);
        break;
      case "publication":
        if (message.offset && !this.#isNew(this.#channels.get(message.channel), message.offset)) return;
        break;
      case "gap":
        if (!this.#passGap(message)) return;
        break;
      case "position":
        this.#renew(message);
        break;
    }
    this.#emit(message.type, message);
  }

  #welcome(message) {
    clearTimeout(this.#timer);
    this.#fault = null;
    this.#session = message.session;
    this.user = message.user_id;
    this.#heartbeat = message.heartbeat || 25;
    this.#onlineSince = Date.now();
    this.#watch = setInterval(() => {
      if (Date.now() - this.#lastInbound > this.#heartbeat * 1000) this.#checkLife();
    }, 5_000);
    this.#become({ name: "online" });
    this.#comeBack();
  }

  /** Back into every room and channel, one after the other: a burst could meet the rate limit. */
  async #comeBack() {
    const socket = this.#socket;
    const rooms = [...this.#rooms.keys()].sort((a, b) => (b === this.foremost) - (a === this.foremost));
    for (const [names, enter] of [
      [[...this.#channels.keys()], (name) => this.#subscribe(name)],
      [rooms, (name) => this.#joinRoom(name)],
    ]) {
      for (const [at, name] of names.entries()) {
        await enter(name).catch(() => {});
        if (at >= AT_ONCE) await new Promise((resolve) => setTimeout(resolve, PAUSE));
        if (socket !== this.#socket) return;
      }
    }
  }

  async #joinRoom(roomId) {
    const entry = this.#rooms.get(roomId);
    if (!entry) return null;
    entry.asked = entry.position;
    try {
      return await this.patiently("join_room", {
        room_id: roomId,
        ...(entry.asked && { since: entry.asked }),
      });
    } catch (error) {
      if (PASSING.has(error.code)) {
        const socket = this.#socket;
        setTimeout(() => socket === this.#socket && this.online && this.#joinRoom(roomId).catch(() => {}), AGAIN);
      } else if (error.code !== "connection_lost") {
        this.#rooms.delete(roomId);
        this.#emit("room_refused", { room_id: roomId, error });
      }
      throw error;
    }
  }

  #subscribe(channel) {
    const entry = this.#channels.get(channel);
    entry.asked = entry.position;
    return this.patiently("subscribe", { channel, ...(entry.asked && { since: entry.asked }) });
  }

  #roomJoined(message) {
    const entry = this.#rooms.get(message.room_id);
    if (!entry) return;
    const { asked } = entry;
    entry.asked = null;
    entry.position = asked && message.recovered ? asked : message.position;
    this.#emit("room_joined", { ...message, resumed: asked !== null, missed: asked !== null && !message.recovered });
    for (const missed of message.messages) this.#take(missed);
    entry.position = message.position;
  }

  #subscribed(message) {
    const entry = this.#channels.get(message.channel);
    if (!entry) return;
    const { asked } = entry;
    entry.asked = null;
    this.#emit("subscribed", { ...message, missed: asked !== null && !message.recovered });
    for (const missed of message.messages) this.#take(missed);
    entry.position = { epoch: message.epoch, offset: message.offset };
  }

  /** Whether this offset was not here yet; and remember it. */
  #isNew(entry, offset) {
    if (!entry?.position) return entry !== undefined;
    if (offset <= entry.position.offset) return false;
    entry.position = { ...entry.position, offset };
    return true;
  }

  /** The same place under another epoch. */
  #renew({ channel, epoch, offset }) {
    const room = channel.startsWith("room:") ? this.#rooms.get(channel.slice(5)) : undefined;
    const entry = room ?? this.#channels.get(channel);
    if (entry) entry.position = { epoch, offset: Math.max(offset, entry.position?.offset ?? 0) };
  }

  #passGap({ channel, epoch, offset }) {
    const room = channel.startsWith("room:") ? this.#rooms.get(channel.slice(5)) : undefined;
    const entry = room ?? this.#channels.get(channel);
    if (!entry) return false;
    const known = entry.position;
    if (known?.epoch === epoch && offset <= known.offset) return false; // room_joined said so already
    entry.position = { epoch, offset };
    return true;
  }
}
