"""`sdsl codesign`: which draft and lookahead to serve a target with, on which hardware, under which constraints."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from sdsl_jax.cli.codesign_report import print_answer, question
from sdsl_jax.cli.terminal import error_console, standard_console
from sdsl_jax.counts import parse_count, parse_share, parse_size, parse_sizes
from sdsl_jax.errors import SdslError, require
from sdsl_jax.ranges import share_hint

_FILE = tyro.conf.arg(metavar="[FILE.toml]")
_MODEL = tyro.conf.arg(metavar="NAME")
_COUNT = tyro.conf.arg(metavar="COUNT")
_COUNTS = tyro.conf.arg(metavar="COUNT[,COUNT...]")
_NUMBER = tyro.conf.arg(metavar="X")
_DEVICE = tyro.conf.arg(metavar="NAME|FILE.toml")
_LAW = tyro.conf.arg(metavar="NAME|FILE.json")
_LAW_OF_SEVERAL = tyro.conf.arg(metavar="NAME|FILE.json[#NAME]")
_LIMIT = tyro.conf.arg(metavar="METRIC=LIMIT")
_WEIGHTS = tyro.conf.arg(metavar="METRIC[=WEIGHT],...")
_NAMES = tyro.conf.arg(metavar="NAME,...")
_WHERE = tyro.conf.arg(metavar="here|elsewhere")
_PICTURE = tyro.conf.arg(metavar="FILE.png")

# Where each flag goes in the file; those of them that are counts, such as 30B, and those that are
# whole.
_PLACES = {
    "target_params": ("target", "params"),
    "target_name": ("target", "name"),
    "target_tokens": ("target", "tokens"),
    "vocab_size": ("target", "vocab_size"),
    "aspect_ratio": ("target", "aspect_ratio"),
    "kv_share": ("target", "kv_share"),
    "weight_bytes": ("target", "weight_bytes"),
    "draft_tokens": ("draft", "tokens"),
    "draft_aspect_ratio": ("draft", "aspect_ratio"),
    "draft_weight_bytes": ("draft", "weight_bytes"),
    "draft_devices": ("draft", "devices"),
    "hardware": ("hardware", "name"),
    "devices": ("hardware", "devices"),
    "price_per_hour": ("hardware", "price_per_hour"),
    "batch": ("workload", "batch"),
    "context": ("workload", "context"),
    "prompt_tokens": ("workload", "prompt_tokens"),
    "new_tokens": ("workload", "new_tokens"),
    "volume_tokens": ("workload", "volume_tokens"),
    "prefill": ("workload", "prefill"),
    "loss_law": ("laws", "loss"),
    "acceptance_law": ("laws", "acceptance"),
}

# Flags whose value is so large that one without its suffix is recognised.
_SIZES = {"target_params", "target_tokens", "draft_tokens"}


def codesign(
    file: Annotated[Path | None, tyro.conf.Positional, _FILE] = None,
    target_params: Annotated[str, _COUNT] = "",
    target_name: Annotated[str, _MODEL] = "",
    target_tokens: Annotated[str, _COUNT] = "",
    draft_tokens: Annotated[str, _COUNT] = "",
    hardware: Annotated[str, _DEVICE] = "",
    devices: Annotated[int | None, _NUMBER] = None,
    draft_devices: Annotated[int | None, _NUMBER] = None,
    batch: Annotated[float | None, _NUMBER] = None,
    context: Annotated[str, _COUNT] = "",
    prompt_tokens: Annotated[str, _COUNT] = "",
    new_tokens: Annotated[str, _COUNT] = "",
    prefill: Annotated[str, _WHERE] = "",
    candidates: Annotated[str, _COUNTS] = "",
    acceptance: Annotated[str, tyro.conf.arg(metavar="ALPHA")] = "",
    objective: Annotated[str, _WEIGHTS] = "",
    constraint: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, _LIMIT] = (),
    variables: Annotated[str, _NAMES] = "",
    price_per_hour: Annotated[float | None, _NUMBER] = None,
    volume_tokens: Annotated[str, _COUNT] = "",
    loss_law: Annotated[str, _LAW] = "",
    acceptance_law: Annotated[str, _LAW_OF_SEVERAL] = "",
    weight_bytes: Annotated[float | None, _NUMBER] = None,
    draft_weight_bytes: Annotated[float | None, _NUMBER] = None,
    cache_bytes: Annotated[float | None, _NUMBER] = None,
    vocab_size: Annotated[str, _COUNT] = "",
    aspect_ratio: Annotated[float | None, _NUMBER] = None,
    draft_aspect_ratio: Annotated[float | None, _NUMBER] = None,
    kv_share: Annotated[float | None, _NUMBER] = None,
    picture: Annotated[Path | None, _PICTURE] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Which draft and lookahead shall serve my target, on my hardware?

    Solved by gradient over any of draft size, lookahead, batch, training tokens, shape and target
    size, for any mix of speed, latency and cost, under constraints. Sizes are in the count of the
    loss law (total parameters, for the published ones but Kaplan's), and counts may be written 70e9
    or 70B. A file holds the whole problem (docs/codesign.md); flags override it.

    Args:
        file: the problem as TOML, sections [target], [draft], [hardware], [workload], [laws],
            [objective], [constraints], [variables] and [optimizer].
        target_params: size of the target.
        target_name: of the target, such as Qwen/Qwen3-32B, for engines and for published drafts
            with its tokenizer.
        target_tokens: training tokens of the target; 15T if left out.
        draft_tokens: training tokens of the draft; 1T if left out.
        hardware: a100, h100, h200, v5e, v6e, or the file of a device; h100 if left out.
        devices: that share the target by tensor parallelism; 1 if left out.
        draft_devices: of them that share the draft; all of them if left out, as vLLM and SGLang
            have it.
        batch: rows that are decoded together; 1 if left out.
        context: mean positions in the cache of a row; from the prompt, or 2048, if left out.
        prompt_tokens: of a request; from the context if left out.
        new_tokens: generated for a request; 256 if left out.
        prefill: whether the devices that decode read the prompts too, here (default), or others do,
            elsewhere.
        candidates: draft sizes to compare.
        acceptance: α that was measured with the one candidate; replaces the law.
        objective: what is to be small, with weights: seconds_per_token (default),
            cost_per_million_tokens, latency_seconds, ...
        constraint: a metric and the most it may be, such as latency_seconds=2; may be repeated.
        variables: what is chosen: draft_params,lookahead (default), batch, draft_tokens,
            aspect_ratio, target_params.
        price_per_hour: of a device, in any currency; needed by objectives and constraints in money.
        volume_tokens: that the draft will serve; 1T if left out.
        loss_law: besiroglu (default), hoffmann, hoffmann_unrounded, muennighoff, kaplan, or the
            JSON of a fit.
        acceptance_law: paper (default), or the JSON of a fit; FILE.json#NAME for one of several
            laws.
        weight_bytes: of a weight of the target; 2 if left out.
        draft_weight_bytes: of a weight of the draft; 2 if left out.
        cache_bytes: of an element of the caches of both; 2 if left out.
        vocab_size: of both; 128000 if left out.
        aspect_ratio: width over layers of the target; 100 if left out.
        draft_aspect_ratio: width over layers of the draft; 64 if left out.
        kv_share: key-value width over width of the target; 0.125 if left out.
        picture: draw the landscape over draft size and lookahead to this file.
        json: print JSON.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name in _PLACES and value not in (None, "")
    }
    changes = _changes(given)
    _add(changes, "draft", candidates=parse_sizes(candidates, "--candidates"))
    if cache_bytes is not None:
        _add(changes, "target", cache_bytes=cache_bytes)
        _add(changes, "draft", cache_bytes=cache_bytes)
    _add(changes, "objective", **_pairs(objective.split(","), "--objective", 1.0))
    _add(changes, "constraints", **_pairs(constraint, "--constraint", None))
    if acceptance:
        alpha = parse_share(acceptance, "--acceptance")
        require(
            0 < alpha < 1, f"the acceptance is {alpha:g}; it must lie in (0, 1){share_hint(alpha)}."
        )
        _add(changes, "draft", acceptance=alpha)
    if picture is not None:
        require(
            picture.suffix == ".png", f"the picture is to be {picture}; its name must end in .png."
        )

    from sdsl_jax.codesign.answer import answer
    from sdsl_jax.codesign.serving_problem import build
    from sdsl_jax.config.codesign_problem import load_problem

    problem = build(load_problem(file, changes, _names(variables)))
    # Nothing appears where the errors do not go to a terminal.
    with error_console().status(
        "solving; compiling takes up to a minute for a new kind of problem"
    ):
        found = answer(problem)
    if picture is not None:
        from sdsl_jax.codesign.answer import landscape_of, path_of
        from sdsl_jax.report.codesign_figure import draw_landscape

        surface, path = landscape_of(problem, found.solved), path_of(problem, found.solved)
        draw_landscape(surface, path, found.values, question(problem.config), picture)
    if json:
        print(json_module.dumps(found.values, indent=1, ensure_ascii=False, allow_nan=False))
        return
    print_answer(standard_console(), found.values, problem.config)


def _changes(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the flags say, by section and key."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        section, key = _PLACES[name]
        named = (section in ("hardware", "laws") or key in ("prefill", "name")) and isinstance(
            value, str
        )
        if isinstance(value, str) and not named:
            read = parse_size if name in _SIZES else parse_count
            value = read(value, f"--{name.replace('_', '-')}")
        _add(changes, section, **{key: value})
    return changes


def _add(changes: dict[str, dict[str, Any]], section: str, **values: Any) -> None:
    values = {k: v for k, v in values.items() if v != []}
    if values:
        changes.setdefault(section, {}).update(values)


def _names(text: str) -> list[str]:
    return [part.strip().replace("-", "_") for part in text.split(",") if part.strip()]


def _pairs(texts: Any, flag: str, otherwise: float | None) -> dict[str, float]:
    """METRIC=NUMBER, each once; without a number where there is one to fall back on."""
    found: dict[str, float] = {}
    for text in texts:
        name, mark, number = (part.strip() for part in text.partition("="))
        if not name:
            continue
        name = name.replace("-", "_")
        require(name not in found, f"{flag} names {name} twice; it may be named once.")
        try:
            found[name] = float(number) if mark else float(otherwise)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise SdslError(f"{flag} is {text!r}; it must be of the form METRIC=NUMBER.") from None
        require(
            found[name] > 0, f"{flag} gives {name} the value {found[name]:g}; it must be positive."
        )
    return found
