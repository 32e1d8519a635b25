"""nginx and HAProxy with the configurations of deploy/, before some nodes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from websockets.asyncio.client import connect

from tests.engine_support import HOST, Node, free_port, until
from tests.support import TLS, Client

DEPLOY = Path(__file__).parent.parent / "deploy"
PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin"
NGINX = shutil.which("nginx", path=PLACES)
HAPROXY = shutil.which("haproxy", path=PLACES)


class Proxy:
    """One of them. What it writes goes into a directory of its own.

    :param ports: of the nodes; none: its own addresses are left, where nobody is.
    """

    name = ""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        self.port = free_port()
        self.home = directory / "proxy"
        self.home.mkdir()
        self.configuration = self.home / self.name
        self.configuration.write_text(self.adapted((DEPLOY / self.name).read_text(), ports))
        self._process: subprocess.Popen[bytes] | None = None

    def adapted(self, text: str, ports: list[int]) -> str:
        """The same configuration with other addresses, and with files of its own."""
        raise NotImplementedError

    def words(self) -> list[str]:
        """The command."""
        raise NotImplementedError

    def checking(self) -> list[str]:
        """The command that only looks at the configuration."""
        raise NotImplementedError

    @property
    def written(self) -> dict[str, str]:
        """What it wrote, by the file's name: its logs, and the bodies that it kept."""
        files = [path for path in self.home.rglob("*") if path.is_file() and path != self.configuration]
        return {path.name: path.read_text(errors="replace") for path in files}

    def check(self) -> str:
        """What it has against its configuration; nothing: it would start."""
        checked = subprocess.run(self.checking(), capture_output=True, text=True, check=False)
        return checked.stdout + checked.stderr if checked.returncode else ""

    def start(self) -> None:
        assert not (wrong := self.check()), wrong
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(self.words(), stdout=log, stderr=log)
        until(self._listens, f"the proxy with {self.name} did not start in time")

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def _listens(self) -> bool:
        try:
            return httpx2.get(f"http://{HOST}:{self.port}/metrics", trust_env=False, verify=TLS).status_code == 404
        except httpx2.HTTPError:
            return False

    @asynccontextmanager
    async def client(self, node: Node, user: str, **options: Any) -> AsyncIterator[Client]:
        """A client through it, signed in by a node's token."""
        url = f"ws://{HOST}:{self.port}/ws"
        async with connect(url, proxy=None, ping_interval=None, max_queue=None, close_timeout=0.5, **options) as each:
            client = Client(each)
            await client.send("auth", token=node.token(user))
            answer = await client.receive()
            assert answer["type"] == "auth_success", answer
            yield client


class Nginx(Proxy):
    name = "nginx.conf"

    def adapted(self, text: str, ports: list[int]) -> str:
        if ports:
            text = _other_servers(text, r"server \S+:8000 (?P<rest>.+;)", "server {host}:{port} {rest}", ports)
        text = _replaced(
            text,
            ("listen 80;", f"listen {HOST}:{self.port};"),
            ("worker_rlimit_nofile 200000;", ""),
            ("worker_connections 65536", "worker_connections 512"),
            ("rate=100r/s", "rate=1r/s"),
            ("burst=1000", "burst=100"),
        )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        for kind in kinds:
            (self.home / kind).mkdir()
        paths = "".join(f"{kind}_temp_path {self.home / kind};\n" for kind in kinds)
        return text.replace("http {", f"http {{\n{paths}", 1).replace("/var/log/nginx/", f"{self.home}/")

    def words(self) -> list[str]:
        assert NGINX is not None
        orders = f"daemon off; pid {self.home / 'pid'}; error_log {self.home / 'log'} info;"
        if os.geteuid() == 0:
            orders += " user root;"  # its files are below a directory that only we may enter
        return [NGINX, "-p", str(self.home), "-c", str(self.configuration), "-g", orders]

    def checking(self) -> list[str]:
        return [*self.words(), "-t"]


class HAProxy(Proxy):
    name = "haproxy.cfg"

    def adapted(self, text: str, ports: list[int]) -> str:
        text = _other_servers(text, r"server node-(?P<rest>\w) \S+:8000", "server node-{port} {host}:{port}", ports)
        return _replaced(
            text,
            ("bind :80\n", f"bind {HOST}:{self.port}\n"),
            ("maxconn 100000", "maxconn 500"),
            ("gt 2000 }", "gt 100 }"),
        )

    def words(self) -> list[str]:
        assert HAPROXY is not None
        return [HAPROXY, "-db", "-f", str(self.configuration)]

    def checking(self) -> list[str]:
        return [*self.words(), "-c"]


def _other_servers(text: str, line: str, ours: str, ports: list[int]) -> str:
    """Three servers' lines, one after the other, become those of our nodes with the same options."""
    found = list(re.finditer(rf"^ +{line}$", text, re.MULTILINE))
    assert len(found) == 3
    lines = "\n".join(ours.format(host=HOST, port=port, rest=found[0]["rest"]) for port in ports)
    return f"{text[: found[0].start()]}{lines}{text[found[-1].end() :]}"


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for given, ours in pairs:
        assert text.count(given) == 1, given
        text = text.replace(given, ours)
    return text


AnyProxy = TypeVar("AnyProxy", bound=Proxy)


@contextmanager
def proxy(kind: type[AnyProxy], directory: Path, ports: list[int]) -> Iterator[AnyProxy]:
    """One that runs."""
    made = kind(directory, ports)
    try:
        made.start()
        yield made
    finally:
        made.close()


async def sessions(nodes: tuple[Node, ...]) -> list[int]:
    """How many each of some nodes has (``metrics="open"``)."""
    return [int((await node.metrics())["websocket_active_connections"]) for node in nodes]
