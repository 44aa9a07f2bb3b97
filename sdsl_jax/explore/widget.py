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
    model.on("msg:custom", ({ number, view }) => { if (number === count) resolve(view); });
    explorer(el, model.get("setup"), (state) => new Promise((done) => {
      resolve = done;
      model.send({ number: ++count, state });
    }));
  },
};
"""


class ExplorerWidget(anywidget.AnyWidget):
    """Controls, charts and tables of an explorer.

    Questions and answers are messages: as traits of the widget they would run cells again and take
    twice as long.

    Attributes:
      setup: What the page is built from; see `Explorer.setup`.
    """

    _esm = "\n".join([library(), part("explorer.js"), _GLUE])
    _css = part("explorer.css")
    setup: Any = traitlets.Dict().tag(sync=True)

    def __init__(self, explorer: Explorer):
        super().__init__(setup=explorer.setup())
        self._explorer = explorer
        self.on_msg(self._answer)

    def _answer(self, widget: Any, question: Any, buffers: Any) -> None:
        view = self._explorer.answer(question.get("state"))
        self.send({"number": question.get("number"), "view": view})
