"""The page as a widget of a notebook: the browser asks for a state, Python answers with its view."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from sdsl_jax.explore.explorer import Explorer, part
from sdsl_jax.report.vega import library

_GLUE = """
export default {
  render({ model, el }) {
    let count = 0, resolve = () => {};
    model.on("change:answer", () => {
      const { number, view } = model.get("answer");
      if (number === count) resolve(view);
    });
    explorer(el, model.get("setup"), (state) => new Promise((done) => {
      resolve = done;
      model.set("question", { number: ++count, state });
      model.save_changes();
    }));
  },
};
"""


class ExplorerWidget(anywidget.AnyWidget):
    """Controls, charts and tables of an explorer.

    Attributes:
      setup: What the page is built from; see `Explorer.setup`.
      question: Number and state of the browser's last question.
      answer: The same number, and the view of that state.
    """

    _esm = "\n".join([library(), part("explorer.js"), _GLUE])
    _css = part("explorer.css")
    setup: Any = traitlets.Dict().tag(sync=True)
    question: Any = traitlets.Dict().tag(sync=True)
    answer: Any = traitlets.Dict().tag(sync=True)

    def __init__(self, explorer: Explorer):
        super().__init__(setup=explorer.setup())
