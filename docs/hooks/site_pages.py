"""What MkDocs does to the pages beyond their Markdown.

It adds the generated reference and the changelog, puts a list of contents into long pages, and lets
figures open at full size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference_pages import PAGES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# Pages of more words, or of more headings, begin with a list of their contents.
MOST_WORDS, MOST_HEADINGS = 1500, 5
_CONTENTS = ['??? abstract contents "On this page"', "", "    [TOC]", ""]
_FIGURE = re.compile(r'<p>(<img [^>]*src="([^"]+)"[^>]*/?>)</p>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are in no folder."""
    from mkdocs.structure.files import File

    pages = {name: make() for name, make in PAGES.items()}
    pages["changelog.md"] = changelog(Path(config.config_file_path).parent)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Puts a list of contents into a long page, and no menu beside a page that is alone."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    return with_contents(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Lets every figure open at full size, and be moved sideways on small screens."""
    return _FIGURE.sub(r'<p class="figure"><a href="\2">\1</a></p>', html)


def changelog(root: Path) -> str:
    """The repository's changelog, its links seen from the folder of the pages."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    return text.replace("](docs/", "](")


def with_contents(markdown: str) -> str:
    """The page, with a list of contents before its first section if it is long.

    Pages made from docstrings are long whatever their Markdown says.
    """
    lines = markdown.splitlines()
    sections = [i for i, heading in _headings(lines) if heading.startswith("## ")]
    is_long = (
        len(markdown.split()) > MOST_WORDS
        or len(sections) > MOST_HEADINGS
        or any(line.startswith("::: ") for line in lines)
    )
    if not is_long or not sections:
        return markdown
    first = sections[0]
    return "\n".join([*lines[:first], *_CONTENTS, *lines[first:]]) + "\n"


def _headings(lines: list[str]) -> list[tuple[int, str]]:
    """Lines that are headings, with their places; those of code blocks are none."""
    found, is_code = [], False
    for i, line in enumerate(lines):
        is_code ^= line.lstrip().startswith("```")
        if not is_code and re.match(r"#{1,6} ", line):
            found.append((i, line))
    return found
