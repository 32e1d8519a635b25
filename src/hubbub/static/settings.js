// The settings of a room: what it is, who is in it, what notifies the user; for moderators the bans, reports and the log.

import { avatar, flash, h, iconButton, setText, show, timeOf } from "./dom.js";
import { buildField, confirmDialog, openDialog } from "./dialogs.js";
import { auditTab, reportsTab } from "./moderation.js";
import { personMenu, unban } from "./people.js";
import { duration, plural, sentence } from "./text.js";
import { fullTime, parseTime } from "./time.js";

const KINDS = [["group", "Group: receipts, reactions, typing"], ["large", "Large: counts instead of lists"], ["broadcast", "Broadcast: only moderators write"]];
const KEPT_FOR = [["0", "For ever"], ["7", "7 days"], ["30", "30 days"], ["90", "90 days"], ["365", "1 year"]];
const SLOW = [["0", "Off"], ["5", "5 s"], ["10", "10 s"], ["30", "30 s"], ["60", "1 min"], ["300", "5 min"], ["3600", "1 h"]];
const NOTIFY = [["all", "Everything", "All messages count as unread"], ["mentions", "Mentions", "You are notified when somebody mentions you"], ["none", "Nothing", "The room stays quiet, mentions too"]];

/** Open the dialog for a room at one of its tabs: room, you, members, bans, reports, audit. */
export function openSettings(desk, members, room, tab = "you") {
  const tabs = [
    ["you", "You", youTab],
    ["room", "Room", roomTab],
    !room.direct && ["members", "Members", membersTab],
    room.may("remove") && ["bans", "Bans", bansTab],
    room.may("review") && ["reports", "Reports", reportsTab],
    room.may("review") && ["audit", "Audit log", auditTab],
  ].filter(Boolean);
  const body = h("div", { class: "settings-body", role: "tabpanel", tabindex: "-1" });
  const context = { desk, members, room, body, close: () => dialog.close() };
  const buttons = tabs.map(([name, label, build]) => h("button", {
    type: "button", role: "tab", class: "tab", id: `tab-${name}`, dataset: { tab: name }, onclick: () => select(name, build),
  }, label));
  const select = (name, build) => {
    for (const button of buttons) {
      const mine = button.dataset.tab === name;
      button.setAttribute("aria-selected", String(mine));
      button.tabIndex = mine ? 0 : -1;
    }
    body.setAttribute("aria-labelledby", `tab-${name}`);
    body.replaceChildren();
    context.tab = name;
    build(context);
  };
  const list = h("div", { class: "tabs", role: "tablist", "aria-label": "Settings" }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    buttons[at].focus();
    buttons[at].click();
  });
  const dialog = h("dialog", { class: "dialog settings", id: "settings-dialog", "aria-labelledby": "settings-title" },
    h("div", { class: "list-head" }, h("h2", { id: "settings-title" }, h("bdi", {}, room.name)), iconButton("close", "Close", { onclick: () => dialog.close() })), list, body);
  openDialog(dialog);
  const [name, , build] = tabs.find(([each]) => each === tab) ?? tabs[0];
  select(name, build);
  buttons.find((button) => button.dataset.tab === name).focus();
  return dialog;
}

/** A line that says how it went. */
function outcome() {
  const line = h("p", { class: "field-error", role: "alert" });
  return {
    line,
    clear: () => setText(line, ""),
    fail: (error) => setText(line, sentence(error.message)),
  };
}

// -- the user's own side

function youTab({ desk, room, body, close }) {
  const result = outcome();
  const choices = NOTIFY.map(([value, label, hint]) => {
    const input = h("input", { type: "radio", name: "notify", value, id: `notify-${value}` });
    input.checked = room.notify === value;
    input.addEventListener("change", async () => {
      result.clear();
      try {
        await desk.client.request("set_notify", { room_id: room.id, notify: value });
        room.changeMine({ notify: value });
      } catch (error) {
        result.fail(error);
      }
    });
    return h("div", { class: "choice" }, input, h("label", { for: `notify-${value}` }, h("span", {}, label), h("span", { class: "hint" }, hint)));
  });
  body.append(h("fieldset", { class: "choices" }, h("legend", {}, "What notifies you"), ...choices), result.line);
  if (!room.may("leave")) return;
  body.append(h("div", { class: "settings-end" }, h("p", { class: "hint" }, room.info.visibility === "public" ? "You can join again whenever you like." : "You can come back only by an invitation."),
    h("button", { class: "quiet dangerous", type: "button", id: "leave-room", onclick: async () => {
      result.clear();
      try {
        await desk.rooms.leave(room);
        close();
      } catch (error) {
        result.fail(error);
      }
    } }, "Leave this room")));
}

// -- the room

function roomTab(context) {
  const { room, body } = context;
  if (room.may("configure")) return editRoom(context);
  const { info } = room;
  const created = info.created_at ? parseTime(info.created_at) : null;
  const facts = [
    ["Name", room.name], ["Topic", info.topic], ["Id", room.id], ["Kind", info.kind],
    ["Who may come", { public: "everybody", private: "who is invited", direct: "the people of this room" }[info.visibility]],
    ["Slow mode", info.slow_mode ? duration(info.slow_mode) : ""], ["Messages are kept", info.retention_days ? plural(info.retention_days, "day") : "for ever"],
    ["Members", info.member_count ? String(info.member_count) : ""], ["Messages", info.message_count ? String(info.message_count) : ""],
    ["Made", created ? `${fullTime(created)}${info.created_by ? ` by ${info.created_by}` : ""}` : ""],
  ].filter(([, value]) => value);
  body.append(h("dl", { class: "facts" }, ...facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", { dir: "auto" }, value)))));
}

function editRoom({ desk, room, body, close }) {
  const { info } = room;
  const owns = room.may("own");
  const wanted = [
    { name: "name", label: "Name", value: info.name, maxlength: 100 },
    { name: "topic", label: "Topic", type: "textarea", value: info.topic ?? "", maxlength: 1000 },
    { name: "slow_mode", label: "Slow mode", type: "select", options: withValue(SLOW, info.slow_mode ?? 0, duration), value: String(info.slow_mode ?? 0), hint: "How long a member waits between two messages." },
    { name: "history", label: "Later members see", type: "select", options: [["shared", "all that was said before"], ["joined", "only what is said after they joined"]], value: info.history },
    owns && { name: "kind", label: "Kind", type: "select", options: KINDS, value: info.kind },
    owns && { name: "visibility", label: "Who may come", type: "select", options: [["public", "Everybody"], ["private", "Who is invited"]], value: info.visibility },
    owns && { name: "retention_days", label: "Messages are kept", type: "select", options: withValue(KEPT_FOR, info.retention_days ?? 0, (days) => plural(days, "day")), value: String(info.retention_days ?? 0) },
  ].filter(Boolean);
  const fields = new Map(wanted.map((field) => [field.name, buildField("settings", field)]));
  const result = outcome();
  const save = h("button", { class: "primary", type: "submit" }, "Save");
  const form = h("form", { class: "settings-form", autocomplete: "off", novalidate: true }, ...[...fields.values()].map((field) => field.element), result.line,
    h("div", { class: "dialog-actions" }, save));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    result.clear();
    const changes = changed(fields, wanted);
    if (Object.keys(changes).length === 0) return close();
    save.disabled = true;
    try {
      const { room: now } = await desk.client.request("update_room", { room_id: room.id, ...changes });
      room.update(now);
      flash("Saved");
      close();
    } catch (error) {
      result.fail(error);
    } finally {
      save.disabled = false;
    }
  });
  body.append(form);
  if (owns) body.append(archiving(desk, room, close));
}

/** The choices, and the value that is set now, if it is none of them. */
function withValue(options, value, say) {
  return options.some(([key]) => key === String(value)) ? options : [...options, [String(value), say(value)]];
}

function changed(fields, wanted) {
  const changes = {};
  for (const { name, value } of wanted) {
    const now = fields.get(name).value();
    if (now !== value) changes[name] = name === "slow_mode" || name === "retention_days" ? Number(now) : now;
  }
  return changes;
}

function archiving(desk, room, close) {
  const archived = Boolean(room.info.archived_at);
  const act = async () => {
    const { room: now } = await desk.client.request("update_room", { room_id: room.id, archived: !archived });
    room.update(now);
    close();
  };
  return h("div", { class: "settings-end" },
    h("p", { class: "hint" }, archived ? "The room is archived: nothing is added to it." : "An archived room can be read, and nothing is added to it."),
    h("button", { class: `quiet${archived ? "" : " dangerous"}`, type: "button", onclick: () => (archived ? act().catch((error) => flash(sentence(error.message), "error"))
      : confirmDialog({ id: "archive", title: `Archive ${room.name}?`, text: "Everybody can still read it. An owner can open it again.", action: "Archive", act })) },
    archived ? "Open it again" : "Archive this room"));
}

// -- who is in it

function membersTab({ desk, members, room, body }) {
  const list = h("ul", { class: "member-list" });
  const result = outcome();
  const more = h("button", { class: "quiet", type: "button", hidden: true, onclick: () => load() }, "Show more");
  const invite = room.may("invite") && h("button", { class: "quiet with-icon", type: "button", onclick: () => desk.invite(room) }, "Invite people");
  let after = "";
  const load = async () => {
    result.clear();
    try {
      const page = await desk.client.request("list_members", { room_id: room.id, after, limit: 100 });
      after = page.members.at(-1)?.user_id ?? after;
      list.append(...page.members.map((member) => memberLine(member)));
      show(more, Boolean(page.more));
    } catch (error) {
      result.fail(error);
    }
  };
  const memberLine = (member) => {
    const name = member.user_id;
    const seen = room.users.has(name) ? "here" : member.last_seen ? "last seen " : "";
    return h("li", { class: "member", dataset: { member: name } }, avatar(name), h("span", { class: "member-body" },
      h("bdi", { class: "person-name" }, name),
      h("span", { class: "hint" }, member.role, seen && ` · ${seen}`, member.last_seen && seen !== "here" && timeOf(parseTime(member.last_seen), true),
        member.muted_until && " · muted until ", member.muted_until && timeOf(parseTime(member.muted_until), true))),
    iconButton("more", `What to do with ${name}`, { onclick: (event) => personMenu(desk, members, room, name, event.currentTarget) }));
  };
  const again = room.on("members", () => {
    if (!list.isConnected) return again();
    after = "";
    list.replaceChildren();
    members.forget(room.id);
    load();
  });
  body.append(h("div", { class: "settings-top" }, h("p", { class: "hint" }, plural(room.info.member_count ?? 0, "member")), invite), list, more, result.line);
  load();
}

function bansTab({ desk, room, body }) {
  const list = h("ul", { class: "member-list" });
  const result = outcome();
  const load = async () => {
    try {
      const { bans } = await desk.client.request("list_bans", { room_id: room.id });
      list.replaceChildren(...bans.map((ban) => h("li", { class: "member" }, avatar(ban.user_id), h("span", { class: "member-body" },
        h("bdi", { class: "person-name" }, ban.user_id),
        h("span", { class: "hint" }, "by ", h("bdi", {}, ban.banned_by), ban.until ? " until " : " for ever", ban.until && fullTime(parseTime(ban.until)), ban.reason && " · ", ban.reason && h("bdi", {}, ban.reason))),
      h("button", { class: "quiet", type: "button", onclick: async () => {
        await unban(desk, room, ban.user_id);
        load();
      } }, "Lift"))));
      if (bans.length === 0) list.replaceChildren(h("li", { class: "empty-small" }, "Nobody is banned."));
    } catch (error) {
      result.fail(error);
    }
  };
  body.append(list, result.line);
  load();
}
