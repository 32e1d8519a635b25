// While somebody writes `@…`: a list of whom they may mean, from which to take one.

import { avatar, h, show } from "./dom.js";
import { EVERYONE, mentionAt, mentionOf } from "./text.js";

const SHOWN = 8;

export class Mentioning {
  /** `candidates(query)` gives [{name, note}] or a promise of them; `host`: the element that the list opens above. */
  constructor(field, host, candidates) {
    this.field = field;
    this.candidates = candidates;
    this.list = h("ul", { class: "suggestions", role: "listbox", id: `${field.id}-suggestions`, "aria-label": "Whom to mention", hidden: true });
    host.append(this.list);
    field.setAttribute("aria-autocomplete", "list");
    field.setAttribute("aria-controls", this.list.id);
    field.addEventListener("input", () => this.#look());
    field.addEventListener("click", () => this.#look());
    field.addEventListener("blur", () => this.close());
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
  }

  #found = [];
  #at = 0;
  #asked = 0;

  /** Whether the name that would be taken stands there already, to the last letter. */
  get #isWritten() {
    const before = this.field.value.slice(0, this.field.selectionStart);
    return before.endsWith(mentionOf(this.#found[this.#at].name));
  }

  get open() {
    return !this.list.hidden;
  }

  close() {
    this.#asked++;
    show(this.list, false);
    this.field.removeAttribute("aria-activedescendant");
  }

  async #look() {
    const { field } = this;
    const mention = field.selectionStart === field.selectionEnd ? mentionAt(field.value.slice(0, field.selectionStart)) : null;
    if (!mention) return this.close();
    const mine = ++this.#asked;
    const found = await this.candidates(mention.query);
    if (mine !== this.#asked) return;
    this.#found = ranked(found, mention.query).slice(0, SHOWN);
    this.#at = 0;
    if (this.#found.length === 0) return this.close();
    this.#paint();
    show(this.list, true);
  }

  #paint() {
    this.list.replaceChildren(...this.#found.map(({ name, note }, at) => h("li", {
      role: "option", id: `${this.list.id}-${at}`, class: "suggestion", "aria-selected": String(at === this.#at), onclick: () => this.#take(at),
    }, name === EVERYONE ? h("span", { class: "avatar everyone", "aria-hidden": "true" }, "@") : avatar(name),
    h("bdi", { class: "suggestion-name" }, name), note && h("span", { class: "suggestion-note" }, note))));
    this.field.setAttribute("aria-activedescendant", `${this.list.id}-${this.#at}`);
    this.list.children[this.#at]?.scrollIntoView({ block: "nearest" });
  }

  /** Handle a key of the field; true if it was for the list. */
  key(event) {
    if (!this.open) return false;
    if (event.key === "Enter" && this.#isWritten) { // there is nothing to complete: the message may go
      this.close();
      return false;
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      this.#at = (this.#at + step + this.#found.length) % this.#found.length;
      this.#paint();
    } else if ((event.key === "Enter" && !event.shiftKey) || event.key === "Tab") {
      this.#take(this.#at);
    } else if (event.key === "Escape") {
      this.close();
    } else {
      return false;
    }
    event.preventDefault();
    event.stopPropagation();
    return true;
  }

  #take(at) {
    const { field } = this;
    const before = field.value.slice(0, field.selectionStart);
    const mention = mentionAt(before);
    if (mention) {
      field.setRangeText(`${mentionOf(this.#found[at].name)} `, mention.from, before.length, "end");
      field.dispatchEvent(new Event("input"));
    }
    this.close();
    field.focus();
  }
}

/** Those that begin so, then those that have it in them; names that cannot be mentioned are left out. */
function ranked(candidates, query) {
  const wanted = query.toLocaleLowerCase();
  const rank = (name) => {
    const lower = name.toLocaleLowerCase().replace(/^@/, "");
    if (lower.startsWith(wanted)) return 0;
    return lower.split(/[\s._-]+/u).some((word) => word.startsWith(wanted)) ? 1 : lower.includes(wanted) ? 2 : 3;
  };
  const fits = candidates.filter(({ name }) => mentionOf(name) !== null && rank(name) < 3);
  return fits.sort((a, b) => rank(a.name) - rank(b.name));
}
