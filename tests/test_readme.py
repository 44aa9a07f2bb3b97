"""The Python of the README and of the documentation runs, and gives the numbers beside it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


def run(block: str) -> tuple[dict, str]:
    """The names that a block defines, and what it prints."""
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, names)
    return names, printed.getvalue()


def test_your_own_functions():
    block = python_blocks("docs/library.md")[0]
    names, _ = run(block)
    optimum = names["best"](names["theta"])
    assert float(optimum.params) == pytest.approx(711e6, rel=1e-3)
    assert [float(x) for x in optimum.indifference_1pct] == pytest.approx(
        [481e6, 1.026e9], rel=2e-3
    )
    assert (float(optimum.lookahead), float(optimum.speedup)) == (
        pytest.approx(7.8, abs=0.05),
        pytest.approx(2.99, abs=0.005),
    )
    assert len(block.splitlines()) <= 12


def test_the_theory():
    names, _ = run(python_blocks("docs/library.md")[1])
    assert float(names["best"].lookahead) == pytest.approx(5.48, abs=0.005)
    assert int(names["best"].lookahead_integer) == 6
    assert float(names["opt_30b"].optimum().params) == pytest.approx(189e6, rel=0.005)
    assert float(names["elasticities"](names["opt_30b"]).target_params) == pytest.approx(
        0.575, abs=5e-4
    )


def test_the_decoder():
    names, _ = run(python_blocks("docs/library.md")[2])
    events = names["run"].events
    assert [int(x) for x in events.emitted.sum(axis=1)] == [40, 20]


def test_a_question_about_serving():
    block = python_blocks("docs/library.md")[3]
    names, _ = run(block)
    answer, (said,) = names["answer"], re.findall("answer.verdict  # (.*)", block)
    assert answer.verdict.removeprefix("Speculate: ").rstrip(".") == said
    assert answer.rounded.lookahead == 2
    lookaheads = [row.lookahead for row in answer.pareto["batch"]]
    assert lookaheads == sorted(lookaheads, reverse=True)


def test_the_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    names, text = run("".join(python_blocks("README.md")))
    assert len(text) > 48
    assert 0 < names["pair"].acceptance.estimate < 1
    assert names["answer"].speculate


def test_a_shipped_model_decodes_a_string(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, text = run(python_blocks("docs/measuring.md")[0])
    assert len(text) > 48


def test_a_problem_is_solved_from_python():
    block = next(b for b in python_blocks("docs/codesign.md") if "answer =" in b)
    names, _ = run(block)
    assert names["answer"].rounded.lookahead == 5


def test_what_the_python_of_codesign_prints():
    """The numbers that docs/codesign.md prints below its own lines of Python."""
    page = (ROOT / "docs/codesign.md").read_text("utf-8")
    blocks = re.findall(r"```python\n([^`]*)```\n\n```\n([^`]*)```", page)
    assert len(blocks) == 2
    for block, expected in blocks:
        assert run(block)[1] == expected


def test_the_page_on_devices():
    names, _ = run(python_blocks("docs/hardware.md")[0])
    assert names["device"].name == "h100"


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("docs/predict.md", "predict"),
        ("docs/lookahead.md", "lookahead"),
        ("docs/start.md", "lookahead"),
        ("docs/fitting.md", "fit"),
    ],
)
def test_outputs_are_what_the_program_prints(page, command, sdsl, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.findall(
        rf"```\n\$ sdsl ({command} .*?)\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL
    )
    assert shown
    for arguments, output in shown:
        status, printed, _ = sdsl(*arguments.split())
        lines = {line.strip() for line in printed.splitlines()}
        assert status == 0
        assert [line for line in output.splitlines() if line.strip() not in lines] == []


def test_files_that_pages_name_exist():
    names = r"\b(?:sdsl_jax|experiments|tests|benchmarks|checkpoints|docs)/[\w./-]+\.(?:py|toml|json|md|csv)\b"
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "checkpoints/README.md"]
    missing = {
        (page.name, name)
        for page in pages
        for name in re.findall(names, page.read_text("utf-8"))
        if not (ROOT / name).exists() and not (ROOT / "sdsl_jax" / name).exists()
    }
    assert not missing


def test_nothing_is_left_to_fill_in():
    text = (ROOT / "README.md").read_text("utf-8")
    prose = re.sub(r"`[^`]+`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert not re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", prose)
