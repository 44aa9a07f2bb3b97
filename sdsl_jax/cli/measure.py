"""`sdsl measure`: what a draft is worth to a target, on prompts of one's own."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdsl_jax.cli.arguments import WholeCount
from sdsl_jax.cli.terminal import Terminal, error_console, standard_console
from sdsl_jax.counts import parse_size, short_count
from sdsl_jax.errors import SdslError, require

_FOLDER = tyro.conf.arg(metavar="DIR")


def measure(
    target: Annotated[Path, _FOLDER],
    draft: Annotated[str, tyro.conf.arg(metavar="DIR|ngram")],
    prompts: Annotated[str, tyro.conf.arg(metavar="FILE|heldout|sotu")] = "heldout",
    lookahead: Annotated[str, tyro.conf.arg(metavar="GAMMA[,GAMMA...]")] = "1,2,4,8",
    count: Annotated[WholeCount, tyro.conf.arg(metavar="ROWS")] = 64,
    prompt_tokens: Annotated[WholeCount, tyro.conf.arg(metavar="TOKENS")] = 32,
    prompt_field: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    new_tokens: Annotated[WholeCount, tyro.conf.arg(metavar="TOKENS")] = 96,
    temperature: Annotated[float, tyro.conf.arg(metavar="T")] = 1.0,
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None,
    min_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None,
    verification: Annotated[
        Literal["token", "block"], tyro.conf.arg(metavar="token|block")
    ] = "token",
    stop: Annotated[str, tyro.conf.arg(metavar="end|ID[,ID...]")] = "",
    seed: int = 0,
    batch: Annotated[int, tyro.conf.arg(metavar="ROWS")] = 32,
    confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.9,
    timed: Annotated[int, tyro.conf.arg(metavar="PROMPTS")] = 4,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], tyro.conf.arg(metavar="TYPE")
    ] = "float32",
    devices: Annotated[int, tyro.conf.arg(metavar="COUNT")] = 1,
    special_tokens: Annotated[Literal["add", "none"], tyro.conf.arg(metavar="add|none")] = "add",
    chat_template: Annotated[str, tyro.conf.arg(metavar="none|own|FILE")] = "none",
    ignore_key: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")
    ] = (),
    target_train_tokens: Annotated[str, tyro.conf.arg(metavar="TOKENS")] = "",
    draft_train_tokens: Annotated[str, tyro.conf.arg(metavar="TOKENS")] = "",
    retokenised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Annotated[Path | None, _FOLDER] = None,
    tokens: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """How much of what this draft proposes does this target accept?

    Decodes the prompts speculatively, once for each lookahead, compares both models exactly on the
    target's own samples, and times single requests. A model is a folder that a study wrote
    (<study>/checkpoints/<rung>/model-<step>, or <rung> if it holds one model), or a published
    checkpoint: config.json, tokenizer.json and safetensors of GPT-2, GPT-NeoX, Llama, OPT, Qwen1.5
    to 3, Seed-OSS or a model of their layout; or a .gguf file of the llama architecture.

    Args:
        target: folder of the model to speed up.
        draft: folder of the model that proposes; or ngram, which copies what followed the last
            words before.
        prompts: a .txt file (a prompt a line), a .jsonl file (a row a line; rows of HellaSwag as
            they are), or held-out text of the target's own corpus (heldout) or of the embedded one
            (sotu).
        lookahead: drafts per round, each measured by a run of its own.
        count: prompts, spread evenly over the source.
        prompt_tokens: longest prompt; of a longer one in a file the last tokens are kept.
        prompt_field: field of the .jsonl rows that holds the prompt; prompt, text, ctx, or ctx_a
            with ctx_b if left out.
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
        timed: prompts whose generation is timed, one at a time; 0 for none.
        dtype: of the weights of published checkpoints.
        devices: that the weights of published checkpoints are split over.
        special_tokens: whether prompts get what a published tokenizer adds around them, such as a
            begin-of-text token.
        chat_template: prompts as they are; as a user's message in the target's own template; or in
            that of a file.
        ignore_key: setting of a published checkpoint that is read as if its file did not have it;
            may be given several times.
        target_train_tokens: tokens that a published target was trained on, such as 180B, for the
            records.
        draft_train_tokens: the same of a published draft.
        retokenised: models of different tokenizers: compare them on the target's text in the
            draft's tokens. Nothing is decoded.
        out: folder for records, new or with those of other pairs: models.csv, acceptance.csv,
            survival.csv, generation.csv, events.parquet, measurements.json; sdsl fit acceptance
            reads them.
        tokens: file for what was generated.
        json: print one JSON object.
    """
    lookaheads = _whole_numbers(lookahead, "--lookahead")
    require(timed >= 0, f"--timed is {timed}; it must not be negative.")
    require(devices >= 1, f"--devices is {devices}; it must be at least 1.")
    from sdsl_jax.checkpoints.loading import LoadOptions, load_model, require_ignored
    from sdsl_jax.data.prompts import load_prompts
    from sdsl_jax.decoding import Model, NgramDraft, Sampling, one_vocabulary
    from sdsl_jax.measurement import generation, pair, pair_records, pair_report
    from sdsl_jax.measurement.retokenised import retokenised_acceptance

    def settings_with(stop_tokens: tuple[int, ...]) -> pair.PairSettings:
        return pair.PairSettings(
            lookaheads=lookaheads,
            new_tokens=new_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p),
            verification=verification,
            stop_tokens=stop_tokens,
            seed=seed,
            batch=batch,
            confidence=confidence,
        )

    # Settings are checked before anything large is read; what ends a document is the target's to
    # say.
    settings = settings_with(() if stop == "end" else _whole_numbers(stop, "--stop"))
    progress = None if json and not sys.stderr.isatty() else Terminal(error_console())
    reading = LoadOptions(dtype, devices, special_tokens == "add", chat_template, ignore_key)
    try:
        target_model = _with_tokens(
            load_model(target, reading, progress), target_train_tokens, "--target-train-tokens"
        )
        if stop == "end":
            ends = target_model.tokenizer.end_ids
            require(
                bool(ends),
                f"the tokenizer of {target} names no token that ends a text; give its id to --stop.",
            )
            settings = settings_with(ends)
        source = pair_report.Draft(pair_report.NGRAM, None)
        if draft != pair_report.NGRAM:
            model = load_model(Path(draft), reading._replace(chat_template="none"), progress)
            model = _with_tokens(model, draft_train_tokens, "--draft-train-tokens")
            source = pair_report.Draft(model.record.model_id, model)
        require_ignored(ignore_key, target_model, *([] if source.model is None else [source.model]))
        chosen = load_prompts(
            prompts,
            target_model.tokenizer,
            count=count,
            max_tokens=prompt_tokens,
            data=target_model.data,
            field=prompt_field,
        )
        if retokenised:
            require(source.model is not None, "--retokenised compares two models; ngram is none.")
            require(
                out is None and tokens is None,
                "--retokenised decodes nothing; leave out --out and --tokens.",
            )
            assert source.model is not None
            compared = retokenised_acceptance(
                Model(source.model.config, source.model.params),
                Model(target_model.config, target_model.params),
                source.model.tokenizer,
                target_model.tokenizer,
                chosen,
                settings,
                progress,
            )
            found = pair_report.report_retokenised(
                source.model, target_model, chosen, settings, compared
            )
            _show(found, json, _print_retokenised)
            return
        how = pair_records.how_measured(settings, reading._asdict())
        if source.model is not None:
            pair_report.require_one_tokenizer(source.model, target_model)
        if out is not None:
            models = [model for model in (source.model, target_model) if model is not None]
            pair_records.require_same_models(out, *models)
            pair_records.require_room(
                out, pair_records.pair_name(source, target_model, chosen, settings), how
            )
        if tokens is not None:
            require(
                tokens.absolute().parent.is_dir(),
                f"cannot write {tokens}: its folder does not exist.",
            )
            require(not tokens.is_dir(), f"cannot write {tokens}: it is a folder.")
        verifier = Model(target_model.config, target_model.params)
        drafter: Model | NgramDraft = NgramDraft(verifier.config.ids)
        if source.model is not None:
            drafter, verifier = one_vocabulary(
                Model(source.model.config, source.model.params), verifier
            )
        measured = pair.measure_pair(drafter, verifier, chosen, settings, progress)
        times = []
        if timed:
            times = generation.time_generation(
                drafter, verifier, chosen, settings, timed, progress=progress
            )
    finally:
        if progress is not None:
            progress.close()
    warnings = pair_report.input_warnings(source.model, target_model, chosen, settings, count)
    warnings += pair_report.result_warnings(measured)
    answer = pair_report.report(
        source, target_model, chosen, settings, measured, times, warnings, how
    )
    if tokens is not None:
        pair_report.write_tokens(tokens, chosen, measured, target_model.tokenizer)
    if out is not None:
        pair_records.append_records(
            out, source, target_model, chosen, settings, measured, times, answer
        )
    _show(answer, json, _print)


def _show(answer: dict[str, Any], json: bool, table: Any) -> None:
    if json:
        print(json_format.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        table(standard_console(), answer)


def _with_tokens(model: Any, text: str, flag: str) -> Any:
    """The model with its training tokens on record, where a user says how many they were."""
    if not text:
        return model
    require(
        model.record.train_tokens == 0,
        f"{flag} is {text}, but {model.record.model_id} has {model.record.train_tokens:,} training tokens on record.",
    )

    return model._replace(
        record=dataclasses.replace(model.record, train_tokens=round(parse_size(text, flag)))
    )


def _whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        also = " or the word end" if flag == "--stop" else ""
        raise SdslError(
            f"{flag} is {text!r}; it must be whole numbers separated by commas{also}."
        ) from None


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
        say(f"{role:<6}  {m['model_id']}" + (f": {_about(m)}" if "params_total" in m else ""))
    p, filters = (
        answer["prompts"],
        [f"{n} {answer[n]:g}" for n in ("top_k", "top_p", "min_p") if answer[n] is not None],
    )
    lengths = (
        f"{p['shortest']}"
        if p["shortest"] == p["longest"]
        else f"{p['shortest']} to {p['longest']}"
    )
    say(
        f"prompts {p['count']} of {p['available']} from {p['source']}, {lengths} tokens, {answer['new_tokens']} new each; "
        + ", ".join(
            [
                f"temperature {answer['temperature']:g}",
                *filters,
                f"{answer['verification']} verification",
            ]
        )
    )
    if answer["alpha"] is not None:
        say(
            f"\nacceptance α = {_cell(answer['alpha'])}, exact, on {answer['alpha_tokens']:,} tokens of the target's own samples"
        )
    say("")
    rows = answer["per_lookahead"]
    table = Table(title="The decoder, by drafts per round", title_justify="left")
    table.add_column("lookahead γ", no_wrap=True)
    for row in rows:
        table.add_column(str(row["lookahead"]), justify="right")
    token = " (token verification)" if answer["verification"] == "block" else ""
    table.add_row("tokens per round τ", *(_cell(row["tokens_per_round"]) for row in rows))
    if answer["alpha"] is not None:
        table.add_row(
            f"τ expected{token}", *(_cell(row["expected_tokens_per_round"]) for row in rows)
        )
    table.add_row("accepted per tested draft", *(_cell(row["per_test"]) for row in rows))
    table.add_row("accepted per draft (TAR)", *(_cell(row["tar"]) for row in rows))
    table.add_row(
        "α of the paper, from TAR", *(_cell(row["tar_alpha"]) for row in rows), end_section=True
    )
    for k in range(max(len(row["survival"]) for row in rows)):
        values = [_cell(row["survival"][k]) if k < len(row["survival"]) else "" for row in rows]
        table.add_row(f"first {k + 1} accepted, S_{k + 1}", *values)
    table.add_section()
    table.add_row("rounds", *(f"{row['rounds']:,}" for row in rows))
    table.add_row(
        "self-check z",
        *("–" if row["self_check"] is None else f"{row['self_check']:+.2f}" for row in rows),
    )
    console.print(table)
    if answer["generation"]:
        _print_times(console, answer["generation"])
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


def _about(model: dict[str, Any]) -> str:
    parts = [f"{short_count(model['params_total'])} parameters"]
    if model["loss_nats"] is not None:
        parts.append(f"loss {model['loss_nats']:.3f} nats")
    if model["on_prompts"] is not None:
        on = model["on_prompts"]
        parts.append(
            f"on the prompts perplexity {_cell(on['perplexity'], 2)}, {_cell(on['bits_per_byte'])} bits per byte"
        )
    return ", ".join(parts)


def _print_times(console: Console, rows: list[dict[str, Any]]) -> None:
    title = f"Single requests of {rows[0]['new_tokens']} new tokens on this machine; medians of {rows[0]['requests']}"
    table = Table(title=title, title_justify="left")
    table.add_column("lookahead γ", no_wrap=True)
    for row in rows:
        table.add_column(str(row["lookahead"]) if row["lookahead"] else "none", justify="right")
    for name, label in (
        ("first_token_seconds", "first token (TTFT), ms"),
        ("per_token_seconds", "each further token (TPOT), ms"),
        ("total_seconds", "in all, ms"),
    ):
        table.add_row(label, *(f"{1e3 * row[name]['estimate']:.4g}" for row in rows))
    table.add_row(
        "speed-up", *(_cell(row["speedup"], 2) if row["lookahead"] else "1" for row in rows)
    )
    console.print(table)


def _print_retokenised(console: Console, answer: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(
        "Re-tokenised comparison of two tokenizers. This is no lossless decoding, and nothing was decoded.\n"
    )
    for role in ("target", "draft"):
        m = answer[role]
        say(
            f"{role:<6}  {m['model_id']}: {short_count(m['params_total'])} parameters, on the target's text "
            f"{_cell(m['bits_per_byte'])} bits per byte, {_cell(m['loss_nats'])} nats per token, "
            f"{m['tokens_per_stretch']:.2f} tokens a stretch"
        )
    say(
        f"\nre-tokenised acceptance = {_cell(answer['alpha_retokenised'])}, of {answer['stretches']:,} stretches between places "
        f"where both tokenizers cut\n± is half of a {answer['confidence']:.0%} interval over prompts."
    )
    for text in answer["warnings"]:
        say(f"warning: {text}")


def _print_conventions(
    console: Console, answer: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    table = Table(
        title="The same runs in the words of others; a: drafts accepted in a round",
        title_justify="left",
    )
    table.add_column("convention", no_wrap=True)
    for row in rows:
        table.add_column(str(row["lookahead"]), justify="right", no_wrap=True)
    table.add_column("definition and source", overflow="fold")
    # Values of single positions are in the survival above and in the JSON.
    for name in (
        name for name in rows[0]["conventions"] if name in answer["convention_definitions"]
    ):
        about = answer["convention_definitions"][name]
        cells = [f"{row['conventions'][name]['estimate']:.3f}" for row in rows]
        table.add_row(name, *cells, escape(f"{about['definition']} ({about['source']})"))
    console.print(table)
