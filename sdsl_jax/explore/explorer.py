"""An explorer: what a page offers, and its view of every state. The app and the exported page are faces of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.errors import SdslError, require
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.explore.charts import DATASETS, charts
from sdsl_jax.explore.state import MEASURED, Choices, Control, State, written
from sdsl_jax.explore.study import choices_of_study, measured_points
from sdsl_jax.explore.view import COLUMNS, View, view
from sdsl_jax.hardware import known_hardware, load_hardware
from sdsl_jax.theory import PUBLISHED_ACCEPTANCE_LAWS, PUBLISHED_LOSS_LAWS

# Flags of `sdsl codesign` that a control of the page sets, other than by their own names.
_OWN = ("acceptance", "candidates", "overlapped")


@dataclass(frozen=True)
class Explorer:
    """A page on a co-design problem.

    Attributes:
      title: Title of the page.
      choices: What its controls offer.
      records: Records of a study whose measured points are shown; None without a study.
    """

    title: str
    choices: Choices
    records: StudyRecords | None = None

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> Explorer:
        """An explorer that opens with some flags of `sdsl codesign`; flags without a control stay fixed.

        Raises:
          SdslError: A value is not allowed, or a law or device cannot be loaded.
        """
        given = {n: v for n, v in flags.items() if not (v is None or v is False or v == ())}
        for name in ("file", "objective", "variables", "constraint"):
            require(
                name not in given,
                f"an explorer takes no {name}; it shows the fastest design. Use sdsl codesign for others.",
            )
        require(
            "draft" not in given,
            "an explorer looks at drafts of every size; to compare one that you have, give its size as --candidates.",
        )
        choices = _choices(given)
        names = set(State.__dataclass_fields__)
        config = ProblemFlags(**{"target_params": 70e9, "devices": 4, **given}).config()
        # An engine that the device does not have is refused in the words of sdsl codesign.
        load_hardware(config.hardware.name, config.hardware.engine)
        start = State(
            target_params=config.target.params,
            target_tokens=config.target.tokens,
            draft_tokens=config.draft.tokens,
            loss_law=_shown(choices.loss_laws, config.laws.loss),
            acceptance_law=MEASURED
            if config.draft.acceptance
            else _shown(choices.acceptance_laws, config.laws.acceptance),
            acceptance=config.draft.acceptance or 0.7,
            draft_params=(config.draft.candidates or (1e9,))[0],
            hardware=_shown(choices.hardware, config.hardware.name),
            engine=config.hardware.engine,
            devices=float(config.hardware.devices),
            batch=config.workload.batch,
            context=float(config.workload.mean_context),
            prefill=config.workload.prefill,
            drafting="overlapped" if config.hardware.overlapped else "in turn",
            weight_bytes=config.target.weight_bytes,
            candidates=tuple(config.draft.candidates),
        )
        fixed = {n: v for n, v in given.items() if n not in names and n not in _OWN}
        explorer = cls(
            "Which draft, and how far ahead?",
            dataclasses.replace(choices, start=start, fixed=fixed).with_stops(start),
        )
        explorer.view(start.texts())
        return explorer

    @classmethod
    def of_study(cls, folder: str | Path) -> Explorer:
        """An explorer of a study's own laws, device and models, with its measured points.

        Raises:
          SdslError: The study has no fitted laws, its records are damaged, or its folder cannot be
            written.
        """
        records = StudyRecords(folder)
        choices = choices_of_study(records)
        explorer = cls(f"{records.config.name}: which draft, and how far ahead?", choices, records)
        explorer.view(choices.start.texts())
        return explorer

    def view(self, texts: Mapping[str, str], columns: int = COLUMNS) -> View:
        """What the page shows in the state that the texts of an address name.

        Raises:
          SdslError: A value is not offered or not allowed.
        """
        state = self.choices.state(texts)
        measured = measured_points(self.records, self.choices, state) if self.records else None
        return view(self.choices, state, measured=measured, columns=columns)

    def answer(self, texts: Any) -> dict[str, Any]:
        """`view` as a page reads it; for a state that has none, {"error": a sentence}."""
        try:
            if not isinstance(texts, Mapping):
                raise SdslError("the address holds no state.")
            return self.view(texts).to_json()
        except SdslError as error:
            return {"error": str(error)}

    def setup(self, controls: list[Control] | None = None) -> dict[str, Any]:
        """What the page is built from: controls, charts without data, and the state at the start."""
        return {
            "title": self.title,
            "controls": [
                {
                    "name": one.name,
                    "label": one.label,
                    "unit": one.unit,
                    "group": one.group,
                    "values": [written(value) for value in one.values],
                    "labels": list(one.labels),
                    "form": one.form,
                    "only_with": one.only_with,
                    "without": one.without,
                }
                for one in (self.choices.controls() if controls is None else controls)
            ],
            "engines": {name: list(engines) for name, engines in self.choices.engines.items()},
            "charts": charts(self.choices),
            "datasets": DATASETS,
            "state": self.choices.start.texts(),
        }


def part(name: str) -> str:
    """A file of the page, such as explorer.js."""
    return resources.files("sdsl_jax.explore").joinpath(name).read_text("utf-8")


def _shown(options: Mapping[str, str], value: str) -> str:
    """The name under which a page shows the value of a flag."""
    return next(name for name, option in options.items() if option == value)


def _choices(given: Mapping[str, Any]) -> Choices:
    """Published laws and devices that ship, and those that the flags name."""

    def offered(known: Mapping[str, Any], flag: str) -> dict[str, str]:
        named = given.get(flag)
        names = {name: name for name in known}
        if named is not None and str(named) not in names:
            names = {Path(str(named)).name: str(named), **names}
        return names

    hardware = offered(dict.fromkeys(known_hardware()), "hardware")
    engines = {
        name: tuple(engine.name for engine in load_hardware(value).engines)
        for name, value in hardware.items()
    }
    return Choices(
        loss_laws=offered(PUBLISHED_LOSS_LAWS, "loss_law"),
        acceptance_laws=offered(PUBLISHED_ACCEPTANCE_LAWS, "acceptance_law"),
        hardware=hardware,
        engines=engines,
    )
