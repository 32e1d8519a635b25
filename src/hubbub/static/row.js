// One message on the page. A row holds everything that it may show; what is painted anew is only what has changed.

import { arrange, avatar, h, icon, iconButton, show, timeOf } from "./dom.js";
import { nameOf } from "./emoji.js";
import { PICTURES } from "./files.js";
import { calls, systemWords } from "./message.js";
import { excerpt, isJumbo, partsOf, plural, short, sizeOf } from "./text.js";
import { parseTime } from "./time.js";

const LONG = { characters: 1600, lines: 24 };
const NAMED = 3; // people whom a tooltip names

export class Row {
  /**
   * `actions` is what a row can ask for:
   *   me, roomy, quoted(id) → item | null | undefined (not known yet), jump(id), openThread(item), react(item, emoji),
   *   person(name, anchor), versions(item, anchor), retry(item), discard(item), saveEdit(item, text),
   *   pictures, showPicture(info, url), download(info)
   */
  constructor(item, actions) {
    this.item = item;
    this.actions = actions;
    this.editing = null;
    this.pictures = []; // FileInfos in use
    this.element = h("li", { class: "row", tabindex: "-1" });
    if (item.system) this.#buildSystem();
    else this.#build();
    this.paint();
  }

  #painted = {}; // part → what it was painted from

  #buildSystem() {
    const { item, actions } = this;
    const words = systemWords(item).map((part) => {
      if (typeof part === "string") return part;
      if (part.id) return h("button", { class: "link", type: "button", onclick: () => actions.jump(part.id) }, part.name);
      return h("bdi", {}, part.name);
    });
    this.element.classList.add("system");
    this.element.append(h("p", { class: "system-line" }, h("span", {}, ...words), timeOf(item.at)));
  }

  #build() {
    const { item, actions } = this;
    const person = (properties, ...children) =>
      h("button", { type: "button", tabindex: "-1", ...properties, onclick: (event) => actions.person(item.user, event.currentTarget) }, ...children);
    this.quote = h("button", { class: "quote", type: "button", tabindex: "-1", hidden: true, onclick: () => actions.jump(item.replyTo) });
    this.time = timeOf(item.at);
    this.mark = h("span", { class: "pin-mark", title: "Pinned", hidden: true }, icon("pin"), h("span", { class: "visually-hidden" }, "Pinned"));
    this.bubble = h("div", { class: "bubble", dir: "auto" });
    this.edited = h("button", { class: "edited", type: "button", tabindex: "-1", title: "What it said before", hidden: true,
      onclick: () => actions.versions(this.item, this.edited) }, "edited");
    this.files = h("div", { class: "files", hidden: true });
    this.reactions = h("div", { class: "reactions", role: "group", "aria-label": "Reactions", hidden: true });
    this.replies = h("button", { class: "replies", type: "button", tabindex: "-1", hidden: true, onclick: () => actions.openThread(this.item) });
    this.note = h("p", { class: "note", hidden: true });
    this.element.append(
      person({ class: "face", "aria-hidden": "true" }, avatar(item.user)),
      h("div", { class: "body" },
        this.quote,
        h("p", { class: "meta" }, person({ class: "author" }, h("bdi", {}, item.user)), this.time, this.mark),
        h("div", { class: "said" }, this.bubble, this.edited),
        this.files, this.reactions, this.replies, this.note),
    );
  }

  /** Show the message as it is now. */
  paint() {
    const { item } = this;
    if (item.system) return;
    const { classList, dataset } = this.element;
    dataset.state = item.retryAt ? "waiting" : item.state;
    if (item.id) dataset.id = item.id;
    classList.toggle("own", item.own);
    classList.toggle("deleted", Boolean(item.deletedAt));
    classList.toggle("calls-me", !item.own && calls(item.mentions, this.actions.me));
    show(this.mark, item.pinned);
    show(this.edited, Boolean(item.editedAt) && !item.deletedAt);
    this.#part("time", [item.at.getTime()], () => {
      const fresh = timeOf(item.at);
      this.time.replaceWith(fresh);
      this.time = fresh;
    });
    this.#part("text", [item.text, item.deletedAt, item.mentions.join("\n"), item.files.length], () => this.#paintText());
    this.#part("files", [item.files.map((file) => file.id).join(" "), item.id], () => this.#paintFiles());
    if (!item.id) this.#paintUploads();
    this.#part("reactions", [JSON.stringify(item.reactions)], () => this.#paintReactions());
    this.#part("replies", [JSON.stringify(item.replies)], () => this.#paintReplies());
    this.#part("note", [item.state, item.error, item.retryAt], () => this.#paintNote());
    this.paintQuote();
  }

  #part(name, values, paint) {
    const key = values.join("\u0000");
    if (this.#painted[name] === key) return;
    this.#painted[name] = key;
    paint();
  }

  // -- what it says

  #paintText() {
    const { item, bubble } = this;
    this.unfold?.remove();
    bubble.classList.remove("folded");
    bubble.classList.toggle("jumbo", !item.deletedAt && isJumbo(item.text));
    show(bubble, true);
    if (item.deletedAt) {
      const by = item.deletedBy && item.deletedBy !== item.user ? ` by ${item.deletedBy}` : "";
      bubble.replaceChildren(h("em", {}, `Message deleted${by}`));
      return;
    }
    show(bubble, item.text !== "");
    bubble.replaceChildren(...textNodes(item.text, item.mentions, this.actions));
    if (item.text.length > LONG.characters || item.text.split("\n", LONG.lines + 1).length > LONG.lines) this.#fold();
  }

  #fold() {
    const { bubble } = this;
    bubble.classList.add("folded");
    this.unfold = h("button", { class: "link unfold", type: "button", onclick: () => {
      bubble.classList.remove("folded");
      this.unfold.remove();
      bubble.tabIndex = -1;
      bubble.focus();
    } }, "Show all of it");
    bubble.after(this.unfold);
  }

  /** The message that this one answers, above it. */
  paintQuote() {
    const { item, quote } = this;
    show(quote, Boolean(item.replyTo) && !item.deletedAt);
    if (!item.replyTo || item.deletedAt) return;
    const original = this.actions.quoted(item.replyTo);
    this.#part("quote", [original === undefined, original?.user, original?.text, original?.deletedAt, original?.files?.length], () => {
      const text = original === undefined ? "…"
        : original === null ? "a message that is not there any more"
        : original.deletedAt ? "deleted message"
        : excerpt(original.text) || original.files.map((file) => file.name).join(", ");
      quote.replaceChildren(icon("reply"), ...(original ? [avatar(original.user), h("bdi", { class: "quote-author" }, original.user)] : []),
        h("span", { class: "quote-text", dir: "auto" }, text));
      quote.disabled = !original;
    });
  }

  // -- what belongs to it

  #paintFiles() {
    this.#releasePictures();
    const { files } = this.item;
    show(this.files, files.length > 0);
    this.files.replaceChildren(...files.map((info) => (PICTURES.has(info.media_type) ? this.#picture(info) : this.#fileLine(info))));
  }

  #picture(info) {
    const box = h("button", { class: "picture", type: "button", tabindex: "-1", title: `${info.name} · ${sizeOf(info.size)}`, "aria-label": `Picture ${info.name}` });
    const load = () => {
      box.replaceChildren(h("span", { class: "picture-wait" }, icon("picture")));
      this.pictures.push(info);
      this.actions.pictures.use(info).then((url) => {
        const image = h("img", { src: url, alt: info.name, decoding: "async" });
        image.addEventListener("error", () => fail("This picture cannot be shown."));
        image.addEventListener("load", () => box.classList.add("loaded"));
        box.replaceChildren(image);
        box.onclick = () => this.actions.showPicture(info, url, box);
      }, (error) => fail(`Not loaded: ${error.message}`));
    };
    const fail = (why) => {
      this.pictures = this.pictures.filter((each) => each !== info);
      box.replaceChildren(h("span", { class: "picture-fault" }, h("bdi", {}, info.name), h("span", {}, why), h("span", { class: "link" }, "Try again")));
      box.onclick = load;
    };
    load();
    return box;
  }

  #fileLine(info) {
    return h("div", { class: "file" },
      icon("file"),
      h("span", { class: "file-body" }, h("bdi", { class: "file-name", title: info.name }, info.name), h("span", { class: "file-size" }, sizeOf(info.size))),
      iconButton("download", `Download ${info.name}`, { tabindex: "-1", onclick: () => this.actions.download(info) }));
  }

  /** What is on its way with the message. */
  #paintUploads() {
    const { uploads } = this.item;
    if (uploads.length === 0) return;
    show(this.files, true);
    this.files.replaceChildren(...uploads.map((upload) => h("div", { class: "file" },
      upload.preview ? h("img", { class: "file-preview", src: upload.preview, alt: "" }) : icon("file"),
      h("span", { class: "file-body" },
        h("bdi", { class: "file-name" }, upload.name),
        upload.state === "failed" ? h("span", { class: "failure" }, upload.error) : progressOf(upload)))));
  }

  #paintReactions() {
    const { item, actions } = this;
    const before = new Map([...this.reactions.children].map((button) => [button.dataset.emoji, button]));
    const buttons = item.reactions.map((reaction) => {
      const { emoji, count, me } = reaction;
      const button = before.get(emoji) ?? h("button", { type: "button", class: "reaction", tabindex: "-1", dataset: { emoji },
        onclick: () => actions.react(this.item, emoji) }, h("span", { class: "reaction-emoji" }, emoji), h("span", { class: "reaction-count" }));
      button.lastElementChild.textContent = short(count);
      button.setAttribute("aria-pressed", String(me));
      button.title = tooltip(reaction);
      button.setAttribute("aria-label", `${nameOf(emoji)}, ${button.title}`);
      return button;
    });
    arrange(this.reactions, buttons);
    show(this.reactions, buttons.length > 0);
  }

  #paintReplies() {
    const { replies } = this.item;
    show(this.replies, Boolean(replies));
    if (!replies) return;
    this.replies.classList.toggle("has-unread", replies.unread > 0);
    this.replies.replaceChildren(icon("thread"), h("span", {}, plural(replies.replies, "reply", "replies")),
      ...(replies.unread ? [h("span", { class: "badge", "aria-label": `${replies.unread} unread` }, short(replies.unread))] : []),
      h("span", { class: "replies-last" }, "last ", timeOf(parseTime(replies.last_at), true)));
  }

  #paintNote() {
    const { item, actions, note } = this;
    const button = (label, act) => h("button", { class: "link", type: "button", onclick: () => act(item) }, label);
    show(note, item.state !== "sent");
    if (item.state === "failed") {
      note.replaceChildren(h("span", { class: "failure" }, `Not sent: ${item.error}`), button("Try again", actions.retry), button("Discard", actions.discard));
    } else if (item.retryAt) {
      note.replaceChildren(h("span", { class: "holding" }, `${item.error} It is sent again by itself.`), button("Try now", actions.retry), button("Discard", actions.discard));
    } else {
      note.replaceChildren(h("span", { class: "sending" }, "Sending…"), h("span", { class: "waits" }, "Waits for the connection"));
    }
  }

  // -- editing, in its place

  edit(done) {
    if (this.editing) return;
    const { item, actions } = this;
    const field = h("textarea", { class: "edit-field", rows: "1", dir: "auto", "aria-label": "Edit the message", value: item.text });
    const fault = h("p", { class: "field-error", role: "alert" });
    const end = () => {
      this.editing.remove();
      this.editing = null;
      this.element.classList.remove("is-editing");
      done?.();
    };
    const save = async () => {
      const text = field.value.trim();
      if (!text && item.files.length === 0) return void (fault.textContent = "Write something, or delete the message.");
      if (text === item.text) return end();
      field.disabled = true;
      try {
        await actions.saveEdit(item, text);
        end();
      } catch (error) {
        field.disabled = false;
        fault.textContent = error.message;
        field.focus();
      }
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229)) {
        event.preventDefault();
        event.stopPropagation();
        if (event.key === "Escape") end();
        else save();
      }
    });
    const fit = () => {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight + 2}px`;
    };
    field.addEventListener("input", fit);
    this.editing = h("div", { class: "edit" }, field, fault, h("p", { class: "edit-actions" },
      h("button", { class: "quiet", type: "button", onclick: end }, "Cancel"), h("button", { class: "primary slim", type: "button", onclick: save }, "Save"),
      h("span", { class: "hint only-roomy" }, "Enter saves, Esc cancels")));
    this.element.classList.add("is-editing");
    this.bubble.after(this.editing);
    fit();
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  // -- in the list

  /** What depends on the message before: `day` above it, "New" above it, whether it continues the one before. */
  dress({ day, isNew, continues }) {
    mark(this.element, "daymark", day);
    mark(this.element, "newmark", isNew && "New", "daymark");
    this.element.classList.toggle("continues", continues);
  }

  #releasePictures() {
    for (const info of this.pictures) this.actions.pictures.release(info);
    this.pictures = [];
  }

  remove() {
    this.#releasePictures();
    this.element.remove();
  }
}

function mark(row, name, text, after = null) {
  const found = row.querySelector(`:scope > .${name}`);
  if (!text) return found?.remove();
  if (found) return void (found.firstChild.textContent = text);
  const line = h("p", { class: `mark-line-row ${name}` }, h("span", {}, text));
  const above = after && row.querySelector(`:scope > .${after}`);
  if (above) above.after(line);
  else row.prepend(line);
  return undefined;
}

/** A text with its links and mentions, as nodes. */
export function textNodes(text, mentions, { me, person = null }) {
  return partsOf(text, mentions).map((part) => {
    if (part.kind === "link") return h("a", { href: part.url, target: "_blank", rel: "noopener noreferrer nofollow" }, part.text);
    if (part.kind !== "mention") return document.createTextNode(part.text);
    const mine = calls([part.name], me);
    if (!person || part.name.startsWith("@")) return h("bdi", { class: `mention${mine ? " mine" : ""}` }, part.text);
    return h("button", { class: `mention${mine ? " mine" : ""}`, type: "button", tabindex: "-1", onclick: (event) => person(part.name, event.currentTarget) },
      h("bdi", {}, part.text));
  });
}

/** How far an upload is. */
export function progressOf(upload) {
  if (upload.state === "done") return h("span", { class: "file-size" }, sizeOf(upload.size));
  return h("progress", { max: "1", value: String(upload.progress), "aria-label": `Upload of ${upload.name}` });
}

function tooltip({ count, me, who = [] }) {
  const names = who.slice(0, NAMED);
  const others = count - (me ? 1 : 0) - names.length;
  const people = [...(me ? ["you"] : []), ...names, ...(others > 0 ? [me || names.length ? plural(others, "other") : plural(others, "person", "people")] : [])];
  return people.length > 1 ? `${people.slice(0, -1).join(", ")} and ${people.at(-1)}` : people.join("");
}
