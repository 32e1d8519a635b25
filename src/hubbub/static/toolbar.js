// What can be done with a message: a bar of buttons on the message that is pointed at or has the focus, its menu and its keys.

import { h, iconButton } from "./dom.js";
import { QUICK, nameOf, pickEmoji } from "./emoji.js";
import { openMenu, popupIsOpen } from "./popup.js";

/**
 * `deeds` does what is asked for: may(what, item), react(item, emoji), reply(item), thread(item), edit(item), pin(item),
 * copy(item), link(item), report(item), remove(item), unread(item).
 */
export class Toolbar {
  constructor(list, deeds, { inThread = false } = {}) {
    this.list = list;
    this.deeds = deeds;
    this.inThread = inThread;
    this.element = h("div", { class: "toolbar", role: "toolbar", "aria-label": "What to do with this message" });
    this.item = null;
    const { list: rows } = list;
    rows.addEventListener("pointerover", ({ target, pointerType }) => pointerType === "mouse" && this.#at(target.closest(".row")));
    rows.addEventListener("pointerleave", () => this.#leave());
    rows.addEventListener("focusin", ({ target }) => this.#at(target.closest(".row"), true));
    rows.addEventListener("focusout", () => queueMicrotask(() => this.#leave()));
    list.onkey = (event, item) => this.#key(event, item);
  }

  /** Stand in a row, unless another one's menu is open or has the focus. */
  #at(row, focused = false) {
    const item = row && this.list.itemOf(row);
    if (!item || item.system || (item === this.item && this.element.isConnected)) return;
    if (popupIsOpen() || (!focused && this.element.contains(document.activeElement))) return;
    this.item = item;
    const buttons = this.#buttons(item);
    this.element.replaceChildren(...buttons);
    if (buttons.length) row.append(this.element);
    else this.element.remove();
  }

  #leave() {
    if (popupIsOpen() || this.list.list.matches(":hover") || this.list.list.contains(document.activeElement)) return;
    this.element.remove();
    this.item = null;
  }

  #buttons(item) {
    const { deeds } = this;
    if (item.state !== "sent" || item.deletedAt) return [];
    const button = (may, name, label, act) => may && iconButton(name, label, { onclick: (event) => act(event.currentTarget) });
    return [
      ...(deeds.may("react", item) ? QUICK.slice(0, 3).map((emoji) => h("button", {
        class: "icon-button small quick", type: "button", title: nameOf(emoji), "aria-label": `React with ${nameOf(emoji)}`, onclick: () => deeds.react(item, emoji),
      }, emoji)) : []),
      button(deeds.may("react", item), "emoji", "React", (anchor) => pickEmoji(anchor, (emoji) => deeds.react(item, emoji))),
      button(deeds.may("reply", item), "reply", "Reply", () => deeds.reply(item)),
      button(!this.inThread && deeds.may("thread", item), "thread", "Reply in a thread", () => deeds.thread(item)),
      button(deeds.may("edit", item), "edit", "Edit", () => deeds.edit(item)),
      button(true, "more", "More", (anchor) => this.menu(item, anchor)),
    ].filter(Boolean);
  }

  menu(item, anchor) {
    const { deeds } = this;
    const entry = (may, name, label, act, danger = false) => may && { icon: name, label, act, danger };
    openMenu(anchor, "More", [
      entry(item.text !== "", "copy", "Copy text", () => deeds.copy(item)),
      entry(deeds.may("link", item), "link", "Copy link", () => deeds.link(item)),
      entry(deeds.may("pin", item), "pin", item.pinned ? "Unpin" : "Pin", () => deeds.pin(item)),
      entry(deeds.may("report", item), "flag", "Report…", () => deeds.report(item)),
      entry(deeds.may("delete", item), "trash", "Delete…", () => deeds.remove(item), true),
    ]);
  }

  /** Keys of a message that has the focus. */
  #key(event, item) {
    if (!item || item.system || item.state !== "sent" || item.deletedAt) return;
    const { deeds } = this;
    const act = {
      r: ["reply", () => deeds.reply(item)],
      t: ["thread", () => deeds.thread(item)],
      e: ["edit", () => deeds.edit(item)],
      p: ["pin", () => deeds.pin(item)],
      "+": ["react", () => pickEmoji(this.element.isConnected ? this.element : event.target, (emoji) => deeds.react(item, emoji))],
      Delete: ["delete", () => deeds.remove(item)],
      Enter: ["see", () => this.element.querySelector("button")?.focus()],
    }[event.key];
    if (!act || (act[0] !== "see" && !deeds.may(act[0], item))) return;
    event.preventDefault();
    act[1]();
  }
}
