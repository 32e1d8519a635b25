// Making a room, and writing to somebody.

import { formDialog, wrong } from "./dialogs.js";
import { idOf } from "./text.js";

const ID = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/;
const KINDS = [["", "The usual"], ["group", "Group: receipts, reactions, typing"], ["large", "Large: counts instead of lists"], ["broadcast", "Broadcast: only moderators write"], ["live", "Live: nothing is kept"]];

/** `make(fields)` makes it and opens it; what it resolves with is called once the dialog is closed. */
export function newRoomDialog({ make, suggestions }) {
  let own = false; // the id was typed, so it no longer follows the name
  formDialog({
    id: "new-room", title: "New room", action: "Make room",
    fields: [
      { name: "name", label: "Name", maxlength: 100, onchange: ({ name }, set) => own || set("id", idOf(name)) },
      { name: "id", label: "Id", optional: "for links and programs", mono: true, maxlength: 64, hint: "Letters A–Z and digits, also . _ and -", onchange: ({ id }) => {
        own = id !== "";
      } },
      { name: "topic", label: "Topic", optional: "what it is about", maxlength: 1000 },
      { name: "visibility", label: "Who may come", type: "select", options: [["public", "Everybody"], ["private", "Who is invited"]] },
      { name: "kind", label: "Kind", type: "select", options: KINDS },
      { name: "members", label: "Invite", optional: "people", type: "people", suggestions },
    ],
    onsubmit: async ({ name, id, topic, visibility, kind, members }) => {
      if (!name) throw wrong("name", "A room needs a name.");
      if (id && !ID.test(id)) throw wrong("id", "An id has 1 to 64 of A–Z a–z 0–9 . _ - and starts with a letter or a digit.");
      if (kind === "live" && visibility !== "public") throw wrong("kind", "A live room is for everybody.");
      return make({ name, topic, visibility, ...(kind && { kind }), ...(id && { room_id: id }) }, members).catch((error) => {
        throw wrong("id", error.message);
      });
    },
  });
}

/** `open(names)` opens the direct room with these people. */
export function directDialog({ open, suggestions }) {
  formDialog({
    id: "direct", title: "Message somebody", action: "Open",
    fields: [{ name: "people", label: "To", type: "people", suggestions, hint: "One person, or several: there is one such room for each set of people." }],
    onsubmit: async ({ people }) => {
      if (people.length === 0) throw new Error("Name somebody.");
      return open(people);
    },
  });
}
