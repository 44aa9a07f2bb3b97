"""Turns the notebooks of `notebooks/` into pages of the site.

marimo's own HTML export loads its front end from a network, so the pages are made here: each
notebook runs once as a script, and its Markdown, code and outputs become a page of Markdown. What a
run gave is kept in `.cache/notebooks` under a digest of everything that it depends on. The tests of
the notebooks read the same runs, so a full check runs every notebook only once.
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import numbers
import os
import re
import runpy
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / ".cache/notebooks"

# Most of a notebook's time is compilation, which is shorter without the compiler's expensive passes.
# The tests set the same flags, so what they have compiled is not compiled again.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_allow_excess_precision=false"
)
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
# A notebook names pages by their path in the repository, which is no link in marimo.
PAGE = re.compile(r"`docs/([\w-]+\.md)(#[\w-]+)?`")
_CONTROL = "*Controls, at their default values. Open the notebook to move them.*"


class Cell(NamedTuple):
    """The code of a cell.

    Attributes:
      code: Its statements, without the `return` that marimo's file format adds.
      hidden: Whether only its output is shown.
    """

    code: str
    hidden: bool


def cells_of(source: str) -> tuple[Cell | None, list[Cell]]:
    """The setup cell, if there is one, and the other cells of a notebook, in the order of the file."""
    lines, setup, cells = source.splitlines(), None, []

    def between(first: int, last: int) -> str:
        return textwrap.dedent("\n".join(lines[first:last])).strip("\n")

    for node in ast.parse(source).body:
        if isinstance(node, ast.With):
            setup = Cell(between(node.lineno, node.end_lineno or 0), False)
        elif isinstance(node, ast.FunctionDef) and node.decorator_list:
            # Comments before the first statement belong to the cell, so it starts after the signature.
            first = (
                next(i for i in range(node.lineno - 1, len(lines)) if lines[i].endswith(":")) + 1
            )
            end = node.body[-1]
            last = end.lineno - 1 if isinstance(end, ast.Return) else node.end_lineno or 0
            hidden = "hide_code=True" in ast.unparse(node.decorator_list[0])
            cells.append(Cell(between(first, last), hidden))
    return setup, cells


def rendered(value: Any) -> str:
    """An output as Markdown."""
    if value is None:
        return ""
    if "<marimo-" in getattr(value, "text", ""):
        return _CONTROL
    if hasattr(value, "_repr_markdown_"):
        return value._repr_markdown_()
    if hasattr(value, "to_html"):
        page = value.to_html(border=0, float_format="{:.4g}".format, na_rep="–")
    elif hasattr(value, "_repr_html_"):
        page = value._repr_html_()
    else:
        page = f"<pre>{html.escape(repr(value))}</pre>"
    # The theme styles tables without a class. A blank line would end the block of HTML.
    page = page.replace(' border="1"', "").replace(' class="dataframe"', "")
    return '<div class="output">' + re.sub(r"\n\s*\n", "\n", page) + "</div>"


def run(notebook: Path) -> dict[str, Any]:
    """Runs a notebook in this process: its outputs as Markdown, and the numbers that it defines."""
    app = runpy.run_path(str(notebook))["app"]
    outputs, names = app.run()
    return {
        "outputs": [rendered(value) for value in outputs],
        "numbers": {name: _plain(value) for name, value in names.items() if _is_number(value)},
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or (
        hasattr(value, "dtype") and getattr(value, "shape", None) == ()
    )


def _plain(value: Any) -> bool | float:
    return value if isinstance(value, bool) else float(value)


@cache
def _package() -> bytes:
    """Digest of all code that a notebook may call."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "sdsl_jax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def results(notebook: Path) -> dict[str, Any]:
    """What `run` gives, from a process of its own, or from an earlier run of the same code.

    Raises:
      RuntimeError: The notebook fails.
    """
    key = hashlib.sha256(_package() + notebook.read_bytes()).hexdigest()[:16]
    kept = RUNS / f"{notebook.stem}-{key}.json"
    if not kept.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=RUNS) as folder:
            fresh = Path(folder) / "run.json"
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            ended = subprocess.run(
                [sys.executable, __file__, str(notebook), str(fresh)],
                env={"XLA_FLAGS": _QUICK, **os.environ, "PYTHONPATH": path},
                cwd=folder,
                capture_output=True,
                text=True,
            )
            if ended.returncode:
                raise RuntimeError(f"{notebook.name} fails:\n{ended.stderr[-4000:]}")
            for old in RUNS.glob(f"{notebook.stem}-*.json"):
                old.unlink(missing_ok=True)
            fresh.replace(kept)
    return json.loads(kept.read_text("utf-8"))


def page_of(notebook: Path) -> str:
    """The page of a notebook, as Markdown."""
    setup, cells = cells_of(notebook.read_text("utf-8"))
    outputs = results(notebook)["outputs"]
    if len(outputs) != len(cells):
        raise RuntimeError(f"{notebook.name}: {len(cells)} cells gave {len(outputs)} outputs")
    parts = []
    for cell, output in zip(cells, outputs):
        if not cell.hidden:
            parts.append(f"```python\n{cell.code}\n```")
        parts.append(output)
    how = (
        f"*This page is the notebook `notebooks/{notebook.name}`, run when the site was built. "
        f"`marimo edit notebooks/{notebook.name}` opens it with its controls.*"
    )
    # After the first cell, which holds the title.
    parts[1:1] = [how, f"```python\n{setup.code}\n```" if setup else ""]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return PAGE.sub(r"[\1](../\1\2)", text)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to the site."""
    from mkdocs.structure.files import File

    notebooks = sorted(NOTEBOOKS.glob("*.py"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(results, notebooks))
    # Python 3.11's parser is not safe in several threads, so pages are made in this one.
    for notebook in notebooks:
        files.append(
            File.generated(config, f"notebooks/{notebook.stem}.md", content=page_of(notebook))
        )
    return files


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]))), "utf-8")
