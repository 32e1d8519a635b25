"""The ``hubbub`` command."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from hubbub import maintenance
from hubbub.errors import ConfigurationError, HubbubError

WORKERS: Final = "HUBBUB_WORKERS"
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
    workers: Annotated[
        int, typer.Option(help="Processes that serve together, each on a core of its own.", envvar=WORKERS, min=1)
    ] = 1,
    worker_ports: Annotated[
        int | None,
        typer.Option(
            help="With --workers: worker n listens on this port + n, too (metrics, health).", min=1, max=65535
        ),
    ] = None,
) -> None:
    """Serve Hubbub (with its web page), or your own app, on the fast transport."""
    import os

    from hubbub.serving import Serving, serve_alone

    _warn_of_unknown(os.environ)
    loopback = _is_loopback(host)
    if dev is None:
        dev = loopback and os.environ.get("HUBBUB_DEV", "1").lower() not in ("0", "false", "no", "off")
    if dev and not loopback:
        raise ConfigurationError(
            f"--dev lets anybody in by name, so it needs a loopback host, and {host} is none: "
            "use --host 127.0.0.1, or --no-dev with HUBBUB_SECRET"
        )
    serving = Serving(
        host=host,
        port=port,
        dev=dev,
        app=app,
        ssl_certfile=str(ssl_certfile) if ssl_certfile else None,
        ssl_keyfile=str(ssl_keyfile) if ssl_keyfile else None,
        forwarded_allow_ips=forwarded_allow_ips,
    )
    if workers > 1:
        from hubbub.workers import serve_workers

        if worker_ports is not None and worker_ports <= port < worker_ports + workers:
            raise ConfigurationError(
                f"--worker-ports {worker_ports} with {workers} workers are the ports {worker_ports} to "
                f"{worker_ports + workers - 1}, and {port} among them is that of --port: use others"
            )
        raise typer.Exit(serve_workers(serving, workers, ports=worker_ports))
    if worker_ports is not None:
        raise ConfigurationError("--worker-ports is for several workers: give --workers 2 or more, too")
    raise typer.Exit(serve_alone(serving))


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

    known = [WORKERS, *(f"HUBBUB_{name.upper()}" for name in Settings.model_fields)]
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


def main() -> None:
    """Entry point: refusals are one readable sentence, not a traceback."""
    try:
        cli()
    except HubbubError as error:
        typer.echo(f"hubbub: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
