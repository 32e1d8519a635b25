// The list of rooms: the user's own with what is unread in them, invitations, people, and further rooms to join.

import { $, arrange, h, icon, paintAvatar, setText, show } from "./dom.js";
import { short } from "./text.js";

const LOOK_AFTER = 300; // ms after the last letter until the server is asked for rooms of that name

export class Sidebar {
  /** `actions`: {open(id), accept(id), decline(id), look(query), current() → Room | null} */
  constructor(rooms, actions) {
    this.rooms = rooms;
    this.actions = actions;
    rooms.on("list", () => this.#later());
    rooms.on("room", () => this.#later());
    this.filter = $("room-filter");
    this.filter.addEventListener("input", () => this.#filtered());
    this.filter.addEventListener("keydown", (event) => this.#key(event));
    $("sidebar").addEventListener("keydown", (event) => this.#walk(event));
  }

  #lines = new Map(); // section and room id → its line
  #frame = 0;
  #timer = 0;

  /** Many things change at once: the lists are painted once for all of them. */
  #later() {
    this.#frame ||= requestAnimationFrame(() => this.paint());
  }

  get query() {
    return this.filter.value.trim();
  }

  paint() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { rooms } = this;
    const wanted = this.query.toLocaleLowerCase();
    const fits = (name, id) => !wanted || name.toLocaleLowerCase().includes(wanted) || id.toLowerCase().includes(wanted);
    const own = rooms.channels.filter((room) => fits(room.name, room.id));
    const directs = rooms.directs.filter((room) => fits(room.name, room.id));
    const invitations = [...rooms.invitations.values()].filter((info) => fits(info.name, info.room_id));
    const others = rooms.others.filter((info) => !rooms.all.has(info.room_id) && !rooms.invitations.has(info.room_id) && fits(info.name, info.room_id));
    const used = new Set();
    const line = (section, id, make) => {
      const key = `${section} ${id}`;
      used.add(key);
      if (!this.#lines.has(key)) this.#lines.set(key, make());
      return this.#lines.get(key);
    };
    arrange($("joined-rooms"), own.map((room) => paintRoom(line("own", room.id, () => this.#roomLine(room.id)), room, this.#isCurrent(room))));
    arrange($("direct-rooms"), directs.map((room) => paintRoom(line("direct", room.id, () => this.#roomLine(room.id)), room, this.#isCurrent(room))));
    arrange($("invitations"), invitations.map((info) => line("invited", info.room_id, () => this.#invitation(info))));
    arrange($("other-rooms"), others.map((info) => paintOther(line("other", info.room_id, () => this.#roomLine(info.room_id)), info)));
    for (const key of [...this.#lines.keys()]) if (!used.has(key)) this.#lines.delete(key);
    show($("invitations-head"), invitations.length > 0);
    show($("joined-empty"), own.length === 0);
    setText($("joined-empty"), wanted ? "None of yours is called so." : "You are in no room yet.");
    show($("direct-empty"), directs.length === 0 && !wanted);
    show($("other-empty"), others.length === 0);
    show($("other-more"), rooms.more);
    this.onpaint?.();
  }

  #isCurrent(room) {
    return room === this.actions.current();
  }

  #roomLine(id) {
    return h("li", {}, h("button", { class: "room-line", type: "button", title: id, dataset: { room: id }, onclick: () => this.actions.open(id) },
      h("span", { class: "room-sign", "aria-hidden": "true" }), h("bdi", { class: "room-line-name" }), h("span", { class: "room-line-end" })));
  }

  #invitation(info) {
    const name = h("bdi", { class: "room-line-name" }, info.name);
    const button = (label, act, kind) => h("button", { class: kind, type: "button", onclick: async (event) => {
      event.currentTarget.disabled = true;
      await act(info.room_id);
    } }, label);
    return h("li", { class: "invitation", dataset: { invitation: info.room_id } }, h("p", { class: "invitation-text" }, name,
      h("span", { class: "invitation-by" }, "from ", h("bdi", {}, info.me.invited_by))),
    h("p", { class: "invitation-actions" }, button("Accept", (id) => this.actions.accept(id), "primary slim"), button("Decline", (id) => this.actions.decline(id), "quiet")));
  }

  // -- finding one

  #filtered() {
    this.paint();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.actions.look(this.query), LOOK_AFTER);
  }

  clearFilter() {
    if (!this.filter.value) return;
    this.filter.value = "";
    this.#filtered();
  }

  #key(event) {
    if (event.key === "Escape" && this.filter.value) {
      event.preventDefault();
      event.stopPropagation();
      this.clearFilter();
    } else if (event.key === "Enter") {
      event.preventDefault();
      $("sidebar").querySelector("[data-room]")?.click();
    }
  }

  /** Arrows go from line to line. */
  #walk(event) {
    if (event.altKey || (event.key !== "ArrowDown" && event.key !== "ArrowUp")) return;
    const all = [this.filter, ...$("sidebar").querySelectorAll("[data-room]")];
    const at = all.indexOf(document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, at + (event.key === "ArrowDown" ? 1 : -1)))].focus();
  }
}

function sign(element, kind, name = "") {
  const key = `${kind} ${name}`;
  if (element.dataset.sign === key) return;
  element.dataset.sign = key;
  element.className = "room-sign";
  element.replaceChildren(kind === "direct" ? paintAvatar(h("span", {}), name) : icon(kind));
}

const kindOf = (info) => (info.visibility === "private" ? "lock" : info.kind === "broadcast" ? "broadcast" : "hash");

function paintRoom(line, room, isCurrent) {
  const [button] = line.children;
  const [mark, name, end] = button.children;
  const { unread, mentions, notify } = room;
  const quiet = notify === "none";
  sign(mark, room.direct ? "direct" : kindOf(room.info), room.others[0] ?? room.name);
  mark.classList.toggle("online", room.direct && room.others.some((user) => room.users.has(user)));
  setText(name, room.name);
  button.className = `room-line${unread && !quiet ? " has-unread" : ""}${quiet ? " muted" : ""}${room.info.archived_at ? " archived" : ""}`;
  if (isCurrent) button.setAttribute("aria-current", "page");
  else button.removeAttribute("aria-current");
  const badges = [];
  if (quiet) badges.push(["bell-off", "", "notifies you of nothing"]);
  if (mentions > 0) badges.push(["mention", `@${mentions > 1 ? short(mentions) : ""}`, `${mentions} mention${mentions > 1 ? "s" : ""}`]);
  if (unread > 0) badges.push(["unread", short(unread), `${unread} unread`]);
  const key = JSON.stringify(badges);
  if (end.dataset.badges !== key) {
    end.dataset.badges = key;
    end.replaceChildren(...badges.map(([kind, text, label]) => (kind === "bell-off"
      ? h("span", { class: "quiet-mark", title: label }, icon("bell-off"), h("span", { class: "visually-hidden" }, label))
      : h("span", { class: `badge ${kind}`, "aria-label": label }, text))));
  }
  return line;
}

function paintOther(line, info) {
  const [button] = line.children;
  const [mark, name, end] = button.children;
  sign(mark, kindOf(info));
  setText(name, info.name);
  button.className = "room-line other";
  const users = info.users ?? 0;
  setText(end, users > 0 ? short(users) : "");
  if (users > 0) end.setAttribute("aria-label", `${users} here`);
  else end.removeAttribute("aria-label");
  return line;
}

/** Who the user is, at the foot of the list. */
export function paintMe(name) {
  paintAvatar($("me-avatar"), name || "?");
  setText($("me-name"), name);
}

