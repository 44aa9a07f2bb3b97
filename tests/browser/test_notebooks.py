"""The notebooks as apps: every cell runs in a browser, and a control moves what depends on it."""

import contextlib
import re
import socket
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
_FAILED = "This cell raised an exception|Internal error|Traceback"


@pytest.fixture(scope="module")
def served():
    """One server of all notebooks; yields its address."""
    marimo = pytest.importorskip("marimo")
    uvicorn = pytest.importorskip("uvicorn")
    apps = marimo.create_asgi_app(quiet=True)
    for notebook in NOTEBOOKS:
        apps = apps.with_app(path=f"/{notebook.stem}", root=str(notebook))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(apps.build(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with contextlib.closing(listening):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def title(notebook):
    return re.search(r'mo\.md\("""\n *# (.+)', notebook.read_text("utf-8"))[1]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(served, tab, pictures, notebook):
    shown = tab(1100)
    page = shown.page
    page.goto(f"{served}/{notebook.stem}")
    page.get_by_role("heading", level=1).filter(has_text=title(notebook)).wait_for(timeout=60_000)
    # The last cell of every notebook holds its exercises.
    page.get_by_role("heading", name=re.compile("Exercises|Try it|yourself")).wait_for(
        timeout=240_000
    )
    deadline = time.monotonic() + 240
    while page.locator("[data-status=running], [data-status=queued]").count():
        assert time.monotonic() < deadline
        page.wait_for_timeout(300)
    assert not re.search(_FAILED, page.locator("body").inner_text())
    page.screenshot(path=f"{pictures}/notebook-{notebook.stem}.png", full_page=True)
