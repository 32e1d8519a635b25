// Something small that opens beside a button: a menu, a palette, a list. One at a time; Escape or a press beside it ends it.

import { h, icon } from "./dom.js";

const GAP = 6; // px between it and its button, and the window's edge

let current = null;

export function closePopup() {
  current?.close();
}

export const popupIsOpen = () => current !== null;

/** Open `content` beside `anchor`. Returns {close()}; the focus goes back to where it was. */
export function openPopup(anchor, content, { label, role = "dialog", kind = "", onclose = () => {} } = {}) {
  current?.close();
  const layer = h("div", { class: `popup ${kind}`, role, "aria-label": label, tabindex: "-1" }, content);
  (anchor.closest("dialog") ?? document.body).append(layer);
  anchor.setAttribute("aria-expanded", "true");
  const stop = new AbortController();
  const me = {
    close(focus = true) {
      if (current !== me) return;
      current = null;
      stop.abort();
      const had = layer.contains(document.activeElement) || document.activeElement === document.body;
      layer.remove();
      anchor.setAttribute("aria-expanded", "false");
      onclose();
      if (focus && had && anchor.isConnected) anchor.focus({ preventScroll: true });
    },
  };
  current = me;
  place(layer, anchor.getBoundingClientRect());
  const { signal } = stop;
  layer.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    me.close();
  });
  layer.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget && !layer.contains(relatedTarget)) me.close(false);
  });
  document.addEventListener("pointerdown", ({ target }) => {
    if (!layer.contains(target) && !anchor.contains(target)) me.close(false);
  }, { signal, capture: true });
  addEventListener("resize", () => me.close(false), { signal });
  (layer.querySelector("[autofocus], input, button") ?? layer).focus({ preventScroll: true });
  return me;
}

/** Below the anchor if there is space, else above it, and always inside of the window. */
function place(layer, box) {
  const { offsetWidth: width, offsetHeight: height } = layer;
  const below = box.bottom + GAP + height <= innerHeight - GAP;
  const top = below ? box.bottom + GAP : Math.max(GAP, box.top - GAP - height);
  const left = Math.min(Math.max(GAP, box.right - width), innerWidth - width - GAP);
  layer.style.top = `${Math.max(GAP, Math.min(top, innerHeight - height - GAP))}px`;
  layer.style.left = `${Math.max(GAP, left)}px`;
}

/** A menu of things to do: [{label, icon?, danger?, checked?, act}]; what is false is left out. */
export function openMenu(anchor, label, entries) {
  const items = entries.filter(Boolean).map((entry) =>
    h("button", {
      type: "button", class: `menu-item${entry.danger ? " danger" : ""}`, tabindex: "-1",
      role: entry.checked === undefined ? "menuitem" : "menuitemradio", "aria-checked": entry.checked?.toString(),
      onclick: () => {
        menu.close();
        entry.act();
      },
    }, icon(entry.checked ? "check" : (entry.icon ?? "none")), h("span", {}, entry.label)));
  const list = h("div", { class: "menu" }, ...items);
  list.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Tab") menu.close();
    if (to === undefined) return;
    event.preventDefault();
    items.at(to % items.length).focus();
  });
  const menu = openPopup(anchor, list, { label, role: "menu", kind: "menu-popup" });
  return menu;
}
