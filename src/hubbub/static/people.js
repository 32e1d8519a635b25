// Who is here and who belongs to a room: the list beside it, the members of a room, and what can be done with a person.

import { $, arrange, avatar, flash, h, setText, show } from "./dom.js";
import { confirmDialog, formDialog } from "./dialogs.js";
import { openMenu } from "./popup.js";
import { sentence } from "./text.js";

const PAGE = 200;
const SHOWN = 200; // members who are not here that are listed

/** The members of rooms, asked for once and kept until somebody comes or goes. */
export class Members {
  constructor(client) {
    this.client = client;
  }

  #rooms = new Map(); // room id → promise of {members, more}

  forget(roomId = null) {
    if (roomId === null) this.#rooms.clear();
    else this.#rooms.delete(roomId);
  }

  /** The first members of a room, by name: {members, more}. */
  of(room) {
    if (!this.#rooms.has(room.id)) {
      const asked = this.client.patiently("list_members", { room_id: room.id, limit: PAGE }).then(
        ({ members, more }) => ({ members, more: Boolean(more) }),
        () => {
          this.#rooms.delete(room.id);
          return { members: [], more: false };
        });
      this.#rooms.set(room.id, asked);
    }
    return this.#rooms.get(room.id);
  }

  /** A member, looked up anew where need be: {member}; `unknown` if the room is too large to tell. */
  async find(room, name) {
    const among = ({ members }) => members.find((each) => each.user_id === name);
    let known = await this.of(room);
    if (!among(known)) {
      this.forget(room.id); // nobody is told who joins a public room
      known = await this.of(room);
    }
    return { member: among(known) ?? null, unknown: !among(known) && known.more };
  }

  /** Names of members; in a large room, of those that begin with `query` too. */
  async names(room, query) {
    if (!room.stored) return [];
    const { members, more } = await this.of(room);
    const names = members.map((member) => member.user_id);
    if (!more || !query) return names;
    try {
      const page = await this.client.patiently("list_members", { room_id: room.id, after: query, limit: 20 });
      return [...names, ...page.members.map((member) => member.user_id)];
    } catch {
      return names;
    }
  }
}

/** The list of people beside a room. */
export class PeoplePanel {
  constructor(desk, members) {
    this.desk = desk;
    this.members = members;
    this.room = null;
  }

  #ends = [];
  #roles = new Map();
  #away = [];
  #more = false;
  #lines = new Map();

  show(room) {
    for (const end of this.#ends) end();
    this.#ends = [];
    this.room = room;
    this.#roles = new Map();
    this.#away = [];
    this.#lines.clear();
    if (room) {
      this.#ends = [
        room.on("people", () => this.#peopleChanged()),
        room.on("typing", () => this.paint()),
        room.on("members", () => this.reload()),
      ];
    }
    this.paint();
    this.reload();
  }

  #timer = 0;

  /** Somebody who is here and whom the list of members does not have has just joined. */
  #peopleChanged() {
    this.paint();
    const { room } = this;
    if (this.#more || !room.usersKnown || [...room.users.keys()].every((name) => this.#roles.has(name))) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => room === this.room && this.reload(), 1_000);
  }

  async reload() {
    const { room } = this;
    if (!room?.member || !room.stored || room.state !== "here") return;
    this.members.forget(room.id);
    const { members, more } = await this.members.of(room);
    if (room !== this.room) return;
    this.#roles = new Map(members.map((member) => [member.user_id, member.role]));
    this.#away = members.map((member) => member.user_id);
    this.#more = more;
    this.paint();
  }

  paint() {
    const { room } = this;
    const me = this.desk.me;
    const here = room ? [...room.users.keys()] : [];
    here.sort((a, b) => (b === me) - (a === me) || a.localeCompare(b));
    const away = room?.usersKnown ? this.#away.filter((name) => !room.users.has(name)).slice(0, SHOWN) : [];
    const used = new Set();
    const line = (name, isHere) => {
      used.add(name);
      const found = this.#lines.get(name) ?? this.#line(name);
      this.#lines.set(name, found);
      found.classList.toggle("types", Boolean(room.typing.has(name)));
      found.classList.toggle("away", !isHere);
      const note = found.querySelector(".person-note");
      const role = this.#roles.get(name);
      setText(note, [name === me ? "you" : "", role && role !== "member" ? role : ""].filter(Boolean).join(" · "));
      return found;
    };
    arrange($("people-list"), here.map((name) => line(name, true)));
    arrange($("away-list"), away.map((name) => line(name, false)));
    for (const name of [...this.#lines.keys()]) if (!used.has(name)) this.#lines.delete(name);
    show($("away-head"), away.length > 0);
    setText($("away-title"), `Not here — ${this.#more ? `${away.length}+` : away.length}`);
    setText($("people-title"), room ? `Here now — ${room.count}` : "Here now");
    show($("people-note"), Boolean(room && !room.usersKnown));
    const listed = room && room.info.kind !== "large" && room.info.kind !== "broadcast";
    setText($("people-note"), listed ? "They are too many to list." : "Who is here is not listed in such a room. The settings have its members.");
    show($("people-invite"), Boolean(room?.may("invite") && room.stored));
  }

  #line(name) {
    const { desk } = this;
    return h("li", { class: "person" }, h("button", { class: "person-open", type: "button", onclick: (event) => desk.person(this.room, name, event.currentTarget) },
      avatar(name), h("bdi", { class: "person-name" }, name), h("span", { class: "person-note" })));
  }
}

/** What can be done with a person: talk to them, call them, and for moderators the rest. */
export async function personMenu(desk, members, room, name, anchor) {
  const self = name === desk.me;
  const moderates = Boolean(room?.may("remove")) && !self;
  const found = moderates ? await members.find(room, name) : null;
  const member = found?.member ?? null;
  const there = member !== null || found?.unknown; // in a very large room we may not know
  const over = moderates && room.over(member?.role);
  const owns = Boolean(room?.may("own")) && there && !self;
  openMenu(anchor, name, [
    !self && { icon: "chat", label: `Message ${name}`, act: () => desk.openDirect([name]).then((focus) => focus(), () => {}) },
    room?.obstacle() === "" && !self && { icon: "at", label: "Mention", act: () => desk.mention(name) },
    ...(owns ? ["owner", "moderator", "member"].map((role) => ({
      label: `Make ${role === "owner" ? "an owner" : `a ${role}`}`, checked: member?.role === role, act: () => setRole(desk, room, name, role),
    })) : []),
    over && there && { icon: "bell-off", label: member?.muted_until ? "Let write again" : "Mute…", act: () => (member?.muted_until ? unmute(desk, room, name) : mute(desk, room, name)) },
    over && there && { icon: "leave", label: "Remove from the room…", danger: true, act: () => kick(desk, room, name) },
    over && { icon: "ban", label: "Ban…", danger: true, act: () => ban(desk, room, name) },
    self && { icon: "settings", label: "Room settings", act: () => desk.settings("room") },
  ]);
}

const TERMS = [["600", "10 minutes"], ["3600", "1 hour"], ["86400", "1 day"], ["604800", "1 week"], ["2592000", "30 days"]];
const reasonField = { name: "reason", label: "Reason", optional: "for them and the audit log", maxlength: 500 };

async function command(desk, type, fields, done) {
  try {
    await desk.client.request(type, fields);
    flash(done);
  } catch (error) {
    flash(sentence(error.message), "error");
  }
}

const setRole = (desk, room, user, role) =>
  command(desk, "set_role", { room_id: room.id, user_id: user, role }, `${user} is now ${role === "owner" ? "an owner" : `a ${role}`}`);

export const unmute = (desk, room, user) => command(desk, "unmute_member", { room_id: room.id, user_id: user }, `${user} may write again`);

export const unban = (desk, room, user) => command(desk, "unban_member", { room_id: room.id, user_id: user }, `${user} may come back`);

function mute(desk, room, user) {
  formDialog({
    id: "mute", title: `Mute ${user}`, text: "They can read the room, and not write in it.", action: "Mute", danger: true,
    fields: [{ name: "seconds", label: "For how long", type: "select", options: TERMS, value: "3600" }, reasonField],
    onsubmit: async ({ seconds, reason }) => {
      await desk.client.request("mute_member", { room_id: room.id, user_id: user, seconds: Number(seconds), reason });
      flash(`${user} is muted`);
    },
  });
}

function kick(desk, room, user) {
  return confirmDialog({
    id: "kick", title: `Remove ${user}?`, text: room.info.visibility === "public" ? "They can join again: this room is public." : "They can come back only by an invitation.",
    action: "Remove", fields: [reasonField], act: ({ reason }) => desk.client.request("kick_member", { room_id: room.id, user_id: user, reason }),
  });
}

function ban(desk, room, user) {
  return confirmDialog({
    id: "ban", title: `Ban ${user}?`, text: "They leave the room and cannot come back while the ban lasts.", action: "Ban",
    fields: [{ name: "seconds", label: "For how long", type: "select", options: [...TERMS, ["", "For ever"]], value: "86400" }, reasonField],
    act: ({ seconds, reason }) => desk.client.request("ban_member", { room_id: room.id, user_id: user, ...(seconds && { seconds: Number(seconds) }), reason }),
  });
}

export function inviteDialog(desk, room, suggestions) {
  formDialog({
    id: "invite", title: `Invite to ${room.name}`, action: "Invite",
    fields: [{ name: "people", label: "Who", type: "people", suggestions, hint: "They get an invitation, and come in when they accept it." }],
    onsubmit: async ({ people }) => {
      if (people.length === 0) throw new Error("Name somebody.");
      await desk.client.request("invite_members", { room_id: room.id, user_ids: people });
      flash(`Invited ${people.join(", ")}`);
    },
  });
}

