"""The ``hubbub`` command."""

from __future__ import annotations

import gc
import ipaddress
import math
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubbub import maintenance
from hubbub.errors import ConfigurationError, HubbubError

if TYPE_CHECKING:
    from uvicorn import Config

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Real-time server and toolkit for FastAPI.")


@cli.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    dev: Annotated[
        bool | None,
        typer.Option("--dev/--no-dev", help="Login by name and /ws/echo. Default: on a loopback host only."),
    ] = None,
    app: Annotated[str | None, typer.Option(help="An app of your own, as module:attribute.")] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate, for wss:// without a proxy.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    forwarded_allow_ips: Annotated[
        str, typer.Option(help="Proxies whose X-Forwarded-For is believed, comma-separated.")
    ] = "127.0.0.1",
) -> None:
    """Serve Hubbub (with its web page), or your own app, on the fast transport."""
    import os

    from uvicorn import Config

    from hubbub import logs
    from hubbub.app import create_app, ensure_secret
    from hubbub.settings import load_settings

    _warn_of_unknown(os.environ)
    loopback = _is_loopback(host)
    if dev is None:
        dev = loopback and os.environ.get("HUBBUB_DEV", "1").lower() not in ("0", "false", "no", "off")
    if dev and not loopback:
        raise ConfigurationError(
            f"--dev lets anybody in by name, so it needs a loopback host, and {host} is none: "
            "use --host 127.0.0.1, or --no-dev with HUBBUB_SECRET"
        )
    settings = ensure_secret(load_settings(dev=dev))
    logs.configure(settings.log_level, pretty=sys.stderr.isatty() or dev)
    if app is None:
        target: Any = create_app(settings)
    else:
        os.environ["HUBBUB_DEV"] = "1" if dev else "0"
        sys.path.insert(0, "")
        target = app
    config = Config(
        target,
        host=host,
        port=port,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http="hubbub.transports.uvicorn:HttpProtocol",
        ws="hubbub.transports.uvicorn:WebSocketProtocol",
        lifespan="on",
        log_config=None,
        access_log=settings.log_level == "debug",
        server_header=False,
        forwarded_allow_ips=forwarded_allow_ips,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds + settings.close_timeout) + 2,
    )
    _raise_file_limit()
    _run(config, gc_freeze=settings.gc_freeze, tcp_user_timeout=settings.tcp_user_timeout, dev=dev)


def _run(config: Config, *, gc_freeze: bool, tcp_user_timeout: float, dev: bool) -> None:
    from uvicorn import Server

    class HubbubServer(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if gc_freeze:
                # what lives as long as the process need not be looked at again; a full collection over 100,000
                # sessions would stop the loop for hundreds of milliseconds
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 50, 1000)

    # uvicorn raises the signal again once it has shut down; then there is nothing left to end
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        listener = config.bind_socket()
    except SystemExit:
        raise ConfigurationError(
            f"cannot listen on {config.host}:{config.port}: taken, or not allowed; use another --port"
        ) from None
    if tcp_user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(tcp_user_timeout * 1000))
    listener.listen(config.backlog)  # whoever reads the next line may connect
    name = f"{'https' if config.is_ssl else 'http'}://{config.host}:{listener.getsockname()[1]}"
    typer.echo(
        f"Hubbub listens on {name}" + ("  (development mode: anybody may log in by name)" if dev else ""), err=True
    )
    server = HubbubServer(config)
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(3)


@cli.command()
def token(
    user: Annotated[str, typer.Argument(help="The user's id (`sub`).")],
    ttl: Annotated[float, typer.Option(help="Seconds until it expires.", min=1)] = 3600.0,
    admin: Annotated[bool, typer.Option("--admin", help="Everything, and the server API.")] = False,
    subscribe: Annotated[list[str] | None, typer.Option(help="Channel pattern that may be read; repeat it.")] = None,
    publish: Annotated[list[str] | None, typer.Option(help="Channel pattern that may be written; repeat it.")] = None,
    room: Annotated[list[str] | None, typer.Option(help="Room that may be joined; repeat it. Default: all.")] = None,
) -> None:
    """Print a token (JWT) for a user, signed with HUBBUB_SECRET (or the development secret of the data directory)."""
    from hubbub.app import ensure_secret
    from hubbub.auth import issue_token, valid_user_id
    from hubbub.settings import load_settings

    settings = load_settings()
    if settings.secret is None:
        if not (settings.data_dir / "secret").exists():
            raise ConfigurationError(
                "HUBBUB_SECRET is not set, and there is no development secret in "
                f"{settings.data_dir} yet (`hubbub serve` makes one)"
            )
        settings = ensure_secret(settings.model_copy(update={"dev": True, "public_key": None}))
    if not valid_user_id(user):
        raise ConfigurationError("a user's id has 1 to 128 characters, and no control characters")
    made = issue_token(
        settings,
        user,
        now=time.time(),
        ttl=ttl,
        admin=admin,
        subscribe=tuple(subscribe or ()),
        publish=tuple(publish or ()),
        rooms=tuple(room) if room else None,
    )
    typer.echo(made)


cli.command()(maintenance.migrate)
cli.command()(maintenance.export)
cli.command("import")(maintenance.import_)
cli.add_typer(maintenance.users, name="users")


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored without a word."""
    from difflib import get_close_matches

    from hubbub.settings import Settings

    known = [f"HUBBUB_{name.upper()}" for name in Settings.model_fields]
    for name in environment:
        if name.startswith("HUBBUB_") and name not in known:
            near = get_close_matches(name, known, 1)
            typer.echo(f"{name} is no setting" + (f"; do you mean {near[0]}?" if near else ""), err=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _raise_file_limit() -> None:
    """A connection is a descriptor, and the usual soft limit is 1024."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        typer.echo("could not raise the limit of open files; many connections may not fit", err=True)


def main() -> None:
    """Entry point: refusals are one readable sentence, not a traceback."""
    try:
        cli()
    except HubbubError as error:
        typer.echo(f"hubbub: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
