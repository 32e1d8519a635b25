// A small palette of emoji of our own: what people use, with names to find them by.

import { h } from "./dom.js";
import { kept } from "./login.js";
import { openPopup } from "./popup.js";

export const QUICK = ["👍", "❤️", "😂", "🎉"];
const RECENT = 8;
const COLUMNS = 8;

const EMOJI = Object.entries({
  "👍": "thumbs up yes", "👎": "thumbs down no", "❤️": "heart love", "😂": "laughing joy", "🎉": "party tada", "🙏": "thanks please",
  "👀": "eyes looking", "✅": "check done", "😀": "grinning", "😄": "smile", "😅": "sweat smile", "🤣": "rolling laughing",
  "🙂": "slight smile", "😉": "wink", "😊": "blush", "😍": "heart eyes", "🤩": "star struck", "😘": "kiss", "😋": "yum", "😎": "cool",
  "🤔": "thinking", "🤨": "raised eyebrow", "😐": "neutral", "🙄": "rolling eyes", "😬": "grimace", "😴": "sleeping", "🤒": "ill",
  "😢": "cry sad", "😭": "sob", "😱": "scream", "😡": "angry", "🤯": "mind blown", "🥳": "partying", "🤗": "hug", "🫡": "salute",
  "🤷": "shrug", "🤦": "facepalm", "👋": "wave hello", "👏": "clap", "🙌": "hooray hands", "💪": "strong", "🤝": "handshake",
  "👌": "ok", "✌️": "victory peace", "🤞": "fingers crossed", "☝️": "point up", "👇": "point down", "✍️": "writing",
  "🔥": "fire hot", "⭐": "star", "✨": "sparkles", "💡": "idea bulb", "🚀": "rocket ship it", "💯": "hundred", "🐛": "bug",
  "⚠️": "warning", "❌": "cross no", "❓": "question", "❗": "exclamation", "➕": "plus", "🔒": "lock", "📌": "pin", "📎": "paperclip",
  "📅": "calendar", "⏰": "alarm clock", "☕": "coffee", "🍕": "pizza", "🍰": "cake", "🍺": "beer", "🌱": "seedling", "🌈": "rainbow",
  "☀️": "sun", "🌧️": "rain", "❄️": "snow", "🐱": "cat", "🐶": "dog", "🦄": "unicorn", "🐢": "turtle slow", "🏆": "trophy", "🎯": "target",
  "🎂": "birthday", "🎁": "present gift", "💔": "broken heart", "💜": "purple heart", "💙": "blue heart", "💚": "green heart",
  "👑": "crown", "🏠": "home", "🚧": "construction",
});

export const nameOf = (emoji) => EMOJI.find(([each]) => each === emoji)?.[1] ?? emoji;

/** Let the user pick one; `onpick(emoji)` is called with it. */
export function pickEmoji(anchor, onpick) {
  const field = h("input", { type: "search", class: "emoji-search", placeholder: "Find an emoji", "aria-label": "Find an emoji", autocomplete: "off" });
  const grid = h("div", { class: "emoji-grid", role: "group", "aria-label": "Emoji" });
  const none = h("p", { class: "empty-small", hidden: true }, "None of them is called so.");
  const popup = openPopup(anchor, h("div", { class: "emoji-palette" }, field, grid, none), { label: "Emoji", kind: "emoji-popup" });
  const pick = (emoji) => {
    const recent = [emoji, ...(kept.get("emoji") ?? []).filter((each) => each !== emoji)];
    kept.set("emoji", recent.slice(0, RECENT));
    popup.close();
    onpick(emoji);
  };
  const paint = () => {
    const query = field.value.trim().toLowerCase();
    const recent = query ? [] : (kept.get("emoji") ?? []).map((emoji) => [emoji, nameOf(emoji)]);
    const rest = EMOJI.filter(([emoji, name]) => (query ? name.includes(query) || emoji === query : !recent.some(([each]) => each === emoji)));
    const shown = [...recent, ...rest];
    grid.replaceChildren(...shown.map(([emoji, name], at) =>
      h("button", { type: "button", class: "emoji", tabindex: at ? "-1" : "0", "aria-label": name, title: name, onclick: () => pick(emoji) }, emoji)));
    none.hidden = shown.length > 0;
  };
  field.addEventListener("input", paint);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      grid.firstElementChild?.click();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      grid.firstElementChild?.focus();
    }
  });
  grid.addEventListener("keydown", (event) => {
    const all = [...grid.children];
    const at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: COLUMNS, ArrowUp: -COLUMNS }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    if (at + step < 0) field.focus();
    else (all[at + step] ?? all.at(-1)).focus();
  });
  paint();
}
