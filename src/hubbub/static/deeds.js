// What somebody does with a message: answer, react, edit, pin, report, delete. Buttons and keys come here.

import { announce, flash, h } from "./dom.js";
import { confirmDialog, formDialog, pictureDialog } from "./dialogs.js";
import { download } from "./files.js";
import { openPopup } from "./popup.js";
import { excerpt, sentence } from "./text.js";
import { fullTime, parseTime } from "./time.js";

/** Refusals of a reaction or pin need no dialog: a word will do. */
async function quietly(promise) {
  try {
    await promise;
  } catch (error) {
    flash(sentence(error.message), "error");
  }
}

export class Deeds {
  /** `desk`: what the page shares (see app.js); `conversation`: where the messages stand. */
  constructor(desk, conversation) {
    this.desk = desk;
    this.conversation = conversation;
  }

  get room() {
    return this.conversation.room;
  }

  #ask(type, item, fields = {}) {
    return this.desk.client.request(type, { room_id: this.room.id, id: item.id, ...fields });
  }

  may(what, item) {
    const { room } = this;
    if (!room) return false;
    const stored = room.stored && item.id > 0;
    switch (what) {
      case "react": return stored && room.may("react");
      case "reply": return stored && room.obstacle() === "";
      case "thread": return stored && item.thread === null && (Boolean(item.replies) || room.obstacle() === "");
      case "edit": return stored && item.own && room.may("edit");
      case "pin": return stored && room.may("pin");
      case "link": return stored;
      case "report": return stored && !item.own && room.may("see");
      case "delete": return stored && (item.own ? !room.info.archived_at || room.may("moderate") : room.may("moderate"));
      default: return true;
    }
  }

  react(item, emoji) {
    const mine = item.reactions.some((reaction) => reaction.emoji === emoji && reaction.me);
    return quietly(this.#ask(mine ? "remove_reaction" : "add_reaction", item, { emoji }));
  }

  pin(item) {
    return quietly(this.#ask(item.pinned ? "unpin_message" : "pin_message", item));
  }

  reply(item) {
    this.conversation.composer.answer(item);
  }

  thread(item) {
    this.desk.openThread(this.room, item);
  }

  edit(item) {
    const { list, composer } = this.conversation;
    list.rowOf(item)?.edit(() => composer.field.focus());
  }

  async saveEdit(item, text) {
    try {
      await this.#ask("edit_message", item, { message: text });
    } catch (error) {
      throw new Error(sentence(error.message));
    }
  }

  async copy(item) {
    await copied(item.text, "Text copied");
  }

  async link(item) {
    const url = new URL(document.baseURI);
    url.hash = `${encodeURIComponent(this.room.id)}/${item.id}`;
    await copied(url.href, "Link copied");
  }

  report(item) {
    formDialog({
      id: "report", title: "Report this message", text: `${item.user}: ${excerpt(item.text, 200)}`, action: "Report",
      fields: [{ name: "reason", label: "What is wrong with it?", type: "textarea", maxlength: 1000, hint: "The moderators of this room read it." }],
      onsubmit: async ({ reason }) => {
        if (!reason) throw new Error("Say what is wrong with it.");
        await this.#ask("report_message", item, { reason });
        flash("Reported to the moderators");
      },
    });
  }

  async remove(item) {
    const moderates = !item.own;
    await confirmDialog({
      id: "delete", title: "Delete this message?", action: "Delete",
      text: `${item.user}: ${excerpt(item.text, 200) || item.files.map((file) => file.name).join(", ")}`,
      fields: moderates ? [{ name: "reason", label: "Reason", optional: "for the audit log", maxlength: 500 }] : [],
      act: ({ reason }) => this.#ask("delete_message", item, reason ? { reason } : {}),
    });
  }

  /** What a message said before it was edited. */
  async versions(item, anchor) {
    const list = h("ol", { class: "versions" }, h("li", { class: "empty-small" }, "Loading…"));
    openPopup(anchor, h("div", {}, h("h3", { class: "popup-title" }, "Versions"), list), { label: "Versions of the message" });
    try {
      const { versions } = await this.#ask("get_versions", item);
      list.replaceChildren(...versions.map((version) => {
        const at = parseTime(version.timestamp);
        return h("li", { class: "version" }, h("time", { datetime: at.toISOString() }, fullTime(at)), h("p", { dir: "auto" }, version.message));
      }).reverse());
    } catch (error) {
      list.replaceChildren(h("li", { class: "failure" }, sentence(error.message)));
    }
  }

  async download(info) {
    try {
      await download(info, this.desk.client.token);
    } catch (error) {
      flash(`${info.name} could not be downloaded: ${error.message}.`, "error");
    }
  }

  showPicture(info, url, opener) {
    const { pictures } = this.desk;
    pictures.use(info).catch(() => {}); // it must not be let go of while it is shown, whatever becomes of its row
    pictureDialog({ name: info.name, url, ondownload: () => this.download(info), onclose: () => {
      pictures.release(info);
      if (opener.isConnected) opener.focus({ preventScroll: true });
    } });
  }
}

async function copied(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    flash(done);
  } catch {
    flash("The browser does not let this page copy.", "error");
    announce("Not copied");
  }
}
