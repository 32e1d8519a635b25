// Where one writes: text, an answer to something, attachments on their way, whom to mention, and why it cannot go now.

import { announce, h, icon, iconButton, setText, show } from "./dom.js";
import { pickEmoji } from "./emoji.js";
import { Upload } from "./files.js";
import { Mentioning } from "./mentioning.js";
import { progressOf } from "./row.js";
import { duration, excerpt, plural } from "./text.js";

/** Characters of a message, where the server has its default. */
const LENGTH = 10_000;
const ATTACHED = 10; // files of one message, likewise
const TYPING_EVERY = 3_000; // ms

export class Composer {
  /**
   * `host`: where it goes; `prefix`: of its elements' ids. `onsend({text, replyTo, uploads})`, `ontyping()`, `oneditlast()`
   * (the user wants to edit what they said last); `candidates(query)`: whom one may mention; `token()`: for uploads.
   */
  constructor(host, prefix, { onsend, ontyping = () => {}, oneditlast = () => {}, candidates, token }) {
    Object.assign(this, { onsend, ontyping, oneditlast, token });
    this.roomId = "";
    this.replyTo = null;
    this.uploads = [];
    this.#build(host, prefix);
    this.mentioning = new Mentioning(this.field, this.form, candidates);
    this.#listen(host);
  }

  #typed = 0; // when the others were last told that the user types
  #heldUntil = 0;
  #timer = 0;

  #build(host, prefix) {
    this.label = h("label", { class: "visually-hidden", for: `${prefix}-input` }, "Message");
    this.field = h("textarea", { id: `${prefix}-input`, rows: "1", dir: "auto", enterkeyhint: "send", maxlength: String(LENGTH), "aria-describedby": `${prefix}-note` });
    this.picker = h("input", { type: "file", multiple: true, hidden: true, tabindex: "-1" });
    this.attach = iconButton("attach", "Attach files", { onclick: () => this.picker.click() });
    this.emoji = iconButton("emoji", "Emoji", { "aria-haspopup": "dialog", onclick: () => pickEmoji(this.emoji, (emoji) => this.insert(emoji)) });
    this.send = h("button", { class: "send", type: "submit", id: prefix === "composer" ? "send" : null, "aria-label": "Send" }, icon("send"));
    this.answered = h("div", { class: "answered", hidden: true });
    this.tray = h("ul", { class: "tray", "aria-label": "Attachments", hidden: true });
    this.form = h("form", { class: "composer", id: prefix, autocomplete: "off" },
      this.answered, this.tray, h("div", { class: "composer-line" }, this.attach, this.label, this.field, this.emoji, this.send), this.picker);
    this.obstacle = h("p", { class: "obstacle", id: `${prefix}-obstacle`, hidden: true });
    this.note = h("p", { class: "composer-note", id: `${prefix}-note` });
    host.append(this.form, this.obstacle, this.note);
  }

  #listen(host) {
    const { field, form } = this;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    field.addEventListener("keydown", (event) => this.#key(event));
    field.addEventListener("input", () => this.#changed());
    field.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length === 0) return;
      event.preventDefault();
      this.add(files);
    });
    this.picker.addEventListener("change", () => {
      this.add([...this.picker.files]);
      this.picker.value = "";
    });
    this.#takeDrops(host.closest("[data-drop]") ?? host);
  }

  /** Files may be dropped on all of the conversation. */
  #takeDrops(area) {
    let depth = 0;
    const over = (on) => area.classList.toggle("dropping", on);
    const carries = (event) => event.dataTransfer?.types.includes("Files") && !this.form.hidden;
    area.addEventListener("dragenter", (event) => {
      if (!carries(event)) return;
      depth++;
      over(true);
    });
    area.addEventListener("dragleave", (event) => {
      if (!carries(event)) return;
      depth = Math.max(0, depth - 1);
      if (depth === 0) over(false);
    });
    area.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    area.addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      depth = 0;
      over(false);
      this.add([...event.dataTransfer.files]);
    });
  }

  #key(event) {
    if (this.mentioning.key(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "Escape" && this.replyTo) {
      event.preventDefault();
      event.stopPropagation();
      this.answer(null);
    } else if (event.key === "ArrowUp" && !event.altKey && this.field.value === "" && this.uploads.length === 0) {
      event.preventDefault();
      this.oneditlast();
    }
  }

  #submit() {
    const text = this.field.value.trim();
    const uploads = this.uploads.filter((upload) => upload.state !== "failed");
    if ((!text && uploads.length === 0) || this.form.hidden || [...text].length > LENGTH) return;
    if (this.uploads.length !== uploads.length) return void announce("An attachment could not be sent: try it again, or take it away");
    if (Date.now() < this.#heldUntil) return void announce(this.note.textContent);
    const replyTo = this.replyTo?.id ?? null;
    this.uploads = [];
    this.clear();
    this.onsend({ text, replyTo, uploads });
    this.field.focus();
  }

  #changed() {
    this.fit();
    const now = Date.now();
    if (this.field.value.trim() && now - this.#typed >= TYPING_EVERY && this.ontyping()) this.#typed = now;
  }

  // -- what is in it

  /** What is being written here, to go on with it later. */
  get draft() {
    const { field, replyTo, uploads } = this;
    return { text: field.value, replyTo, uploads };
  }

  set draft({ text = "", replyTo = null, uploads = [] }) {
    this.field.value = text;
    this.uploads = uploads;
    for (const upload of uploads) upload.onchange = () => this.#paintTray();
    this.#typed = 0;
    this.answer(replyTo, false);
    this.mentioning.close();
    this.#paintTray();
    this.fit();
  }

  clear() {
    this.draft = {};
  }

  insert(text) {
    const { field } = this;
    field.setRangeText(text, field.selectionStart, field.selectionEnd, "end");
    field.dispatchEvent(new Event("input"));
    field.focus();
  }

  /** Answer a message; null: none any more. */
  answer(item, focus = true) {
    this.replyTo = item;
    show(this.answered, item !== null);
    this.answered.replaceChildren(...(item ? [
      icon("reply"), h("span", { class: "answered-text" }, "Answering ", h("bdi", { class: "quote-author" }, item.user), " ",
        h("span", { class: "quote-text", dir: "auto" }, excerpt(item.text) || item.files.map((file) => file.name).join(", "))),
      iconButton("close", "Do not answer it", { onclick: () => this.answer(null) }),
    ] : []));
    if (focus) this.field.focus();
  }

  /** Attach files, and send them off at once. */
  add(files) {
    const room = ATTACHED - this.uploads.length;
    if (files.length > room) announce(`A message has at most ${ATTACHED} attachments`);
    for (const file of files.slice(0, room)) {
      this.uploads.push(new Upload(file, { roomId: this.roomId, token: this.token, onchange: () => this.#paintTray() }));
    }
    this.#paintTray();
    this.fit();
    this.field.focus();
  }

  #paintTray() {
    show(this.tray, this.uploads.length > 0);
    this.tray.replaceChildren(...this.uploads.map((upload) => h("li", { class: "file", dataset: { state: upload.state } },
      upload.preview ? h("img", { class: "file-preview", src: upload.preview, alt: "" }) : icon("file"),
      h("span", { class: "file-body" }, h("bdi", { class: "file-name", title: upload.name }, upload.name),
        upload.state === "failed" ? h("span", { class: "failure" }, upload.error) : progressOf(upload)),
      upload.state === "failed" && iconButton("refresh", `Try ${upload.name} again`, { onclick: () => upload.start() }),
      iconButton("close", `Take ${upload.name} away`, { onclick: () => this.#takeAway(upload) }))));
  }

  #takeAway(upload) {
    this.uploads = this.uploads.filter((each) => each !== upload);
    upload.cancel();
    this.#paintTray();
    this.fit();
    this.field.focus();
  }

  fit() {
    const { field } = this;
    field.style.height = "auto";
    if (field.scrollHeight) field.style.height = `${field.scrollHeight}px`; // there is none while it is out of sight
    this.#paintNote();
  }

  // -- what stands in the way

  /** What is written here, and why it cannot be ("" if it can). */
  address(what, obstacle, files = true) {
    setText(this.label, what);
    this.field.placeholder = what;
    show(this.form, obstacle === "");
    show(this.obstacle, obstacle !== "");
    show(this.note, obstacle === "");
    show(this.attach, files);
    setText(this.obstacle, obstacle);
  }

  /** Slow mode: the next message may go in so many seconds. */
  hold(seconds) {
    this.#heldUntil = Date.now() + seconds * 1000;
    this.#paintNote();
  }

  free() {
    this.#heldUntil = 0;
    this.#paintNote();
  }

  #paintNote() {
    clearTimeout(this.#timer);
    const wait = Math.ceil((this.#heldUntil - Date.now()) / 1000);
    const left = LENGTH - [...this.field.value].length;
    if (wait > 0) this.#timer = setTimeout(() => this.#paintNote(), 250);
    setText(this.note, wait > 0 ? `Slow mode: your next message may go in ${duration(wait)}.` : left < 500 ? `${plural(left, "character")} left` : "");
    this.note.classList.toggle("holds", wait > 0);
    this.send.disabled = wait > 0 || (this.field.value.trim() === "" && this.uploads.length === 0);
  }
}
