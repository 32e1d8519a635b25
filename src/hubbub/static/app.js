// The page: it holds the client, the rooms and the views together.

import { Client, websocketUrl } from "./client.js";
import { $, announce, avatar, h, paintAvatar, plural, setText, show } from "./dom.js";
import { Login, devLogin, kept } from "./login.js";
import { Notices } from "./notices.js";
import { Panels, aboutDialog, roomDialog } from "./panels.js";
import { Room } from "./rooms.js";
import { Thread } from "./thread.js";

const PAGE = 50; // messages fetched at once
const TYPING_EVERY = 3_000; // ms
const LOOK_EVERY = 20_000; // ms between two looks for new rooms
const LENGTH = 10_000; // characters of a message, where the server has its default

const client = new Client({ url: websocketUrl() });
const rooms = new Map(); // the joined ones: id → Room
let known = []; // all that the server lists
let me = "";
let current = null; // the open Room
let typingSent = 0;

const login = new Login(signIn);
const panels = new Panels();
const thread = new Thread({ retry, discard: (item) => current.discard(item), read: markRead });
const notices = new Notices({ onopen: (open) => open && panels.closeAll(false), onseen: keepSeen });

// -- signing in and out ----------------------------------------------------------------------------------------------

function signIn(token, name) {
  kept.set("token", token);
  kept.set("name", name);
  me = name;
  login.close();
  show($("app"), true);
  show($("skip"), true);
  paintMe();
  paintRoom();
  client.start(token);
}

function signOut(reason = "") {
  kept.clear();
  for (const room of rooms.values()) room.clearTyping();
  rooms.clear();
  known = [];
  current = null;
  me = "";
  thread.show(null);
  notices.forget();
  panels.closeAll(false);
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("composer-input").value = "";
  history.replaceState(null, "", location.pathname + location.search);
  show($("app"), false);
  show($("skip"), false);
  paintTitle();
  login.open(reason);
}

// -- the connection --------------------------------------------------------------------------------------------------

let countdown = 0;
let spoken = "";

client.addEventListener("state", ({ detail: state }) => {
  clearInterval(countdown);
  if (state.name === "signed-out") {
    const signedIn = !$("app").hidden;
    if (signedIn) signOut(state.code ? `You were signed out: ${state.reason || "the token is not accepted"}.` : "");
    return;
  }
  paintState();
  if (state.retryAt) countdown = setInterval(paintState, 500);
  if (state.name !== "online") for (const room of rooms.values()) room.clearTyping();
  $("app").toggleAttribute("data-online", state.name === "online");
  paintPeople();
  paintThreadEnds();
});

function paintState() {
  const state = client.state;
  const seconds = Math.max(1, Math.ceil((state.retryAt - Date.now()) / 1000));
  const [text, aloud] = {
    connecting: ["Connecting…", ""],
    online: ["Online", spoken ? "Online again" : ""],
    waiting: [`Reconnecting in ${seconds} s`, "Connection lost, reconnecting"],
    offline: ["Offline", "Offline"],
    stopped: [state.reason ? `Disconnected: ${state.reason}` : "Disconnected", "Disconnected"],
  }[state.name];
  $("status").dataset.state = state.name;
  setText($("status-text"), text);
  $("status").title = state.reason ?? "";
  show($("status-retry"), Boolean(state.mayRetry));
  if (aloud && aloud !== spoken) announce(aloud);
  if (aloud || state.name === "online") spoken = state.name === "online" ? "" : aloud;
}

client.addEventListener("auth_success", async ({ detail }) => {
  if (me !== detail.user_id) {
    me = detail.user_id;
    kept.set("name", me);
  }
  paintMe();
  const first = rooms.size === 0;
  followNotices();
  await lookForRooms();
  if (first) await enterFirstRooms();
});

client.addEventListener("token_expiring", async () => {
  try {
    const token = await devLogin(me);
    if (token === null) {
      notices.add({
        title: "Your token is about to expire", notification_type: "warning", timestamp: new Date().toISOString(),
        message: "Sign out, and in again with a fresh one.",
      });
      return;
    }
    await client.refresh(token);
    kept.set("token", token);
  } catch {
    // then the server closes with 4401, and the login says so
  }
});

// -- rooms -----------------------------------------------------------------------------------------------------------

async function lookForRooms() {
  try {
    known = (await client.request("list_rooms")).rooms;
  } catch {
    return;
  }
  for (const { room_id: id, name } of known) {
    const room = rooms.get(id);
    if (room && room.name !== name) room.name = name;
  }
  paintRooms();
}

/** After a login or a reload: the rooms of this tab, the one in the address, or else the first there is. */
async function enterFirstRooms() {
  const before = kept.get("rooms") ?? [];
  for (const { id, name, readTo } of before) enter(id, name).readTo = readTo;
  const linked = linkedRoom();
  const wanted = linked || kept.get("current") || before[0]?.id || known[0]?.room_id;
  if (wanted) open(wanted);
  else paintRoom();
}

function linkedRoom() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** Join a room, if that was not done. */
function enter(id, name = id) {
  let room = rooms.get(id);
  if (room && room.state !== "gone") return room;
  if (!room) {
    room = new Room(id, known.find((info) => info.room_id === id)?.name ?? name);
    room.onchange = (what) => {
      if (room !== current) return;
      if (what === "typing") paintTyping();
      else paintPeople();
    };
    rooms.set(id, room);
  }
  room.state = "entering";
  client.join(id).catch(() => {}); // what it says comes as room_joined or room_refused
  keepRooms();
  return room;
}

function open(id) {
  const room = enter(id);
  if (current === room) {
    panels.closeAll();
    return;
  }
  if (current) {
    current.draft = $("composer-input").value;
    current.newFrom = null;
  }
  current = room;
  kept.set("current", id);
  if (linkedRoom() !== id) history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  $("composer-input").value = room.draft;
  typingSent = 0;
  fitComposer();
  paintRoom(); // before the thread, which measures where to begin
  thread.show(room);
  loadPast(room);
  markRead();
  paintRooms();
  panels.closeAll(false);
  focusComposer();
}

function focusComposer() {
  if (panels.roomy && !document.querySelector("dialog[open]")) $("composer-input").focus();
}

async function leave(room) {
  rooms.delete(room.id);
  room.clearTyping();
  client.leave(room.id).catch(() => {});
  keepRooms();
  if (current === room) {
    current = null;
    kept.set("current", null);
    history.replaceState(null, "", location.pathname + location.search);
    thread.show(null);
    const next = rooms.keys().next().value;
    if (next) open(next);
  }
  paintRooms();
  paintRoom();
  if (!current) $("new-room").focus();
  await lookForRooms();
}

async function make(id, name) {
  await client.request("create_room", { room_id: id, name }).catch((error) => {
    throw new Error(client.online ? sentence(error.message) : "There is no connection now.");
  });
  known = [...known, { room_id: id, name, users: 0 }];
  open(id);
  lookForRooms();
}

client.addEventListener("room_joined", ({ detail }) => {
  const room = rooms.get(detail.room_id);
  if (!room) return;
  const epochBefore = room.epoch;
  room.state = "here";
  room.name = detail.room.name;
  if (detail.missed) {
    room.addGap(detail.position.epoch === epochBefore
      ? "Some messages were missed while you were away."
      : "The server started afresh. Some messages may have been missed; those above are only kept on this page.");
    room.loaded = false;
    if (room === current) announce("Some messages were missed");
  }
  room.setEpoch(detail.position.epoch);
  room.setUsers(detail.users, detail.count);
  room.clearTyping();
  if (!detail.resumed && room.readTo?.epoch === detail.position.epoch && room !== current) {
    room.unread = Math.max(0, detail.position.offset - room.readTo.offset);
  }
  room.readTo ??= detail.position;
  if (room === current) {
    loadPast(room);
    paintRoom();
  }
  paintRooms();
  queueMicrotask(() => flush(room)); // after what was missed
});

client.addEventListener("room_refused", ({ detail }) => {
  const room = rooms.get(detail.room_id);
  if (!room) return;
  room.state = "gone";
  room.error = detail.error.code === "not_found" ? "" : sentence(detail.error.message);
  for (const item of room.pending) room.fail(item.clientId, "the room is gone.");
  room.setUsers([], 0);
  if (room === current) paintRoom();
  paintRooms();
});

/** The recent past of a room, once somebody looks at it. */
async function loadPast(room) {
  if (room.loaded || room.loading || room.state !== "here") return;
  room.loading = true;
  try {
    const page = await client.request("history", { channel: `room:${room.id}`, limit: PAGE });
    if (page.epoch === room.epoch || !page.epoch) {
      room.loaded = true;
      room.more = page.more;
      const added = room.addMessages(page.messages, me);
      const readTo = room.readTo?.epoch === room.epoch ? room.readTo.offset : 0;
      if (!room.newFrom && room.unread) room.newFrom = added.find((item) => item.id > readTo && !item.own)?.key ?? null;
      if (room === current) {
        thread.refresh();
        paintThreadEnds();
        thread.toUnread();
        markRead();
      }
    }
  } catch {
    // it is asked for again when the room is joined again
  } finally {
    room.loading = false;
    if (room === current) paintThreadEnds();
  }
}

async function loadEarlier() {
  const room = current;
  if (!room || room.loading || room.oldest === null) return;
  room.loading = true;
  paintThreadEnds();
  try {
    const page = await client.request("history", { channel: `room:${room.id}`, before: room.oldest, limit: PAGE });
    room.more = page.more;
    if (room === current) thread.hold(() => room.addMessages(page.messages, me));
    announce(`${plural(page.messages.length, "earlier message")} shown`);
  } catch {
    announce("Earlier messages could not be fetched");
  } finally {
    room.loading = false;
    if (room === current) paintThreadEnds();
  }
}

// -- messages --------------------------------------------------------------------------------------------------------

client.addEventListener("message", ({ detail }) => {
  const room = rooms.get(detail.room_id);
  if (!room) return;
  room.setTyping(detail.data.user_id, false);
  const added = room.addMessages([detail], me);
  const others = added.filter((item) => !item.own);
  if (room === current) {
    thread.arrived(added);
    paintThreadEnds();
  }
  if (room === current && watching()) {
    markRead();
  } else if (others.length) {
    if (room.unread === 0 && room.loaded) room.newFrom = others[0].key;
    room.unread += others.length;
    if (room === current) thread.refresh();
    paintRooms();
  }
});

/** A slow connection made the server drop something; what it still has is fetched, and a hole is told. */
client.addEventListener("gap", async ({ detail }) => {
  const room = detail.channel.startsWith("room:") ? rooms.get(detail.channel.slice(5)) : undefined;
  if (!room) return;
  const after = room.newest ?? 0;
  try {
    const page = await client.request("history", { channel: detail.channel, after, limit: 200 });
    room.addMessages(page.messages, me);
    const ids = page.messages.map((message) => message.data.id);
    if (ids[0] === after + 1 && ids.at(-1) >= detail.offset) return;
  } catch {
    // then it is a hole
  }
  room.addGap("Some messages were missed.", after);
});

const watching = () => document.visibilityState === "visible" && document.hasFocus() && thread.atEnd;

function markRead() {
  if (!current?.loaded || !watching()) return;
  const position = client.position(current.id);
  if (position) current.readTo = position;
  if (current.unread) {
    current.unread = 0;
    paintRooms();
  }
  keepRooms();
}

function submit() {
  const input = $("composer-input");
  const text = input.value.trim();
  if (!text || !current || current.state === "gone") return;
  if ([...text].length > LENGTH) return;
  const room = current;
  if (room.newFrom) {
    room.newFrom = null;
    thread.refresh();
  }
  const item = room.addPending(me, text, randomId());
  input.value = room.draft = "";
  typingSent = 0;
  fitComposer();
  paintThreadEnds();
  post(room, item);
  input.focus();
}

/** Send a message that is shown already. While there is no connection it waits for `flush`. */
async function post(room, item) {
  if (!client.online || room.state !== "here") return;
  const fields = { room_id: room.id, message: item.text, client_id: item.clientId };
  try {
    const ack = await client.request("chat_message", fields);
    room.confirm(item.clientId, ack.id, ack.timestamp);
  } catch (error) {
    if (error.code === "connection_lost") return;
    room.fail(item.clientId, sentence(error.message));
    if (room === current) announce("A message was not sent");
  }
}

/** The same client_id: if the server has the message after all, it is not sent twice. */
function retry(item) {
  if (current.state === "gone") return;
  current.setPending(item);
  post(current, item);
  $("composer-input").focus();
}

async function flush(room) {
  for (const item of room.pending) await post(room, item);
}

client.addEventListener("user_joined", ({ detail }) => rosterChanged(detail, (room) => room.userJoined(detail.user_id)));
client.addEventListener("user_left", ({ detail }) => rosterChanged(detail, (room) => room.userLeft(detail.user_id)));
client.addEventListener("room_count", ({ detail }) => rooms.get(detail.room_id)?.setUsers(null, detail.count));
client.addEventListener("typing", ({ detail }) => {
  if (detail.user_id !== me) rooms.get(detail.room_id)?.setTyping(detail.user_id, detail.active);
});

async function rosterChanged({ room_id: id }, change) {
  const room = rooms.get(id);
  if (!room) return;
  if (room.usersKnown) {
    change(room);
    return;
  }
  try { // the room has become small enough for a list
    const { users, count } = await client.request("presence", { channel: `room:${id}` });
    const list = Object.entries(users).map(([user, here]) => ({ user_id: user, ...here }));
    room.setUsers(list.length === count ? list : null, count);
  } catch {
    // the next change asks again
  }
}

// -- notifications ---------------------------------------------------------------------------------------------------

/** Ask for what was sent to this user before the page was open, and from then on for what is missed while away. */
async function followNotices() {
  const channel = `user:${me}`;
  if (client.follows(channel)) return;
  client.follow(channel).catch(() => {}); // a token's user may have too long a name for it
  const seen = kept.get("seen");
  await fetchNotices((epoch, offset) => ({ old: true, seen: seen?.epoch !== epoch || offset <= seen.offset }));
  keepSeen();
}

async function fetchNotices(options) {
  try {
    const page = await client.request("history", { channel: `user:${me}`, limit: 20 });
    for (const { data, offset } of page.messages) notices.add(data, options(page.epoch, offset));
  } catch {
    // what arrives from now on is shown all the same
  }
}

client.addEventListener("subscribed", ({ detail }) => {
  if (detail.missed) fetchNotices(() => ({}));
});

/** How far this tab's user has looked, so that a reload does not count it again. */
function keepSeen() {
  const position = client.channelPosition(`user:${me}`);
  if (position && notices.unread === 0) kept.set("seen", position);
}

client.addEventListener("notification", ({ detail }) => notices.add(detail.data));
client.addEventListener("broadcast_notification", ({ detail }) => notices.add(detail.data, { everyone: true }));

// -- what is shown ---------------------------------------------------------------------------------------------------

function paintMe() {
  paintAvatar($("me-avatar"), me || "?");
  setText($("me-name"), me);
}

function paintTitle() {
  const unread = [...rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  document.title = `${unread ? `(${unread}) ` : ""}${current ? `${current.name} · ` : ""}Hubbub`;
  show($("menu-dot"), [...rooms.values()].some((room) => room.unread && room !== current));
}

function paintRooms() {
  const focused = document.activeElement?.dataset?.room;
  const others = known.filter((info) => !rooms.has(info.room_id));
  $("joined-rooms").replaceChildren(...[...rooms.values()].map((room) => roomLine(room.id, room.name, {
    current: room === current, unread: room.unread, gone: room.state === "gone",
  })));
  $("other-rooms").replaceChildren(...others.map((info) => roomLine(info.room_id, info.name, { users: info.users ?? 0 })));
  show($("joined-empty"), rooms.size === 0);
  show($("other-empty"), others.length === 0);
  if (focused) [...document.querySelectorAll("[data-room]")].find((line) => line.dataset.room === focused)?.focus();
  paintTitle();
}

function roomLine(id, name, { current: isCurrent = false, unread = 0, gone = false, users = null }) {
  return h("li", {},
    h("button", {
      class: `room-line${unread ? " has-unread" : ""}${gone ? " gone" : ""}`, type: "button", title: id,
      dataset: { room: id }, "aria-current": isCurrent ? "page" : null, onclick: () => open(id),
    },
      h("span", { class: "hash", "aria-hidden": "true" }, "#"),
      h("bdi", { class: "room-line-name" }, name),
      unread > 0 && h("span", { class: "badge", "aria-label": `${unread} unread` }, unread > 99 ? "99+" : String(unread)),
      users !== null && users > 0 && h("span", { class: "here", "aria-label": `${users} here` }, String(users)),
      gone && h("span", { class: "here" }, "gone"),
    ));
}

function paintRoom() {
  $("room").classList.toggle("none", current === null);
  setText($("room-name"), current?.name ?? "");
  show($("room-head"), current !== null);
  setText($("composer-label"), current ? `Message to ${current.name}` : "Message");
  $("composer-input").placeholder = current ? `Message ${current.name}` : "";
  paintPeople();
  paintTyping();
  paintThreadEnds();
  paintCompose();
  paintTitle();
}

function paintCompose() {
  show($("compose"), current !== null && current.state !== "gone");
}

/** Above and in place of the messages: more to fetch, nothing yet, no room, no such room any more. */
function paintThreadEnds() {
  const room = current;
  const canFetch = Boolean(room?.more && room.state === "here");
  show($("earlier"), canFetch);
  $("earlier").disabled = Boolean(room?.loading);
  const note = room && room.full ? "Only the newest messages are kept on this page." : "";
  show($("thread-note"), note !== "");
  setText($("thread-note"), note);
  const [title, text, action] = emptyWords(room);
  show($("thread-empty"), title !== "");
  setText($("empty-title"), title);
  setText($("empty-text"), text);
  show($("empty-action"), action !== "");
  setText($("empty-action"), action);
}

function emptyWords(room) {
  if (!room) return client.online ? ["No room is open", "Pick one of the list, or make a new one.", "New room"] : ["", "", ""];
  if (room.state === "gone") {
    return room.error
      ? ["This room cannot be entered", room.error, ""]
      : ["This room is not there", "It may have gone with a restart of the server: rooms are kept in memory.", "Make it again"];
  }
  if (room.state === "here" && room.loaded && room.items.length === 0) {
    return ["Nothing said yet", "The first word is yours.", ""];
  }
  return ["", "", ""];
}

function paintPeople() {
  const room = current;
  const names = room ? [...room.users.keys()] : [];
  names.sort((a, b) => (b === me) - (a === me) || a.localeCompare(b));
  $("people-list").replaceChildren(...names.map((name) => h("li", { class: room.typing.has(name) ? "person types" : "person" },
    avatar(name), h("bdi", { class: "person-name" }, name), name === me && h("span", { class: "you" }, "you"))));
  const count = room?.count ?? 0;
  setText($("people-count"), String(count));
  show($("people-note"), Boolean(room && !room.usersKnown));
  setText($("people-note"), `${count} people: too many to list.`);
  const here = room?.state === "here" && client.online;
  setText($("room-sub"), here ? `${count === 1 ? "Only you are" : `${count} people are`} here` : room && !client.online ? "Not connected" : "");
}

function paintTyping() {
  const names = current ? [...current.typing.keys()] : [];
  const text = names.length === 0 ? ""
    : names.length === 1 ? `${names[0]} is typing`
    : names.length === 2 ? `${names[0]} and ${names[1]} are typing`
    : "Several people are typing";
  if (text) setText($("typing-text"), text); // it keeps its words while it fades
  $("typing").classList.toggle("on", text !== "");
  $("typing").setAttribute("aria-hidden", String(text === ""));
}

function fitComposer() {
  const input = $("composer-input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  const left = LENGTH - [...input.value].length;
  setText($("composer-left"), left < 500 ? ` · ${left} characters left` : "");
  $("send").disabled = input.value.trim() === "";
}

// -- small things ----------------------------------------------------------------------------------------------------

/** What a server says begins without a capital and ends without a stop, and may name a path. */
function sentence(text) {
  const plain = text.replace(/ - at `\$.*$/, "");
  return `${plain.charAt(0).toUpperCase()}${plain.slice(1)}${/[.!?]$/.test(plain) ? "" : "."}`;
}

/** randomUUID is there only in secure contexts, and plain http on a network is none. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function keepRooms() {
  kept.set("rooms", [...rooms.values()].map(({ id, name, readTo }) => ({ id, name, readTo })));
}

function step(by) {
  const ids = [...rooms.keys()];
  if (ids.length > 1) open(ids[(ids.indexOf(current?.id) + by + ids.length) % ids.length]);
}

const openRoomDialog = roomDialog(make, focusComposer);
aboutDialog(() => ({ user: me, room: current?.id ?? "general" }));

$("sign-out").addEventListener("click", () => client.stop());
$("status-retry").addEventListener("click", () => client.retry());
$("new-room").addEventListener("click", openRoomDialog);
$("refresh-rooms").addEventListener("click", async () => {
  await lookForRooms();
  announce(plural(known.length, "room"));
});
$("leave-room").addEventListener("click", () => current && leave(current));
$("earlier").addEventListener("click", loadEarlier);
$("empty-action").addEventListener("click", async () => {
  if (!current) openRoomDialog();
  else await make(current.id, current.name).catch(() => enter(current.id)); // somebody was faster
  if (current) paintRoom();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("composer-input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    submit();
  }
});
$("composer-input").addEventListener("input", () => {
  fitComposer();
  const now = Date.now();
  if ($("composer-input").value.trim() && current?.state === "here" && now - typingSent >= TYPING_EVERY) {
    if (client.send("typing", { room_id: current.id })) typingSent = now;
  }
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("composer-input").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (panels.closeAll()) return;
    if (notices.open) notices.toggle(false);
    else notices.dismiss();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
    event.preventDefault();
    step(event.key === "ArrowUp" ? -1 : 1);
  }
});
document.addEventListener("pointerdown", (event) => {
  if (notices.open && !$("notices").contains(event.target) && !$("bell").contains(event.target)) notices.toggle(false);
});
addEventListener("focus", () => {
  markRead();
  if (client.online) lookForRooms();
});
addEventListener("hashchange", () => {
  const id = linkedRoom();
  if (id && client.online) open(id);
});
setInterval(() => {
  if (client.online && document.visibilityState === "visible") lookForRooms();
}, LOOK_EVERY);

const token = kept.get("token");
if (token) signIn(token, kept.get("name") ?? "");
else login.open();
