"""Serving the explorer on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable
from importlib import resources, util

from sdsl_jax.errors import SdslError, require
from sdsl_jax.explore.explorer import Explorer

_opened: list[Explorer] = []


def opened() -> Explorer:
    """The explorer that this process serves; one of a 70B target where it serves none."""
    return _opened[-1] if _opened else Explorer.of_flags({})


def require_marimo() -> None:
    """Raises `SdslError` unless the packages of the page are installed."""
    missing = [name for name in ("marimo", "anywidget") if util.find_spec(name) is None]
    require(
        not missing,
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; sdsl explore needs "
        "pip install 'sdsl_jax[notebooks]', and sdsl explore --export PAGE.html does not.",
    )


def serve(explorer: Explorer, port: int, browse: bool, say: Callable[[str], None]) -> None:
    """Serves the explorer on this machine until it is interrupted.

    Args:
      explorer: The explorer.
      port: Port of 127.0.0.1; a free one if 0.
      browse: Whether to open the page in the user's browser.
      say: Takes the address of the page.

    Raises:
      SdslError: marimo is not installed, or the port is taken.
    """
    require_marimo()
    import marimo
    import uvicorn

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # Nobody but the users of this machine: a page answers whoever can reach it.
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        raise SdslError(
            f"port {port} of this machine cannot be used ({error.strerror}); give another --port, or none."
        ) from None
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    _opened.append(explorer)
    with resources.as_file(resources.files("sdsl_jax.explore") / "app.py") as app:
        server = marimo.create_asgi_app(quiet=True).with_app(path="/", root=str(app)).build()
        say(address)
        if browse:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        settings = uvicorn.Config(server, log_level="warning", lifespan="on")
        with contextlib.closing(listening):
            uvicorn.Server(settings).run(sockets=[listening])
