"""`sdsl measure`: what a draft is worth to a target, on prompts of one's own."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdsl_jax.cli.terminal import Terminal, standard_console
from sdsl_jax.errors import SdslError, require
from sdsl_jax.formatting import short_count

_FOLDER = tyro.conf.arg(metavar="DIR")


def measure(
    target: Annotated[Path, _FOLDER],
    draft: Annotated[Path, _FOLDER],
    prompts: Annotated[str, tyro.conf.arg(metavar="FILE|heldout|sotu")] = "heldout",
    lookahead: Annotated[str, tyro.conf.arg(metavar="GAMMA[,GAMMA...]")] = "1,2,4,8",
    count: Annotated[int, tyro.conf.arg(metavar="ROWS")] = 64,
    prompt_tokens: Annotated[int, tyro.conf.arg(metavar="TOKENS")] = 32,
    prompt_field: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    new_tokens: Annotated[int, tyro.conf.arg(metavar="TOKENS")] = 96,
    temperature: Annotated[float, tyro.conf.arg(metavar="T")] = 1.0,
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None,
    min_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None,
    verification: Annotated[Literal["token", "block"], tyro.conf.arg(metavar="token|block")] = "token",
    stop: Annotated[str, tyro.conf.arg(metavar="end|ID[,ID...]")] = "",
    seed: int = 0,
    batch: Annotated[int, tyro.conf.arg(metavar="ROWS")] = 32,
    confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.9,
    out: Annotated[Path | None, _FOLDER] = None,
    tokens: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """How much of what this draft proposes does this target accept?

    Decodes the prompts speculatively, once for each lookahead, and compares both models exactly on the target's own samples.
    A model is the folder that a study wrote: <study>/checkpoints/<rung>/model-<step>, or <rung> if it holds one model.

    Args:
        target: folder of the model to speed up.
        draft: folder of the model that proposes.
        prompts: a .txt file (a prompt a line), a .jsonl file (a row a line; rows of HellaSwag as they are), or held-out text of
            the target's own corpus (heldout) or of the embedded one (sotu).
        lookahead: drafts per round, each measured by a run of its own.
        count: prompts, spread evenly over the source.
        prompt_tokens: longest prompt; of a longer one in a file the last tokens are kept.
        prompt_field: field of the .jsonl rows that holds the prompt; prompt, text, ctx, or ctx_a with ctx_b if left out.
        new_tokens: tokens to generate for each prompt.
        temperature: of both models; 0 is greedy.
        top_k: sample from the K most probable tokens.
        top_p: sample from the most probable tokens that together reach P.
        min_p: sample from tokens at least P times as probable as the most probable one.
        verification: of drafts, one by one or as a block.
        stop: token ids after which a row stops; end is the tokenizer's end of a document.
        seed: of all sampling.
        batch: prompts decoded at a time.
        confidence: of the intervals.
        out: new folder for records: models.csv, acceptance.csv, survival.csv, events.parquet, measurement.json.
        tokens: file for what was generated.
        json: print one JSON object.
    """
    lookaheads = _whole_numbers(lookahead, "--lookahead")
    from sdsl_jax.data.prompts import load_prompts
    from sdsl_jax.data.tokenizer import END_ID
    from sdsl_jax.decoding import Model, Sampling
    from sdsl_jax.measurement import pair, pair_report
    from sdsl_jax.training import load_model_folder

    settings = pair.PairSettings(
        lookaheads=lookaheads,
        new_tokens=new_tokens,
        sampling=Sampling(temperature, top_k, top_p, min_p),
        verification=verification,
        stop_tokens=(END_ID,) if stop == "end" else _whole_numbers(stop, "--stop"),
        seed=seed,
        batch=batch,
        confidence=confidence,
    )
    target_model, draft_model = load_model_folder(target), load_model_folder(draft)
    pair_report.require_one_tokenizer(draft_model, target_model)
    chosen = load_prompts(
        prompts,
        target_model.tokenizer,
        count=count,
        max_tokens=prompt_tokens,
        data=target_model.data,
        field=prompt_field,
    )
    if out is not None:
        pair_report.require_new_folder(out)
    if tokens is not None:
        require(tokens.absolute().parent.is_dir(), f"cannot write {tokens}: its folder does not exist.")
        require(not tokens.is_dir(), f"cannot write {tokens}: it is a folder.")
    progress = None if json and not sys.stderr.isatty() else Terminal(Console(stderr=True))
    try:
        measured = pair.measure_pair(
            Model(draft_model.config, draft_model.params),
            Model(target_model.config, target_model.params),
            chosen,
            settings,
            progress,
        )
    finally:
        if progress is not None:
            progress.close()
    warnings = pair_report.input_warnings(draft_model, target_model, chosen, settings, count)
    warnings += pair_report.result_warnings(measured)
    answer = pair_report.report(draft_model, target_model, chosen, settings, measured, warnings)
    if tokens is not None:
        pair_report.write_tokens(tokens, chosen, measured, target_model.tokenizer)
    if out is not None:
        pair_report.write_records(out, draft_model, target_model, chosen, settings, measured, answer)
    if json:
        print(json_format.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        _print(standard_console(), answer)


def _whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        also = " or the word end" if flag == "--stop" else ""
        raise SdslError(f"{flag} is {text!r}; it must be whole numbers separated by commas{also}.") from None


def _cell(value: dict[str, float | None], digits: int = 3) -> str:
    if value["estimate"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['estimate']:.{digits}f}"
    return f"{value['estimate']:.{digits}f} ± {(value['high'] - value['low']) / 2:.{digits}f}"  # type: ignore[operator]


def _print(console: Console, answer: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for role in ("target", "draft"):
        m = answer[role]
        say(f"{role:<6}  {m['model_id']}: {short_count(m['params_total'])} parameters, loss {_loss(m)} nats")
    p, filters = answer["prompts"], [f"{n} {answer[n]:g}" for n in ("top_k", "top_p", "min_p") if answer[n] is not None]
    lengths = f"{p['shortest']}" if p["shortest"] == p["longest"] else f"{p['shortest']} to {p['longest']}"
    say(
        f"prompts {p['count']} of {p['available']} from {p['source']}, {lengths} tokens, {answer['new_tokens']} new each; "
        + ", ".join([f"temperature {answer['temperature']:g}", *filters, f"{answer['verification']} verification"])
    )
    say(
        f"\nacceptance α = {_cell(answer['alpha'])}, exact, on {answer['alpha_tokens']:,} tokens of the target's own samples\n"
    )
    rows = answer["per_lookahead"]
    table = Table(title="The decoder, by drafts per round", title_justify="left")
    table.add_column("lookahead γ", no_wrap=True)
    for row in rows:
        table.add_column(str(row["lookahead"]), justify="right")
    token = " (token verification)" if answer["verification"] == "block" else ""
    table.add_row("tokens per round τ", *(_cell(row["tokens_per_round"]) for row in rows))
    table.add_row(f"τ expected{token}", *(_cell(row["expected_tokens_per_round"]) for row in rows))
    table.add_row("accepted per tested draft", *(_cell(row["per_test"]) for row in rows))
    table.add_row("accepted per draft (TAR)", *(_cell(row["tar"]) for row in rows))
    table.add_row("α of the paper, from TAR", *(_cell(row["tar_alpha"]) for row in rows), end_section=True)
    for k in range(max(len(row["survival"]) for row in rows)):
        values = [_cell(row["survival"][k]) if k < len(row["survival"]) else "" for row in rows]
        table.add_row(f"first {k + 1} accepted, S_{k + 1}", *values)
    table.add_section()
    table.add_row("rounds", *(f"{row['rounds']:,}" for row in rows))
    table.add_row("self-check z", *("–" if row["self_check"] is None else f"{row['self_check']:+.2f}" for row in rows))
    console.print(table)
    _print_conventions(console, answer, rows)
    share = f"{answer['confidence']:.0%}"
    say(
        f"± is half of a {share} interval over prompts. α: chance that a draft is accepted, averaged over what the target\n"
        "writes. τ: tokens that one pass of the target yields, its own one included. τ expected follows from the\n"
        "probabilities of the two models alone. That τ agrees with it, and that z looks standard normal, speaks for the\n"
        "decoder's draws and accept tests. The second table counts rounds that began with room for γ + 1 tokens.\n"
        "Whether speculation pays: give τ and the cost of a draft step to sdsl lookahead."
    )
    for text in answer["warnings"]:
        say(f"warning: {text}")


def _loss(model: dict[str, Any]) -> str:
    return "–" if model["loss_nats"] is None else f"{model['loss_nats']:.3f}"


def _print_conventions(console: Console, answer: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(title="The same runs in the words of others; a: drafts accepted in a round", title_justify="left")
    table.add_column("convention", no_wrap=True)
    for row in rows:
        table.add_column(str(row["lookahead"]), justify="right", no_wrap=True)
    table.add_column("definition and source", overflow="fold")
    # Values of single positions are in the survival above and in the JSON.
    for name in (name for name in rows[0]["conventions"] if name in answer["convention_definitions"]):
        about = answer["convention_definitions"][name]
        cells = [f"{row['conventions'][name]['estimate']:.3f}" for row in rows]
        table.add_row(name, *cells, escape(f"{about['definition']} ({about['source']})"))
    console.print(table)
