// Bun's own publish (uWebSockets) with nothing around it: /room/rN joins, every text goes to the room; /echo echoes.
// /json/rN does with each message what a chat must do at least: parse it, give it an id and a time, answer the
// sender with an ack, and publish the whole as JSON. That is the row "bun-json".
// /stored/rN keeps it besides, in SQLite (WAL, synchronous FULL): one commit per message, before anybody hears of it.
// That is the row "bun-sqlite": what a program without a group commit has.
import { Database } from "bun:sqlite";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const counters = new Map();
let insert = null;

function store(room, id, user, clientId, timestamp, text) {
  if (insert === null) {
    const db = new Database(join(mkdtempSync(join(process.env.BENCH_SCRATCH ?? tmpdir(), "bun-")), "chat.db"));
    db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
    db.exec("CREATE TABLE messages (room TEXT, id INTEGER, user TEXT, client_id TEXT, at TEXT, body TEXT, PRIMARY KEY (room, id)) WITHOUT ROWID");
    db.exec("CREATE UNIQUE INDEX once ON messages (room, user, client_id)");
    insert = db.prepare("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)");
  }
  insert.run(room, id, user, clientId, timestamp, text);
}

function onChat(server, ws, text) {
  const message = JSON.parse(text);
  const room = message.room_id;
  const id = (counters.get(room) ?? 0) + 1;
  counters.set(room, id);
  const timestamp = new Date().toISOString();
  const data = { id, user_id: ws.data.user, message: message.message, timestamp };
  if (ws.data.kind === "stored") {
    store(room, id, ws.data.user, message.client_id, timestamp, message.message);
    data.client_id = message.client_id;
  }
  server.publish(room, JSON.stringify({ type: "message", room_id: room, data }));
  ws.send(JSON.stringify({ type: "ack", id, timestamp }));
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, server) {
    const [, kind, room, user] = new URL(request.url).pathname.split("/");
    if (server.upgrade(request, { data: { kind, room, user } })) return undefined;
    return new Response("a WebSocket is expected", { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    open(ws) {
      if (ws.data.kind === "echo") return;
      ws.subscribe(ws.data.room);
      ws.send("joined");
    },
    message(ws, text) {
      if (ws.data.kind === "room") server.publish(ws.data.room, text);
      else if (ws.data.kind === "json" || ws.data.kind === "stored") onChat(server, ws, text);
      else ws.send(text);
    },
  },
});
