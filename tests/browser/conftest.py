"""A real browser: Chromium, which is installed where CI=true and else used where there is one."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import filelock
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items):
    for item in items:
        # The slow ones run with the slow tests, whose study they open.
        if "browser" in item.path.parts and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium():
    """Path of Chromium; the tests are skipped, with the reason, where there is none."""
    # One process of the run installs it, and the others wait.
    with filelock.FileLock(Path(tempfile.gettempdir(), "sdsl-tests-chromium.lock")):
        found = _found()
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


def _found():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") == "true":
        quiet = {"check": False, "stdout": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            **quiet,
        )
        found = shutil.which("chromium")
    return found


@pytest.fixture(scope="session")
def browser(chromium):
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # The sandbox of Chromium needs rights that root in a container does not have.
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """A tab, with everything that went wrong in it and every address that it asked for."""

    def __init__(self, page):
        self.page, self.problems, self.requests = page, [], []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message):
        # Chromium's own advice about images of marimo's page is none of ours.
        if message.type in ("error", "warning") and "was preloaded" not in message.text:
            self.problems.append(message.text)

    def outside(self):
        """Requests that left this machine."""
        local = ("file:", "data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1")
        return [url for url in self.requests if not url.startswith(local)]


@pytest.fixture
def tab(browser):
    """Opens tabs of a width; closes them after the test, which fails if anything went wrong in one."""
    opened = []

    def open_tab(width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        opened.append(Watched(context.new_page()))
        return opened[-1]

    yield open_tab
    for one in opened:
        one.page.context.close()
    for one in opened:
        assert one.problems == []
        assert one.outside() == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder of screenshots: that which SDSL_SCREENSHOTS names, to look at them."""
    folder = os.environ.get("SDSL_SCREENSHOTS")
    return folder or str(tmp_path_factory.mktemp("screenshots"))
