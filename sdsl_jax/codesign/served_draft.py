"""Which draft the settings of engines are of: a name is never printed with the lookahead of another draft."""

from __future__ import annotations

from typing import Any, NamedTuple

from sdsl_jax.codesign.comparisons import Comparison, plain
from sdsl_jax.codesign.program import Solved
from sdsl_jax.codesign.published_drafts import published_draft
from sdsl_jax.codesign.serving_problem import Problem
from sdsl_jax.counts import short_count


class ServedDraft(NamedTuple):
    """The draft that engine settings are of.

    Attributes:
      name: to be loaded; empty where the draft has none yet.
      source: "named" by [draft] name, "published" with the tokenizer of the target, "candidate", or
        "to_train".
      total_params: its size, embeddings included.
      lookahead: its own best whole one.
      acceptance: α.
      speedup: S with that lookahead.
      within_constraints: whether it keeps all limits.
    """

    name: str
    source: str
    total_params: float
    lookahead: int
    acceptance: float
    speedup: float
    within_constraints: bool

    @property
    def pays(self) -> bool:
        """Whether it keeps all limits and is faster than the target alone."""
        return self.within_constraints and self.speedup > 1

    def sentence(self) -> str:
        """Which draft it is, whose lookahead and speed-up."""
        size = short_count(self.total_params)
        who = {
            "named": f"{self.name} ({size})",
            "published": f"{self.name} ({size}), the best published draft with the tokenizer of the target",
            "candidate": f"your candidate of {size}" + (f", {self.name}" if self.name else ""),
            "to_train": f"a draft of {size} that is yet to be trained",
        }[self.source]
        if not self.within_constraints:
            return f"no settings for {who}: it breaks a limit at every lookahead"
        gain = f"its best lookahead is γ = {self.lookahead}, {self.speedup:.2f} times as fast as the target alone"
        return (
            f"settings for {who}: {gain}"
            if self.pays
            else f"no settings for {who}: {gain}, so do not speculate with it"
        )


def served_draft(
    problem: Problem, found: Comparison, whole: Solved, as_solved: bool
) -> ServedDraft:
    """The named draft; else the best published one with the target's tokenizer, the best candidate,
    or the optimum, if it pays.

    Args:
      problem: that was solved.
      found: the drafts, where the engines put them.
      whole: the optimum in whole numbers.
      as_solved: whether that is where the problem put them; the optimum's own draft is compared
        anew otherwise.
    """
    if found.named is not None:
        return _of(problem.config.draft.name, "named", found.named)
    shared = [
        row
        for row in found.published
        if row["tokenizer"] == "shared" and row["divides_among_devices"]
    ]
    # Where an acceptance was measured, it is the candidate's, whatever its name.
    if not problem.config.draft.acceptance:
        best = _best(shared)
        if best is not None:
            return _of(best["name"], "published", best)
    best = _best(found.candidates)
    if best is not None:
        names = {row["name"] for row in found.published if row["tokenizer"] == "shared"}
        return _of(best["published"] if best["published"] in names else "", "candidate", best)
    if not as_solved:
        return _of("", "to_train", found.optimum)
    given = whole.outcome
    return ServedDraft(
        "",
        "to_train",
        plain(problem, whole.design, "draft_params")["total"],
        round(float(whole.design.lookahead)),
        float(given.acceptance),
        float(given.speedup),
        bool(whole.feasible),
    )


def notes_of(problem: Problem, served: ServedDraft) -> list[str]:
    """What stands in the way of engines that are to run a published model as the draft."""
    model = published_draft(served.name) if served.name else None
    if model is None:
        return []
    found, devices = [], problem.devices
    if model.heads % devices:
        found.append(
            f"{served.name} has {model.heads} query heads, which {devices} devices cannot share evenly: engines refuse it"
        )
    if model.padded:
        found.append(
            f"{served.name} has a vocabulary of {model.vocab_size:,} rows and larger models of its family pad theirs further: "
            "vLLM compares the two, so pad the draft's embedding first"
        )
    return found


def _best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    paying = [row for row in rows if row["within_constraints"] and row["speedup"] > 1]
    return min(paying, key=lambda row: row["objective_loss"], default=None)


def _of(name: str, source: str, row: dict[str, Any]) -> ServedDraft:
    size = row["total_params"] if "total_params" in row else row["draft_params"]["total"]
    return ServedDraft(
        name,
        source,
        size,
        row["lookahead"],
        row["acceptance"],
        row["speedup"],
        row["within_constraints"],
    )
