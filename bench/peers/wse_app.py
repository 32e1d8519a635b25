"""wse-server (a Rust engine): `broadcast_local` to a topic, its JWT check on, presence and recovery off.

Usage: python wse_app.py PORT, with WSE_SECRET in the environment. Texts: "J room" joins, "E…" is echoed, and anything
else is "room text" and goes to the room.
"""

import os
import sys
import time

from wse_server import RustWSEServer  # type: ignore[import-not-found]  # it lives in an environment of its own

server = RustWSEServer(
    "127.0.0.1",
    int(sys.argv[1]),
    max_connections=1_000_000,
    jwt_secret=os.environ["WSE_SECRET"].encode(),
    rate_limit_capacity=1e12,
    rate_limit_refill=1e12,
)
server.enable_drain_mode()
server.start()
deadline = time.monotonic() + 10
while not server.is_running() and time.monotonic() < deadline:
    time.sleep(0.01)
while server.is_running():
    for event, connection, data in server.drain_inbound(256, 50):
        if event != "raw":
            continue
        if data[0] == "E":
            server.send(connection, data)
        elif data.startswith("J "):
            server.subscribe_connection(connection, [data[2:]])
            server.send(connection, "joined")
        else:
            room, _, text = data.partition(" ")
            server.broadcast_local(room, text)
