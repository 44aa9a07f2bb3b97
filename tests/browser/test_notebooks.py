"""The notebooks as apps: every cell runs in a browser, and a control moves what depends on it."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
_FAILED = "This cell raised an exception|Internal error|Traceback"


@contextlib.contextmanager
def served(notebook):
    """`marimo run` as a user runs it, in a process of its own; yields the address of the app."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", str(notebook), "--headless"]
    command += ["--no-token", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def title(notebook):
    return re.search(r'mo\.md\("""\n *# (.+)', notebook.read_text("utf-8"))[1]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(tab, pictures, notebook):
    pytest.importorskip("marimo")
    with served(notebook) as address:
        page = tab(1100).page
        page.goto(address)
        page.get_by_role("heading", level=1).filter(has_text=title(notebook)).wait_for(
            timeout=60_000
        )
        # Cells run from top to bottom, and the exercises are the end of every notebook.
        page.get_by_role("heading", name="Exercises").wait_for(timeout=240_000)
        pictures_of = notebook.read_text("utf-8").count("Picture(")
        page.wait_for_function(
            "(most) => document.querySelectorAll('img[alt]').length >= most",
            arg=pictures_of,
            timeout=240_000,
        )
        # marimo shows an hourglass until the last cell has run.
        page.locator("[data-testid=loading-indicator]").wait_for(state="detached", timeout=240_000)
        assert not re.search(_FAILED, page.locator("body").inner_text())
        page.screenshot(path=f"{pictures}/notebook-{notebook.stem}.png", full_page=True)
        page.close()
