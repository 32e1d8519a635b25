// Attachments: uploads with their progress, and pictures fetched with the user's token and shown from memory.

import { sentence } from "./text.js";

/** What is shown as a picture. SVG is not among them: it is a document, with scripts in it if somebody likes. */
export const PICTURES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"]);
const UNUSED = 24; // pictures that are kept although none of them is on the page

const authorized = (token) => ({ authorization: `Bearer ${token}` });
const addressOf = (path) => new URL(path.replace(/^\/+/, ""), document.baseURI);

/** A file on its way to the server. `info` is what the server calls it, once it has it. */
export class Upload {
  /** `onchange()` is called whenever it looks different; `token()` gives the user's token. */
  constructor(file, { roomId, token, onchange = () => {} }) {
    this.file = file;
    this.name = file.name || "file";
    this.size = file.size;
    this.roomId = roomId;
    this.token = token;
    this.onchange = onchange;
    this.info = null;
    this.preview = PICTURES.has(file.type) ? URL.createObjectURL(file) : "";
    this.start();
  }

  #request = null;

  /** Begin, or begin again. `done` resolves with the server's FileInfo. */
  start() {
    Object.assign(this, { state: "uploading", progress: 0, error: "" });
    this.done = this.#send();
    this.done.catch(() => {}); // `state` says it to who looks; who waits for `done` hears it too
    this.onchange();
  }

  cancel() {
    if (this.state === "cancelled") return;
    this.state = "cancelled";
    this.#request?.abort();
    this.release();
    if (this.info) fetch(addressOf(this.info.url), { method: "DELETE", headers: authorized(this.token()) }).catch(() => {}); // else it goes in a day
  }

  release() {
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = "";
  }

  #send() {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not tell how far an upload is
      this.#request = request;
      const path = `api/rooms/${encodeURIComponent(this.roomId)}/files?name=${encodeURIComponent(this.name.slice(0, 255))}`;
      const end = (message, code = "upload_failed") => {
        if (this.state !== "cancelled") Object.assign(this, { state: "failed", error: sentence(message) });
        this.onchange();
        reject(Object.assign(new Error(message), { code }));
      };
      request.open("POST", addressOf(path));
      request.setRequestHeader("authorization", `Bearer ${this.token()}`);
      request.setRequestHeader("content-type", this.file.type || "application/octet-stream");
      request.upload.addEventListener("progress", ({ loaded, total }) => {
        this.progress = total ? loaded / total : 0;
        this.onchange();
      });
      request.addEventListener("load", () => {
        const answer = parsed(request.responseText);
        if (request.status < 200 || request.status > 299) return end(whyNot(request.status, answer), answer.error?.code);
        Object.assign(this, { state: "done", progress: 1, info: answer.file ?? answer });
        this.onchange();
        resolve(this.info);
      });
      request.addEventListener("error", () => end("the file could not be sent: the connection was lost"));
      request.addEventListener("abort", () => end("the upload was cancelled"));
      request.send(this.file);
    });
  }
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function whyNot(status, answer) {
  return answer.error?.message ?? (status === 413 ? "the file is too large" : `the server refused the file (${status})`);
}

/** Fetch an attachment as a Blob of the type that the server says it has. */
async function fetchFile(info, token) {
  const response = await fetch(addressOf(info.url), { headers: authorized(token) });
  if (!response.ok) {
    const answer = parsed(await response.text());
    throw new Error(whyNot(response.status, answer));
  }
  const type = PICTURES.has(info.media_type) ? info.media_type : "application/octet-stream";
  return new Blob([await response.arrayBuffer()], { type });
}

/** Have the browser save an attachment under its name. */
export async function download(info, token) {
  const url = URL.createObjectURL(await fetchFile(info, token));
  const link = document.createElement("a");
  link.href = url;
  link.download = info.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still ask where to put it
}

/** Pictures by file: fetched once while anything shows them, and let go of afterwards. */
export class Pictures {
  constructor(token) {
    this.token = token;
  }

  #entries = new Map(); // file id → {uses, url: Promise<string>}

  /** The picture's address for an `img`; call `release` once it is not shown any more. */
  use(info) {
    let entry = this.#entries.get(info.id);
    if (!entry) {
      entry = { uses: 0, url: fetchFile(info, this.token()).then((blob) => URL.createObjectURL(blob)) };
      entry.url.catch(() => this.#entries.get(info.id) === entry && this.#entries.delete(info.id));
    }
    entry.uses++;
    this.#entries.delete(info.id);
    this.#entries.set(info.id, entry); // the one used last stands last
    return entry.url;
  }

  release(info) {
    const entry = this.#entries.get(info.id);
    if (entry) entry.uses--;
    const unused = [...this.#entries].filter(([, { uses }]) => uses <= 0);
    for (const [id, { url }] of unused.slice(0, Math.max(0, unused.length - UNUSED))) this.#drop(id, url);
  }

  clear() {
    for (const [id, { url }] of [...this.#entries]) this.#drop(id, url);
  }

  #drop(id, url) {
    this.#entries.delete(id);
    url.then((address) => URL.revokeObjectURL(address), () => {});
  }
}
