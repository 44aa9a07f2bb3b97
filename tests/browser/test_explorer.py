"""The explorer and its exported page in a browser: what it shows is what the library says."""

import json
import os
import signal
import subprocess
import sys

import pytest

from sdsl_jax.explore.explorer import Explorer
from sdsl_jax.explore.export import export

FLAGS = {"target_params": "70B", "devices": 4, "batch": 8, "context": 4096, "candidates": "350M"}
GRID = {"target_params": ["8B", "70B"], "batch": ["1", "8", "64"]}


@pytest.fixture(scope="module")
def explorer():
    return Explorer.of_flags(FLAGS)


@pytest.fixture(scope="module")
def exported(explorer, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    export(explorer, path, GRID)
    return path.as_uri()


@pytest.fixture(scope="module")
def served():
    """`sdsl explore` as a user runs it."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    code = "import sys; from sdsl_jax.cli import main; sys.argv[0] = 'sdsl'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "explore", "--no-browser", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line
    yield line.split()[4].rstrip(".")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)


def settled(page, **expected):
    """Waits for the answer to a state, and returns the text of the verdict."""
    words = json.dumps(expected)
    page.wait_for_function(
        """(words) => {
          const shown = document.querySelector("[data-answered]") ?? [...document.querySelectorAll("*")]
            .map((e) => e.shadowRoot?.querySelector("[data-answered]")).find((e) => e);
          const state = shown && JSON.parse(shown.dataset.answered);
          return state && Object.entries(JSON.parse(words)).every(([k, v]) => state[k] === v);
        }""",
        arg=words,
        timeout=60_000,
    )
    return page.locator(".verdict").text_content()


def numbers(page):
    terms = page.locator(".explorer dt").all_text_contents()
    return dict(zip(terms, page.locator(".explorer dd").all_text_contents()))


def moved(page, name, steps):
    slider = page.get_by_role("slider", name=name)
    for _ in range(abs(steps)):
        slider.press("ArrowRight" if steps > 0 else "ArrowLeft")


def check(page, explorer, **state):
    """The page says what the library says: S to 4 digits, and the same sentence and command."""
    verdict = settled(page, **state)
    view = explorer.view(state)
    assert verdict == view.verdict
    assert numbers(page) == dict(view.numbers)
    assert page.locator("pre.command").text_content() == view.command
    assert len(page.locator(".chart canvas").all()) == 4


def test_the_served_page_follows_its_sliders(served, explorer, tab, pictures):
    shown = tab()
    shown.page.goto(served)
    check(shown.page, explorer, batch="8")
    moved(shown.page, "Batch", 2)
    check(shown.page, explorer, batch="32")
    shown.page.get_by_label("Device", exact=True).select_option("v5e")
    check(shown.page, explorer, batch="32", hardware="v5e")
    assert "batch=32" in shown.page.url
    shown.page.screenshot(path=f"{pictures}/explorer-served.png", full_page=True)
    # The address is the state: another tab shows the same.
    other = tab(400)
    other.page.goto(shown.page.url)
    check(other.page, explorer, batch="32", hardware="v5e")
    assert other.page.evaluate("document.documentElement.scrollWidth") <= 400
    other.page.screenshot(path=f"{pictures}/explorer-served-400.png", full_page=True)


def test_a_value_that_the_page_cannot_read_is_that_of_the_start(exported, explorer, tab):
    shown = tab()
    shown.page.goto(f"{exported}#batch=zzz&target_params=")
    check(shown.page, explorer, batch="8", target_params="70B")
    assert "holds no batch zzz; it shows 8" in shown.page.locator(".error").text_content()


def test_an_address_that_is_no_state_is_an_error_on_the_page(served, tab):
    shown = tab()
    shown.page.goto(f"{served}/#loss_law=/etc/passwd")
    shown.page.locator(".error").wait_for(timeout=60_000)
    assert "no choice" in shown.page.locator(".error").text_content()


def test_the_exported_page_needs_no_server(exported, explorer, tab, pictures):
    shown = tab()
    shown.page.goto(exported)
    check(shown.page, explorer, batch="8", target_params="70B")
    moved(shown.page, "Batch", 1)
    check(shown.page, explorer, batch="64")
    moved(shown.page, "Target size", -1)
    check(shown.page, explorer, batch="64", target_params="8B")
    assert shown.page.url.endswith("#target_params=8B&batch=64")
    shown.page.get_by_role("button", name="Reset").click()
    check(shown.page, explorer, batch="8", target_params="70B")
    shown.page.get_by_text("vLLM settings").click()
    assert "num_speculative_tokens" in shown.page.locator("details[open] pre").text_content()
    shown.page.screenshot(path=f"{pictures}/explorer-exported.png", full_page=True)


@pytest.mark.parametrize("width", [400, 760, 1600])
def test_the_exported_page_fits(exported, tab, pictures, width):
    shown = tab(width)
    shown.page.goto(f"{exported}#batch=64&file=/etc/passwd&target_params=7.7B")
    settled(shown.page, batch="64", target_params="8B")
    # A target between two stops is answered by the nearer one, and what the page does not know is said.
    said = shown.page.locator(".error").text_content()
    assert "names file" in said
    assert "holds no target size 7.7B; it shows 8B" in said
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in shown.page.locator(".chart").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    shown.page.screenshot(path=f"{pictures}/explorer-{width}.png", full_page=True)
