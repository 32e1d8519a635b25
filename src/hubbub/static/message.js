// A message as this page keeps it, and what may happen to it. Nothing here knows of a document.

import { EVERYONE } from "./text.js";
import { parseTime } from "./time.js";

let sequence = 0;

/**
 * A message of the wire (`MessageInfo`) as an item of a timeline. `state`: sent, pending, failed.
 * `asOf`: the number up to which all that happened to it is in it.
 */
export function messageOf(wire, me, asOf = 0) {
  const item = { key: `m-${++sequence}`, id: wire.id, state: "sent", error: "", retryAt: 0, uploads: [], asOf: 0 };
  item.user = String(wire.user_id);
  item.at = parseTime(wire.timestamp);
  item.clientId = wire.client_id ?? null;
  item.number = wire.number ?? wire.id;
  item.system = wire.system ?? null;
  item.own = item.user === me && !item.system;
  item.replyTo = wire.reply_to ?? null;
  item.thread = wire.thread ?? null;
  item.version = 0;
  item.deletedAt = null;
  renew(item, wire, asOf);
  return item;
}

/** An own message, before the server has it. */
export function draftOf({ user, text, clientId, replyTo = null, thread = null, uploads = [] }) {
  const wire = { id: 0, user_id: user, message: text, timestamp: new Date().toISOString(), client_id: clientId };
  const item = messageOf({ ...wire, reply_to: replyTo, thread }, user);
  return Object.assign(item, { state: "pending", uploads });
}

/** All of a message as a page of messages shows it. Returns whether it is another one now. */
export function renew(item, wire, asOf) {
  if (asOf < item.asOf) return false;
  item.asOf = asOf;
  item.reactions = wire.reactions ?? [];
  item.replies = wire.replies ?? null;
  item.pinned = wire.pinned ?? false;
  take(item, wire);
  return true;
}

/** What a message says now. An older version than the one here changes nothing. */
export function revise(item, wire, offset) {
  if (offset <= item.asOf || (wire.version ?? 1) < item.version || (item.deletedAt && !wire.deleted_at)) return false;
  take(item, wire);
  return true;
}

function take(item, wire) {
  item.text = String(wire.message ?? "");
  item.version = wire.version ?? 1;
  item.editedAt = wire.edited_at ? parseTime(wire.edited_at) : null;
  item.deletedAt = wire.deleted_at ? parseTime(wire.deleted_at) : null;
  item.deletedBy = wire.deleted_by ?? null;
  item.mentions = wire.mentions ?? [];
  item.files = wire.files ?? [];
  if (!item.deletedAt) return;
  item.reactions = [];
  item.pinned = false;
}

/** Somebody's reaction came or went. `count` is what there are now, so that twice is as good as once. */
export function react(item, { emoji, user_id: user, added, count }, me, offset) {
  if (offset <= item.asOf || item.deletedAt) return false;
  const before = item.reactions.find((reaction) => reaction.emoji === emoji);
  const mine = user === me ? added : (before?.me ?? false);
  const now = { emoji, count, me: mine };
  if (count <= 0) item.reactions = item.reactions.filter((reaction) => reaction !== before);
  else if (before) item.reactions = item.reactions.map((reaction) => (reaction === before ? now : reaction));
  else item.reactions = [...item.reactions, now];
  return true;
}

export function pin(item, pinned, offset) {
  if (offset <= item.asOf || item.pinned === pinned || item.deletedAt) return false;
  item.pinned = pinned;
  return true;
}

/** A reply in the thread of `item`. `unread` is counted for who follows the thread. */
export function replied(item, wire, me) {
  if (item.replies && wire.id <= item.replies.last_id) return false;
  const { replies = 0, unread } = item.replies ?? {};
  const own = wire.user_id === me;
  const follows = unread !== undefined || own || item.own || (wire.mentions ?? []).includes(me);
  item.replies = { replies: replies + 1, last_id: wire.id, last_at: wire.timestamp };
  if (follows) item.replies.unread = own ? 0 : (unread ?? 0) + 1;
  return true;
}

/** All that a person said is blank now. */
export function erase(item, user) {
  if (item.user !== user || item.system || item.deletedAt) return false;
  Object.assign(item, { text: "", files: [], mentions: [], reactions: [], pinned: false, deletedAt: new Date(), deletedBy: null });
  return true;
}

/** Whether a message calls a user, by name or with all others. */
export function calls(mentions, me) {
  return mentions?.includes(me) || mentions?.includes(EVERYONE) || false;
}

/** What a system message says: strings, and {name} for what people called themselves or something. */
export function systemWords({ system, user }) {
  const who = { name: String(system.user_id ?? user) };
  const by = system.by ? { name: String(system.by) } : null;
  const done = (what) => (by ? [by, ` ${what} `, who] : [who, ` was ${what}`]);
  switch (system.event) {
    case "joined": return [who, " joined"];
    case "left": return [who, " left"];
    case "invited": return done("invited");
    case "declined": return [who, " declined the invitation"];
    case "kicked": return done("removed");
    case "banned": return done("banned");
    case "unbanned": return by ? [by, " lifted the ban of ", who] : [who, " is banned no longer"];
    case "muted": return done("muted");
    case "unmuted": return by ? [by, " let ", who, " write again"] : [who, " may write again"];
    case "role": return [who, ` is now ${system.role === "owner" ? "an owner" : `a ${system.role ?? "member"}`}`];
    case "renamed": return [who, " renamed the room to ", { name: String(system.name) }];
    case "topic": return system.topic ? [who, " set the topic: ", { name: String(system.topic) }] : [who, " removed the topic"];
    case "archived": return [who, " archived the room"];
    case "unarchived": return [who, " opened the room again"];
    case "pinned": return [who, " pinned ", { name: "a message", id: system.id }];
    case "unpinned": return [who, " unpinned ", { name: "a message", id: system.id }];
    default: return [who, `: ${String(system.event)}`];
  }
}
