// For moderators: reported messages and what becomes of them, and the log of what moderators did.

import { avatar, flash, h, setText, show, timeOf } from "./dom.js";
import { excerpt, sentence } from "./text.js";
import { parseTime } from "./time.js";

const ACTS = {
  delete_message: "deleted a message of", close_report: "closed a report of a message of", kick: "removed", ban: "banned", unban: "lifted the ban of",
  mute: "muted", unmute: "let write again", set_role: "changed the role of", update_room: "changed the room", export: "exported the room",
};
const STATES = [["open", "Open"], ["resolved", "Resolved"], ["dismissed", "Dismissed"]];

/** A list that is loaded page by page: `ask(last)` gives {items, more}, `line(item)` shows one. */
function pages({ body, ask, line, empty }) {
  const list = h("ul", { class: "review-list" });
  const state = h("p", { class: "empty-small", role: "status" }, "Loading…");
  const more = h("button", { class: "quiet", type: "button", hidden: true, onclick: () => load() }, "Show more");
  let last = null;
  const load = async () => {
    try {
      const page = await ask(last);
      last = page.items.at(-1) ?? last;
      list.append(...page.items.map(line));
      show(more, page.more);
      setText(state, list.childElementCount ? "" : empty);
    } catch (error) {
      setText(state, sentence(error.message));
    }
  };
  body.append(list, state, more);
  load();
  return {
    again() {
      last = null;
      list.replaceChildren();
      load();
    },
    remove(element) {
      element.remove();
      setText(state, list.childElementCount ? "" : empty);
    },
  };
}

export function reportsTab({ desk, room, body, close }) {
  let status = "open";
  const choice = h("select", { "aria-label": "Which reports" }, ...STATES.map(([value, label]) => h("option", { value }, label)));
  choice.addEventListener("change", () => {
    status = choice.value;
    list.again();
  });
  body.append(h("div", { class: "settings-top" }, h("p", { class: "hint" }, "What members reported, the oldest first."), choice));
  const decide = (report, fields, done) => async (event) => {
    const line = event.currentTarget.closest(".review");
    const buttons = [...line.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    try {
      await desk.client.request("close_report", { report: report.report, ...fields });
      flash(done);
      list.remove(line);
    } catch (error) {
      flash(sentence(error.message), "error");
      for (const button of buttons) button.disabled = false;
    }
  };
  const line = (report) => {
    const { message } = report;
    const gone = !message || message.deleted_at;
    return h("li", { class: "review", dataset: { report: String(report.report) } },
      h("p", { class: "review-head" }, h("bdi", { class: "person-name" }, report.reported_by), " reported", timeOf(parseTime(report.at), true)),
      h("p", { class: "review-reason", dir: "auto" }, report.reason),
      h("blockquote", { class: "review-message", dir: "auto" }, message ? h("bdi", { class: "quote-author" }, message.user_id) : "", " ",
        gone ? h("em", {}, "the message is deleted") : excerpt(message.message, 400) || (message.files ?? []).map((file) => file.name).join(", ")),
      report.status === "open" ? h("p", { class: "review-actions" },
        !gone && h("button", { class: "quiet", type: "button", onclick: () => {
          close();
          desk.jump(room.id, message.id, message.thread ?? null);
        } }, "Show"),
        h("button", { class: "quiet", type: "button", onclick: decide(report, { status: "dismissed" }, "Dismissed") }, "Dismiss"),
        h("button", { class: "quiet", type: "button", onclick: decide(report, { status: "resolved" }, "Resolved") }, "Resolve"),
        !gone && h("button", { class: "quiet dangerous", type: "button", onclick: decide(report, { status: "resolved", delete: true }, "Deleted and resolved") }, "Delete the message"))
        : h("p", { class: "hint" }, `${report.status} by `, h("bdi", {}, report.closed_by ?? ""), report.note && `: ${report.note}`));
  };
  const list = pages({
    body, line, empty: "Nothing here.",
    ask: async (last) => {
      const { reports, more } = await desk.client.request("list_reports", { room_id: room.id, status, ...(last && { after: last.report }) });
      return { items: reports, more: Boolean(more) };
    },
  });
}

export function auditTab({ desk, room, body }) {
  pages({
    body, empty: "Moderators have done nothing yet.",
    ask: async (last) => {
      const { entries, more } = await desk.client.request("get_audit", { room_id: room.id, ...(last && { before: last.entry }) });
      return { items: entries, more: Boolean(more) };
    },
    line: (entry) => {
      const data = Object.entries(entry.data ?? {}).filter(([, value]) => value !== null && value !== "");
      return h("li", { class: "review" }, h("p", { class: "review-head" }, avatar(entry.user_id), h("bdi", { class: "person-name" }, entry.user_id),
        ` ${ACTS[entry.act] ?? entry.act} `, entry.target_user && h("bdi", { class: "person-name" }, entry.target_user), timeOf(parseTime(entry.at), true)),
      data.length > 0 && h("p", { class: "hint", dir: "auto" }, data.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ")));
    },
  });
}
