// Dialogs with a question: built when they are asked, gone when they are answered.

import { $, avatar, h, iconButton, setText } from "./dom.js";
import { sentence } from "./text.js";

/** Close a dialog by a press beside it, and take it away once it is closed. */
export function openDialog(dialog) {
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * A form in a dialog. `fields`: [{name, label, type, value, options, hint, maxlength, placeholder, onchange(values, set)}], where
 * `type` is text, textarea, select, checkbox or people. `onsubmit(values)` does it, and rejects with what to show; a function that
 * it resolves with is called once the dialog is closed and has given the focus back.
 */
export function formDialog({ id, title, text = "", fields = [], action, danger = false, onsubmit }) {
  const error = h("p", { class: "field-error", id: `${id}-error`, role: "alert" });
  const inputs = new Map(fields.map((field) => [field.name, buildField(id, field)]));
  const values = () => Object.fromEntries([...inputs].map(([name, input]) => [name, input.value()]));
  const submit = h("button", { class: `primary${danger ? " dangerous" : ""}`, type: "submit" }, action);
  const form = h("form", { autocomplete: "off", novalidate: true },
    h("h2", { id: `${id}-title` }, title), text && h("p", { class: "dialog-text", dir: "auto" }, text),
    ...[...inputs.values()].map((input) => input.element), error,
    h("div", { class: "dialog-actions" }, h("button", { class: "quiet", type: "button", onclick: () => dialog.close() }, "Cancel"), submit));
  const dialog = h("dialog", { class: "dialog", id: `${id}-dialog`, "aria-labelledby": `${id}-title` }, form);
  for (const field of fields) {
    inputs.get(field.name).onchange = () => field.onchange?.(values(), (name, value) => inputs.get(name).set(value));
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    setText(error, "");
    submit.disabled = true;
    try {
      const after = await onsubmit(values());
      dialog.close();
      after?.();
    } catch (fault) {
      setText(error, sentence(fault.message));
      inputs.get(fault.field ?? fields[0]?.name)?.focus();
    } finally {
      submit.disabled = false;
    }
  });
  openDialog(dialog);
  (inputs.values().next().value ?? { focus: () => submit.focus() }).focus();
  return dialog;
}

/** What is wrong with a field of a form. */
export function wrong(field, message) {
  return Object.assign(new Error(message), { field });
}

/** A field: {element, value(), set(value), focus(), onchange()}. */
export function buildField(prefix, { name, label, type = "text", options = [], value = options[0]?.[0] ?? "", hint = "", optional = "", maxlength, placeholder, mono = false, suggestions = [] }) {
  const id = `${prefix}-${name}`;
  const field = { onchange: () => {} };
  const common = { id, name, maxlength, placeholder, "aria-describedby": hint ? `${id}-hint ${prefix}-error` : `${prefix}-error` };
  const note = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
  if (type === "people") return peopleField(id, { label, optional, note, suggestions });
  const input = type === "select" ? h("select", common, ...options.map(([key, text]) => h("option", { value: key }, text)))
    : type === "textarea" ? h("textarea", { ...common, rows: "3", dir: "auto" })
    : type === "checkbox" ? h("input", { ...common, type: "checkbox" })
    : h("input", { ...common, type, dir: mono ? null : "auto", class: mono ? "mono" : null, spellcheck: mono ? "false" : null, autocapitalize: mono ? "off" : null });
  field.value = () => (type === "checkbox" ? input.checked : input.value.trim());
  field.set = (to) => {
    if (type === "checkbox") input.checked = to;
    else input.value = to;
  };
  field.focus = () => input.focus();
  field.input = input;
  field.set(value);
  input.addEventListener(type === "select" || type === "checkbox" ? "change" : "input", () => field.onchange());
  const caption = h("label", { for: id }, label, optional && h("span", { class: "optional" }, ` ${optional}`));
  field.element = type === "checkbox" ? h("div", { class: "field check" }, input, caption, note) : h("div", { class: "field" }, caption, input, note);
  return field;
}

/** Names of people: each becomes a chip by Enter or a comma. */
function peopleField(id, { label, optional, note, suggestions }) {
  let names = [];
  const input = h("input", { id, type: "text", list: `${id}-list`, maxlength: "128", dir: "auto", placeholder: "Add a name" });
  const chips = h("ul", { class: "chips", "aria-label": "Chosen people" });
  const field = { onchange: () => {} };
  const paint = () => chips.replaceChildren(...names.map((name) => h("li", { class: "chip" }, avatar(name), h("bdi", {}, name),
    iconButton("close", `Remove ${name}`, { onclick: () => set(names.filter((each) => each !== name)) }))));
  const set = (to) => {
    names = to;
    paint();
    input.focus();
    field.onchange();
  };
  const take = () => {
    const name = input.value.replace(/,$/, "").trim();
    input.value = "";
    if (name && !names.includes(name)) set([...names, name]);
  };
  input.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" && input.value.trim()) || event.key === ",") {
      event.preventDefault();
      take();
    } else if (event.key === "Backspace" && input.value === "" && names.length) {
      set(names.slice(0, -1));
    }
  });
  input.addEventListener("change", () => input.value && suggestions.includes(input.value) && take());
  field.value = () => [...new Set([...names, input.value.trim()])].filter(Boolean);
  field.set = (to) => set(to);
  field.focus = () => input.focus();
  field.element = h("div", { class: "field" }, h("label", { for: id }, label, optional && h("span", { class: "optional" }, ` ${optional}`)),
    chips, input, h("datalist", { id: `${id}-list` }, ...suggestions.map((name) => h("option", { value: name }))), note);
  return field;
}

/** Ask before something that cannot be undone. Resolves with true once it is done, false if it was not. */
export function confirmDialog({ id, title, text, action, fields = [], danger = true, act }) {
  return new Promise((resolve) => {
    let done = false;
    const dialog = formDialog({ id, title, text, action, fields, danger, onsubmit: async (values) => {
      await act(values);
      done = true;
    } });
    dialog.addEventListener("close", () => resolve(done));
  });
}

/** A picture as large as the window allows. */
export function pictureDialog({ name, url, ondownload, onclose }) {
  const dialog = h("dialog", { class: "picture-dialog", "aria-label": `Picture ${name}` },
    h("div", { class: "picture-bar" }, h("bdi", { class: "picture-name" }, name),
      iconButton("download", "Download", { onclick: ondownload }), iconButton("close", "Close", { onclick: () => dialog.close() })),
    h("img", { src: url, alt: name }));
  dialog.addEventListener("close", onclose);
  openDialog(dialog);
}

// -- about

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The "try it" lines, made of this page's own address. `who()` → {user, room}. */
export function aboutDialog(who) {
  const dialog = $("about-dialog");
  $("about-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close());
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2_000);
    });
  }
  $("about-button").addEventListener("click", () => {
    const { user, room } = who();
    const base = new URL(".", document.baseURI).href;
    const body = JSON.stringify({ user_id: user, title: "Hello", message: "from a terminal", notification_type: "success" });
    $("try-notify").textContent = [
      `curl ${base}api/notifications/send \\`,
      '  -H "Authorization: Bearer $(hubbub token me --admin)" \\',
      "  -H 'Content-Type: application/json' \\",
      `  -d ${quoted(body.replace(',"message":', ',\n      "message":'))}`,
    ].join("\n");
    $("try-talk").textContent = [
      `npx wscat -c ${base.replace(/^http/, "ws")}ws`,
      '{"type": "auth", "token": "…"}',
      JSON.stringify({ type: "join_room", room_id: room }),
      JSON.stringify({ type: "chat_message", room_id: room, message: "Hello" }),
    ].join("\n");
    dialog.showModal();
  });
}
