// Signing in: by name in development mode, else with a token. What a tab knows of its user is kept in sessionStorage,
// so that a reload stays signed in, and two tabs can be two people.

import { $, setText, show } from "./dom.js";

const PREFIX = `hubbub:${new URL(".", document.baseURI).pathname}:`;

/** sessionStorage that does without where the browser forbids it. */
export const kept = {
  get(name) {
    try {
      return JSON.parse(sessionStorage.getItem(PREFIX + name));
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
    } catch {
      // then a reload signs out
    }
  },
  clear() {
    try {
      for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
    } catch {
      // nothing was kept
    }
  },
};

/** A token for a name, or null where the server is not in development mode. */
export async function devLogin(name) {
  const response = await fetch(new URL("api/dev/login", document.baseURI), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ name }),
  });
  if (response.status === 404) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error?.message ?? "This name cannot be used.");
  return answer.token;
}

export class Login {
  /** `onlogin(token, name)` is called with what the user gave. */
  constructor(onlogin) {
    this.onlogin = onlogin;
    this.byToken = false;
    $("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
  }

  /** Show the form; `reason` says why, if the user did not ask for it. */
  async open(reason = "") {
    show($("login"), true);
    this.#fail(reason);
    this.#ask(this.byToken);
    // A name's token costs nothing and goes nowhere: this is how to learn whether names will do.
    try {
      this.#ask((await devLogin("nobody")) === null, false);
    } catch {
      // it cannot be reached now; whoever presses the button is told
    }
  }

  close() {
    show($("login"), false);
    $("login-name").value = $("login-token").value = "";
  }

  #ask(byToken, focus = true) {
    const changed = byToken !== this.byToken;
    this.byToken = byToken;
    show($("name-field"), !byToken);
    show($("token-field"), byToken);
    $("login-help").replaceChildren(...(byToken
      ? ["This server is not in development mode. Print a token where it runs: ", code("hubbub token USER"), "."]
      : ["Development mode: a name is enough. Open a second tab with another name, and you have somebody to talk to."]));
    if (focus || changed) (byToken ? $("login-token") : $("login-name")).focus();
  }

  #fail(text) {
    setText($("login-error"), text);
    for (const id of ["login-name", "login-token"]) $(id).setAttribute("aria-invalid", String(text !== ""));
  }

  async #submit() {
    const field = this.byToken ? $("login-token") : $("login-name");
    const value = field.value.trim();
    if (!value) {
      this.#fail(this.byToken ? "Paste a token." : "What shall we call you?");
      field.focus();
      return;
    }
    this.#fail("");
    if (this.byToken) {
      this.onlogin(value, "");
      return;
    }
    $("login-submit").disabled = true;
    try {
      const token = await devLogin(value);
      if (token === null) this.#ask(true);
      else this.onlogin(token, value);
    } catch (error) {
      this.#fail(error instanceof TypeError ? "The server cannot be reached." : error.message);
      field.focus();
    } finally {
      $("login-submit").disabled = false;
    }
  }
}

function code(text) {
  const element = document.createElement("code");
  element.textContent = text;
  return element;
}
