"""Pages of the report, taken apart."""

import html.parser
import json
import re

import vl_convert
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from sdsl_jax.report.vega import script_json


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of (tag, attributes, text), and what else a page is judged by."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.captions, self.ids, self.links = [], [], [], []
        self.images, self.outside, self.kinds = [], [], []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes.get("alt", ""))
        for name in ("src", "href"):
            if not attributes.get(name, "#").startswith(("#", "data:")):
                self.outside.append(attributes[name])
        if tag == "table":
            self.tables.append([])
            self.kinds.append(attributes["class"])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td", "caption"):
            self._cell = [tag, attributes, ""]
            if tag == "caption":
                self.captions.append(self._cell)
            else:
                self.tables[-1][-1].append(self._cell)

    def handle_data(self, text):
        if self._cell is not None:
            self._cell[2] += text

    def handle_endtag(self, tag):
        if tag in ("th", "td", "caption"):
            self._cell = None


def without_scripts(text: str) -> str:
    """A page as it is read where scripts do not run: their libraries name addresses that nothing asks for."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def assert_charts(charts: dict) -> None:
    """Every chart compiles, says what it shows, and names all its axes; no two have one name."""
    every = [chart for panels in charts.values() for chart in panels]
    assert len({chart.name for chart in every}) == len(every)
    for name, spec in every:
        assert re.fullmatch(r"[a-z0-9-]+", name)
        compiled = vl_convert.vegalite_to_vega(json.loads(script_json(spec)))
        labels = [axis for axis in compiled["axes"] if axis.get("labels", True)]
        assert len(labels) == 2
        assert all(axis["title"] for axis in labels), name
        assert spec["description"].endswith(".")
        assert compiled["title"]["text"]
        assert any(spec["datasets"].values())
        used = {layer["data"]["name"] for layer in spec["layer"] if "name" in layer["data"]}
        assert used <= spec["datasets"].keys()
        for layer in spec["layer"]:
            for channel in ("x", "y"):
                field = layer["encoding"].get(channel, {}).get("field")
                rows = spec["datasets"].get(layer["data"].get("name"), [])
                assert field is None or all(field in row for row in rows), (name, layer)


def assert_readable(page: Page):
    """Every table fits into 1,280 pixels, and has a caption, heads and as many cells in each row;
    anchors lead somewhere, pictures have words, and nothing comes from outside.
    """
    assert len(page.captions) == len(page.tables)
    assert all(text.strip() for _, _, text in page.captions)
    for head, *rows in page.tables:
        assert rows
        assert all(tag == "th" and a["scope"] == "col" and text for tag, a, text in head)
        for first, *others in rows:
            assert first[0] == "th"
            if first[1]["scope"] == "rowgroup":
                assert not others
                assert int(first[1]["colspan"]) == len(head)
            else:
                assert first[1]["scope"] == "row"
                assert len(others) == len(head) - 1
                assert all(tag == "td" for tag, _, _ in others)
    for table, kind, (_, _, caption) in zip(page.tables, page.kinds, page.captions):
        if "prose" not in kind:  # whose cells wrap
            assert width(table, kind) < 1280 - 2 * 16, caption
    assert len(page.ids) == len({*page.ids})
    assert {link[1:] for link in page.links} <= {*page.ids}
    assert all(page.images)
    assert page.outside == []


def width(table: list, kind: str) -> float:
    """Pixels that a table of the page needs, in the widest of the usual fonts; see style.css."""
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    font.set_size(0.82 * 16, 72)

    def drawn(text: str) -> float:
        font.set_text(" ".join(text.split()))
        return font.get_width_height()[0] / 64

    def needs(cell: list, row: int) -> float:
        if row == 0:  # heads break between words
            return max(1.1 * drawn(word) for word in re.split(r"[ \n–-]", cell[2]))
        if "dense" in kind and "[" in cell[2]:
            return max(map(drawn, cell[2].split(" [")))
        return drawn(cell[2])

    rows = [(i, row) for i, row in enumerate(table) if len(row) == len(table[0])]
    columns = [max(needs(row[c], i) for i, row in rows) for c in range(len(table[0]))]
    return sum(columns) + len(columns) * 16 * 0.82 * (0.8 if "dense" in kind else 1.2)
