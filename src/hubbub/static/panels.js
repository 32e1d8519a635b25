// What opens and closes: the room drawer and the people list (beside the room where there is space), the dialogs.

import { $, show } from "./dom.js";

const narrow = matchMedia("(max-width: 719px)");
const medium = matchMedia("(max-width: 1079px)");

export class Panels {
  constructor() {
    this.drawer = false;
    this.people = false;
    $("menu-button").addEventListener("click", () => this.setDrawer(!this.drawer));
    $("people-button").addEventListener("click", () => this.setPeople(!this.people));
    $("people-close").addEventListener("click", () => this.setPeople(false));
    $("scrim").addEventListener("click", () => this.closeAll());
    for (const query of [narrow, medium]) query.addEventListener("change", () => this.closeAll(false));
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
    this.#apply();
  }

  /** Whether a message field may take the focus without a phone's keyboard jumping up unasked. */
  get roomy() {
    return !narrow.matches;
  }

  setDrawer(open) {
    if (open === this.drawer) return;
    this.drawer = open;
    if (open) this.people = false;
    this.#apply();
    if (open) ($("joined-rooms").querySelector("button") ?? $("new-room")).focus();
    else $("menu-button").focus();
  }

  setPeople(open) {
    if (open === this.people) return;
    this.people = open;
    if (open) this.drawer = false;
    this.#apply();
    if (medium.matches) (open ? $("people-close") : $("people-button")).focus();
  }

  /** Close what lies over the room; false if nothing did. */
  closeAll(focus = true) {
    const open = this.drawer || (this.people && medium.matches);
    const back = this.drawer ? $("menu-button") : $("people-button");
    this.drawer = this.people = false;
    this.#apply();
    if (open && focus) back.focus();
    return open;
  }

  /** What is out of sight must be out of the tab order too, and what lies under a drawer as well. */
  #apply() {
    const drawer = narrow.matches && this.drawer;
    const people = medium.matches && this.people;
    $("sidebar").classList.toggle("open", drawer);
    $("people").classList.toggle("open", people);
    $("sidebar").inert = narrow.matches ? !drawer : people;
    $("people").inert = medium.matches && !people;
    $("room").inert = drawer || people;
    show($("scrim"), drawer || people);
    show($("people-close"), medium.matches);
    show($("people-button"), medium.matches);
    $("menu-button").setAttribute("aria-expanded", String(drawer));
    $("people-button").setAttribute("aria-expanded", String(people));
  }
}

// -- a new room

/** An id made of a name: "Tea & Cake" → "tea-cake". */
export function idOf(name) {
  const plain = name.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  return plain.replace(/[^a-z0-9_.]+/g, "-").replace(/^[-.]+|-+$/g, "").slice(0, 64);
}

/** `make(id, name)` makes the room, or throws what to show; `made()` is called once the dialog is closed. */
export function roomDialog(make, made) {
  const dialog = $("room-dialog");
  const [name, id, error] = [$("new-room-name"), $("new-room-id"), $("room-error")];
  let own = false; // the id was typed, so it no longer follows the name
  name.addEventListener("input", () => {
    if (!own) id.value = idOf(name.value);
  });
  id.addEventListener("input", () => {
    own = id.value !== "";
  });
  $("room-cancel").addEventListener("click", () => dialog.close());
  $("room-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    error.textContent = "";
    if (!name.value.trim()) {
      error.textContent = "A room needs a name.";
      name.focus();
      return;
    }
    const wanted = id.value.trim() || `room-${Math.random().toString(36).slice(2, 8)}`;
    if (!/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/.test(wanted)) {
      error.textContent = "An id has 1 to 64 of A–Z a–z 0–9 . _ - and starts with a letter or a digit.";
      id.focus();
      return;
    }
    try {
      await make(wanted, name.value.trim());
      dialog.close();
      made();
    } catch (fault) {
      error.textContent = fault.message;
      id.focus();
    }
  });
  return () => {
    own = false;
    name.value = id.value = error.textContent = "";
    dialog.showModal();
    name.focus();
  };
}

// -- about

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The "try it" lines, made of this page's own address. `who()` → {user, room}. */
export function aboutDialog(who) {
  const dialog = $("about-dialog");
  $("about-close").addEventListener("click", () => dialog.close());
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
