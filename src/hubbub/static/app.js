// The page: it holds the client, the rooms and the views together.

import { InboxPanel, PinsPanel, SearchPanel } from "./cards.js";
import { Client, websocketUrl } from "./client.js";
import { aboutDialog } from "./dialogs.js";
import { $, announce, flash, setText, show } from "./dom.js";
import { Pictures } from "./files.js";
import { Login, devLogin, kept } from "./login.js";
import { directDialog, newRoomDialog } from "./newroom.js";
import { Notices } from "./notices.js";
import { Panels } from "./panels.js";
import { Members, PeoplePanel, inviteDialog, personMenu } from "./people.js";
import { closePopup } from "./popup.js";
import { Quotes } from "./quotes.js";
import { Reading } from "./reading.js";
import { Rooms } from "./rooms.js";
import { RoomView } from "./roomview.js";
import { openSettings } from "./settings.js";
import { Sidebar, paintMe } from "./sidebar.js";
import { plural, sentence, short, mentionOf } from "./text.js";
import { ThreadPanel } from "./threadpanel.js";

const LOOK_EVERY = 60_000; // ms between two looks for what this connection is not told of

const client = new Client({ url: websocketUrl() });
const rooms = new Rooms(client);
const members = new Members(client);
const reading = new Reading(client);
const panels = new Panels((name) => name === "thread-panel" && thread.close());

/** What the views share. `room`: the open one. */
const desk = {
  client, rooms, panels,
  pictures: new Pictures(() => client.token),
  me: "",
  room: null,
  quotesOf: (room) => (room.quotes ??= new Quotes(client, room)),
  membersOf: (room, query) => members.names(room, query),
  jump, openThread: (room, item) => openThread(room, item.id), openDirect, mention, settings,
  person: (room, name, anchor) => personMenu(desk, members, room, name, anchor),
  invite: (room) => inviteDialog(desk, room, knownPeople()),
};

const login = new Login(signIn);
const view = new RoomView(desk, reading);
const thread = new ThreadPanel(desk, reading);
const people = new PeoplePanel(desk, members);
const search = new SearchPanel(desk);
const pins = new PinsPanel(desk);
const mentions = new InboxPanel(desk, { prefix: "mentions", type: "list_mentions", key: "mentions", empty: "Nobody has mentioned you so far." });
const threads = new InboxPanel(desk, { prefix: "threads", type: "list_threads", key: "threads", empty: "You follow a thread once you write in it, or are mentioned there." });
const notices = new Notices({
  onopen: (open) => open && panels.closeAll(false), onseen: keepSeen,
  onfollow: ({ room_id: room, id }) => jump(String(room), Number(id)),
});
const sidebar = new Sidebar(rooms, {
  open, current: () => desk.room, look: (query) => client.online && rooms.look(query).catch(() => {}),
  accept: (id) => open(id),
  decline: (id) => rooms.decline(id).catch((error) => flash(sentence(error.message), "error")),
});
sidebar.onpaint = paintCounts;

// -- signing in and out ----------------------------------------------------------------------------------------------

function signIn(token, name) {
  kept.set("token", token);
  kept.set("name", name);
  desk.me = rooms.self = name;
  rooms.admin = isAdmin(token);
  login.close();
  show($("app"), true);
  show($("skip"), true);
  paintMe(name);
  view.paint();
  client.start(token);
}

/** What a token grants; it is the server that heeds it. */
function isAdmin(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return claims.hubbub?.admin === true;
  } catch {
    return false;
  }
}

function signOut(reason = "") {
  kept.clear();
  present(null);
  rooms.forget();
  members.forget();
  reading.forget();
  desk.pictures.clear();
  desk.me = rooms.self = "";
  notices.forget();
  search.clear();
  closePopup();
  panels.close(false);
  panels.closeAll(false);
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  history.replaceState(null, "", location.pathname + location.search);
  sidebar.filter.value = "";
  sidebar.paint();
  show($("app"), false);
  show($("skip"), false);
  document.title = "Hubbub";
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
  if (state.name !== "online") {
    for (const room of rooms.all.values()) {
      room.clearTyping();
      if (room.state === "here") room.state = "entering"; // it comes back into it by itself
    }
  }
  $("app").toggleAttribute("data-online", state.name === "online");
  view.paintHead();
  view.paintEnds();
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
  if (desk.me !== detail.user_id) {
    desk.me = rooms.self = detail.user_id;
    kept.set("name", desk.me);
  }
  paintMe(desk.me);
  const first = desk.room === null;
  if (first) openFirst();
  followNotices();
  await rooms.refresh();
  if (first && !desk.room) openAny();
  rooms.enterAll();
  view.paintEnds();
});

client.addEventListener("token_expiring", async () => {
  try {
    const token = await devLogin(desk.me);
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

/** What the address names: a room, and maybe a message in it. */
function linked() {
  try {
    const [room, id] = decodeURIComponent(location.hash.slice(1)).split("/");
    return { room, id: Number.parseInt(id, 10) || null };
  } catch {
    return { room: "", id: null };
  }
}

/** After a login or a reload: the room in the address, or the one that this tab had open. */
function openFirst() {
  const { room, id } = linked();
  const wanted = room || kept.get("current");
  if (!wanted) return;
  if (id) jump(wanted, id);
  else open(wanted);
}

/** Else the liveliest of the user's; for who is in none, the first public one that was made. */
function openAny() {
  const lively = (info) => new Date(info.last_at ?? info.created_at ?? 0).getTime();
  const own = [...rooms.all.values()].filter((room) => !room.direct).sort((a, b) => lively(b.info) - lively(a.info));
  const [first] = [...rooms.others].sort((a, b) => new Date(a.created_at) - new Date(b.created_at));
  const wanted = own[0]?.id ?? first?.room_id;
  if (wanted) open(wanted);
}

function open(id) {
  const room = rooms.enter(id);
  sidebar.clearFilter();
  if (desk.room === room) {
    panels.closeAll();
    return room;
  }
  kept.set("current", id);
  if (linked().room !== id) history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  present(room);
  panels.closeAll(false);
  focusComposer();
  return room;
}

/** Show a room, or none. */
function present(room) {
  if (panels.side === "thread-panel") panels.close(false);
  desk.room = room;
  client.foremost = room?.id ?? null;
  view.show(room);
  people.show(room);
  search.roomChanged();
  if (panels.side === "pins-panel") pins.open();
  sidebar.paint();
}

function focusComposer() {
  if (panels.roomy && !document.querySelector("dialog[open]") && !$("room").inert) view.conversation.composer.field.focus();
}

rooms.on("entered", (room, { resumed, missed }) => {
  const live = !room.stored;
  if (room === desk.room) {
    view.paintHead();
    view.conversation.address();
    if (missed && resumed) view.reload(room, live ? "Some messages were missed, and this room keeps none." : "You were away for long. The newest messages were loaded again.");
    else view.returned();
    people.reload();
    search.roomChanged();
  }
  thread.returned(room, missed);
  queueMicrotask(() => room.timeline.outbox?.pump()); // after what was missed
});

rooms.on("gone", (room) => {
  room.timeline.outbox?.fail("you are not in the room any more.");
  if (room !== desk.room) return;
  kept.set("current", null);
  if (panels.side === "thread-panel") panels.close(false);
  if (room.reason) {
    view.paint();
    view.conversation.address();
    announce(room.reason);
    return;
  }
  history.replaceState(null, "", location.pathname + location.search);
  present(null);
  openAny();
  if (!desk.room) $("new-room").focus();
});

rooms.on("message", (room, data, item) => {
  if (room === desk.room) view.said(data, item);
});

rooms.on("event", (room, type, data) => {
  if (type === "member") members.forget(room.id);
  if (room !== desk.room) return;
  if (type === "pinned" || type === "message_updated" || type === "message_deleted") pins.load();
  if (type === "member" && data.user_id === desk.me) view.conversation.address();
});

/** A slow connection made the server drop something: what is shown is fetched anew. */
client.addEventListener("gap", ({ detail }) => {
  const room = detail.channel.startsWith("room:") ? rooms.get(detail.channel.slice(5)) : null;
  if (!room) return;
  view.reload(room, "The connection was too slow for all that happened. The messages were loaded again.");
  if (room.thread) thread.returned(room, true);
  rooms.refresh();
});

/** Go to a message, in whatever room or thread it is. */
async function jump(roomId, id, threadId = null) {
  const room = open(roomId);
  if (!(await entered(room))) return;
  if (threadId) {
    await thread.open(room, threadId, { around: id });
    if (threadId === id || thread.timeline?.find(id)) return;
  } else if (await view.jump(id)) {
    panels.closeAll(false);
    return;
  } else if (await jumpToReply(room, id)) {
    return;
  }
  flash("This message is not there any more, or not for you.", "error");
}

/** What is not among the room's messages may be in a thread. */
async function jumpToReply(room, id) {
  try {
    const { thread: root } = await client.patiently("get_messages", { room_id: room.id, thread: id, limit: 1 });
    if (root === id) return false;
    await thread.open(room, root, { around: id });
    return Boolean(thread.timeline?.find(id));
  } catch {
    return false;
  }
}

/** Once the connection is in a room; false if it does not come to that. */
function entered(room) {
  if (room.state === "here" || room.state === "gone") return Promise.resolve(room.state === "here");
  return new Promise((resolve) => {
    const done = (what) => (other) => {
      if (other !== room) return;
      for (const end of ends) end();
      resolve(what);
    };
    const ends = [rooms.on("entered", done(true)), rooms.on("gone", done(false))];
  });
}

function openThread(room, id) {
  if (room !== desk.room) open(room.id);
  return thread.open(room, id);
}

async function openDirect(names) {
  try {
    const { room } = await client.request("open_direct", { user_ids: names });
    const known = rooms.get(room.room_id);
    if (known) known.update(room);
    else rooms.add(room);
    open(room.room_id);
    return focusComposer;
  } catch (error) {
    if (!document.querySelector("dialog[open]")) flash(sentence(error.message), "error"); // else the dialog says it
    throw error;
  }
}

/** Call somebody in the field where one writes. */
function mention(name) {
  const written = mentionOf(name);
  if (!written) return void flash("This name has brackets in it, and cannot be mentioned.", "error");
  panels.closeAll(false);
  view.conversation.composer.insert(`${written} `);
}

async function make(fields, invited) {
  if (!client.online) throw new Error("There is no connection now.");
  const inside = fields.visibility === "private" ? { members: invited } : {};
  const { room } = await client.request("create_room", { ...fields, ...inside }).catch((error) => {
    throw new Error(sentence(error.message));
  });
  if (room.me) rooms.add(room);
  open(room.room_id);
  if (invited.length && fields.visibility !== "private") {
    client.request("invite_members", { room_id: room.room_id, user_ids: invited }).catch((error) => flash(`Not invited: ${error.message}`, "error"));
  }
  rooms.refresh();
  return focusComposer;
}

function knownPeople() {
  const names = new Set();
  for (const room of rooms.all.values()) {
    for (const user of room.users.keys()) names.add(user);
    for (const user of room.others) names.add(user);
  }
  names.delete(desk.me);
  return [...names].sort().slice(0, 500);
}

function settings(tab) {
  if (desk.room) openSettings(desk, members, desk.room, tab);
}

// -- notifications ---------------------------------------------------------------------------------------------------

/** Ask for what was sent to this user before the page was open, and from then on for what is missed while away. */
async function followNotices() {
  const channel = `user:${desk.me}`;
  if (client.follows(channel)) return;
  client.follow(channel).catch(() => {}); // a token's user may have too long a name for it
  const seen = kept.get("seen");
  await fetchNotices((epoch, offset) => ({ old: true, seen: seen?.epoch !== epoch || offset <= seen.offset }));
  keepSeen();
}

async function fetchNotices(options) {
  try {
    const page = await client.request("history", { channel: `user:${desk.me}`, limit: 20 });
    for (const { data, offset } of page.messages) if (data) notices.add(data, options(page.epoch, offset));
  } catch {
    // what arrives from now on is shown all the same
  }
}

client.addEventListener("subscribed", ({ detail }) => {
  if (detail.missed) fetchNotices(() => ({}));
});

/** How far this tab's user has looked, so that a reload does not count it again. */
function keepSeen() {
  const position = client.channelPosition(`user:${desk.me}`);
  if (position && notices.unread === 0) kept.set("seen", position);
}

client.addEventListener("notification", ({ detail }) => {
  const { metadata } = detail.data;
  const here = metadata?.kind === "mention" && metadata.room_id === desk.room?.id && view.watched;
  notices.add(detail.data, here ? { old: true, seen: true } : {}); // what one is looking at need not be told
  if (metadata?.kind === "mention") mentions.load();
});
client.addEventListener("broadcast_notification", ({ detail }) => notices.add(detail.data, { everyone: true }));

// -- what is unread over all rooms -----------------------------------------------------------------------------------

function paintCounts() {
  let unread = 0;
  let called = 0;
  let elsewhere = false;
  for (const room of rooms.all.values()) {
    const counts = room.notify === "all" ? room.unread : room.notify === "mentions" ? room.mentions : 0;
    unread += counts;
    called += room.mentions;
    if (counts && room !== desk.room) elsewhere = true;
  }
  document.title = `${unread ? `(${short(unread)}) ` : ""}${desk.room ? `${desk.room.name} · ` : ""}Hubbub`;
  show($("menu-dot"), elsewhere || rooms.invitations.size > 0);
  show($("mention-count"), called > 0);
  setText($("mention-count"), short(called));
}

// -- buttons and keys ------------------------------------------------------------------------------------------------

function step(by) {
  const ids = [...rooms.channels, ...rooms.directs].map((room) => room.id);
  if (ids.length > 1) open(ids[(ids.indexOf(desk.room?.id) + by + ids.length) % ids.length]);
}

const openNewRoom = () => newRoomDialog({ make, suggestions: knownPeople() });
const toggle = (name, panel) => (panels.side === name ? panels.close() : panel.open());
aboutDialog(() => ({ user: desk.me, room: desk.room?.id ?? "general" }));

$("sign-out").addEventListener("click", () => client.stop());
$("status-retry").addEventListener("click", () => client.retry());
$("new-room").addEventListener("click", openNewRoom);
$("new-direct").addEventListener("click", () => directDialog({ open: openDirect, suggestions: knownPeople() }));
$("people-invite").addEventListener("click", () => desk.invite(desk.room));
$("settings-button").addEventListener("click", () => settings());
$("search-button").addEventListener("click", () => toggle("search-panel", search));
$("pins-button").addEventListener("click", () => toggle("pins-panel", pins));
$("open-mentions").addEventListener("click", () => toggle("mentions-panel", mentions));
$("open-threads").addEventListener("click", () => toggle("threads-panel", threads));
$("refresh-rooms").addEventListener("click", async () => {
  await rooms.refresh();
  announce(plural(rooms.others.length, "further room"));
});
$("empty-action").addEventListener("click", () => (desk.room ? view.load() : openNewRoom()));
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  view.conversation.composer.field.focus();
});

document.addEventListener("keydown", (event) => {
  const { key, altKey, ctrlKey, metaKey, shiftKey } = event;
  if (document.querySelector("dialog[open]") || $("app").hidden) return;
  if (key === "Escape" && !event.defaultPrevented) {
    if (notices.open) notices.toggle(false);
    else if (!panels.closeAll() && !panels.close()) notices.dismiss();
  } else if (altKey && !ctrlKey && !metaKey && (key === "ArrowUp" || key === "ArrowDown")) {
    event.preventDefault();
    step(key === "ArrowUp" ? -1 : 1);
  } else if ((ctrlKey || metaKey) && !altKey && key.toLowerCase() === (shiftKey ? "f" : "k")) {
    event.preventDefault();
    if (shiftKey) return void search.open();
    if (!panels.roomy) panels.setDrawer(true);
    sidebar.filter.focus();
  }
});
document.addEventListener("pointerdown", (event) => {
  if (notices.open && !$("notices").contains(event.target) && !$("bell").contains(event.target)) notices.toggle(false);
});
for (const name of ["focus", "visibilitychange"]) {
  (name === "focus" ? window : document).addEventListener(name, () => {
    view.look();
    thread.look();
  });
}
addEventListener("focus", () => client.online && rooms.refresh());
addEventListener("hashchange", () => {
  const { room, id } = linked();
  if (!room || !client.online) return;
  if (id) jump(room, id);
  else open(room);
});
setInterval(() => {
  if (client.online && document.visibilityState === "visible") rooms.refresh();
}, LOOK_EVERY);

const token = kept.get("token");
if (token) signIn(token, kept.get("name") ?? "");
else login.open();
