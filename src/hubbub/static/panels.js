// What opens and closes beside the room: the list of rooms (a drawer on a phone), and on the other side the people, a
// thread, the pins, a search. Where there is space they stand beside the room, else they lie over it.

import { $, show } from "./dom.js";

const narrow = matchMedia("(max-width: 719px)");
const medium = matchMedia("(max-width: 1079px)");

const SIDES = ["people", "thread-panel", "pins-panel", "search-panel", "mentions-panel", "threads-panel"];

export class Panels {
  /** `onclose(name)` is told of a side panel that is not shown any more. */
  constructor(onclose = () => {}) {
    this.onclose = onclose;
    this.drawer = false;
    this.people = !medium.matches; // whether the people are shown where nothing else is
    this.side = null; // what else is shown there
    $("menu-button").addEventListener("click", () => this.setDrawer(!this.drawer));
    $("people-button").addEventListener("click", () => this.setPeople(this.shown !== "people"));
    $("scrim").addEventListener("click", () => this.closeAll());
    for (const button of document.querySelectorAll("[data-close-side]")) button.addEventListener("click", () => this.close());
    for (const query of [narrow, medium]) {
      query.addEventListener("change", () => {
        this.people = !medium.matches;
        this.drawer = false;
        this.#apply();
      });
    }
    this.#apply();
  }

  #openers = new Map(); // side → what had the focus when it opened

  /** Whether a message field may take the focus without a phone's keyboard jumping up unasked. */
  get roomy() {
    return !narrow.matches;
  }

  /** The side panel that is in sight, or null. */
  get shown() {
    return this.side ?? (this.people ? "people" : null);
  }

  setDrawer(open) {
    if (open === this.drawer) return;
    this.drawer = open;
    if (open && medium.matches) this.#leaveSide();
    this.#apply();
    if (open) ($("joined-rooms").querySelector("button") ?? $("new-room")).focus();
    else $("menu-button").focus();
  }

  setPeople(open) {
    this.#leaveSide();
    this.people = open;
    if (open) this.drawer = false;
    this.#apply();
    if (medium.matches) (open ? $("people-close") : $("people-button")).focus();
  }

  /** Show a side panel; the focus comes back to where it was once that is closed. */
  open(name) {
    if (!this.#openers.has(name)) this.#openers.set(name, document.activeElement);
    if (this.side !== name) this.#leaveSide(name);
    this.side = name;
    this.drawer = false;
    this.#apply();
  }

  /** Close the side panel, or the people where they lie over the room. False if there was none. */
  close(focus = true) {
    const name = this.side ?? (this.people && medium.matches ? "people" : null);
    if (!name) return false;
    const opener = this.#openers.get(name);
    if (name === "people") this.people = false;
    this.#leaveSide();
    this.#apply();
    if (focus) (name === "people" || !opener?.isConnected || opener === document.body ? $("people-button") : opener).focus();
    return true;
  }

  #leaveSide(next = null) {
    const name = this.side;
    this.side = null;
    if (!name || name === next) return;
    this.#openers.delete(name);
    this.onclose(name);
  }

  /** Close what lies over the room; false if nothing did. */
  closeAll(focus = true) {
    if (this.drawer) {
      this.drawer = false;
      this.#apply();
      if (focus) $("menu-button").focus();
      return true;
    }
    return medium.matches ? this.close(focus) : false;
  }

  /** What is out of sight must be out of the tab order too, and what lies under a drawer as well. */
  #apply() {
    const drawer = narrow.matches && this.drawer;
    const { shown } = this;
    const over = medium.matches && shown !== null;
    $("app").dataset.side = shown === null ? "" : shown === "people" ? "people" : "wide";
    for (const name of SIDES) show($(name), name === shown);
    $("sidebar").classList.toggle("open", drawer);
    $("sidebar").inert = narrow.matches ? !drawer : over;
    $("side").classList.toggle("open", shown !== null);
    $("side").inert = shown === null;
    $("room").inert = drawer || over;
    show($("scrim"), drawer || over);
    $("menu-button").setAttribute("aria-expanded", String(drawer));
    $("people-button").setAttribute("aria-expanded", String(shown === "people"));
    for (const button of document.querySelectorAll("button[data-side]")) button.setAttribute("aria-expanded", String(button.dataset.side === shown));
  }
}
