"""Two models in, one typed result out: decode prompts with a draft, or measure how much of it the
target accepts, with tables, a report and records."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from sdsl_jax.checkpoints.interop.checkpoint import DTYPES
from sdsl_jax.checkpoints.loading import DEFAULT_OPTIONS, LoadOptions, architecture, load_model
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.checkpoints.split import share_devices
from sdsl_jax.data.prompts import Prompts, encode_prompts, load_prompts, pad_prompts
from sdsl_jax.decoding import Head, HybridDraft, Model, NgramDraft, Sampling, one_vocabulary
from sdsl_jax.decoding.feature_drafter import with_tables
from sdsl_jax.decoding.lookahead import LookaheadRule
from sdsl_jax.errors import require
from sdsl_jax.measurement import pair_records, pair_report, pair_warnings
from sdsl_jax.measurement.against import NO_ALPHA, DraftComparison, compare_drafts
from sdsl_jax.measurement.events import CONVENTIONS, DecodedStatistics, summarise
from sdsl_jax.measurement.latency import (
    GenerationTimes,
    StepCosts,
    time_costs,
    time_generation,
)
from sdsl_jax.measurement.pair import (
    PairDraft,
    PairMeasurement,
    PairSettings,
    Replay,
    Samples,
    decode,
    loss_on_prompts,
    measure_models,
    replay_run,
)
from sdsl_jax.measurement.pair_records import PairName, PairRows
from sdsl_jax.measurement.pair_report import OnPrompts, PairReport
from sdsl_jax.models.weights import type_name
from sdsl_jax.notebook import table_of
from sdsl_jax.progress import Progress
from sdsl_jax.records.documents import document, to_json
from sdsl_jax.statistics import Interval

# Name of the draft that copies n-grams and is not a model.
NGRAM = "ngram"
# Of a prompt that a caller gives as a string, at most so many last tokens are kept.
_LONGEST_PROMPT = 512

AnyModel = LoadedModel | str | Path
AnyPrompts = Prompts | str | Path | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, repr=False)
class MeasuredPair:
    """A measured pair of models.

    Attributes:
      draft: The model that proposes; None for n-grams.
      target: The model that verifies.
      prompts: The prompts.
      settings: How the pair was measured.
      measurement: Exact acceptance and the runs of the decoder.
      times: Times of single requests; empty if none were timed.
      costs: Costs of the parts of a round; None if nothing was timed.
      replays: Counterfactuals of the runs; empty if none were asked for.
      options: How published checkpoints were read.
      requested: Prompts asked for; the source may have had fewer.
      against: Another draft, compared on the same samples of the target; None if there is none.
      comparison: The draft (A) compared with the other one (B); None if there is none.
    """

    draft: LoadedModel | None
    target: LoadedModel
    prompts: Prompts
    settings: PairSettings
    measurement: PairMeasurement
    times: list[GenerationTimes] = dataclasses.field(default_factory=list)
    costs: StepCosts | None = None
    replays: list[Replay] = dataclasses.field(default_factory=list)
    options: LoadOptions = DEFAULT_OPTIONS
    requested: int = 0
    against: LoadedModel | None = None
    comparison: DraftComparison | None = None

    @property
    def acceptance(self) -> Interval:
        """α: exact, on the target's own samples; where n-grams draft, accepted per tested draft at the
        first lookahead."""
        if self.measurement.alpha is not None:
            return self.measurement.alpha
        return self.measurement.lookaheads[0].statistics.per_test

    @property
    def name(self) -> PairName:
        """What identifies the measurement in a folder of records."""
        return pair_name(self.draft, self.target, self.prompts, self.settings)

    @property
    def warnings(self) -> list[str]:
        """What a reader should know, a sentence each."""
        warnings = (
            pair_warnings.input_warnings(
                self.draft, self.target, self.prompts, self.settings, self.requested
            )
            + pair_warnings.result_warnings(self.measurement)
            + pair_warnings.timing_warnings(self.times)
        )
        if self.draft is not None and self.against is not None:
            warnings += pair_warnings.comparison_warnings(self.draft, self.against, self.target)
        return list(dict.fromkeys(warnings))

    def table(self) -> pandas.DataFrame:
        """One row per lookahead: τ and its expectation, acceptance, self-check, and what was timed.

        Columns whose names end in _low and _high are the ends of intervals.
        """
        times = {each.lookahead: each for each in self.times}
        rows = []
        for result in self.measurement.lookaheads:
            s = result.statistics
            row: dict[str, Any] = {"lookahead": result.lookahead}
            for key, value in (
                ("tokens_per_round", s.tokens_per_round),
                ("expected_tokens_per_round", result.expected),
                ("accepted_per_test", s.per_test),
                ("tar", result.tar),
            ):
                if value is not None:
                    row |= value.columns(key)
            row |= {"rounds": s.rounds, "self_check": s.self_check}
            if s.fallback_share is not None:
                row |= s.fallback_share.columns("fallback_share")
            if self.costs is not None:
                row["verify_pass"] = self.costs.verify_pass[result.lookahead]
            if result.lookahead in times:
                row["speedup"] = times[result.lookahead].speedup.estimate
            rows.append(row)
        return _WholeTable(rows).set_index("lookahead")

    def report(self) -> PairReport:
        """The measurement as a document: what `sdsl measure --json` prints."""
        m, s, text = self.measurement, self.settings, self.measurement.text

        def describe(model: LoadedModel, role: str) -> pair_report.ModelReport:
            losses = self._losses(role, model)
            on_prompts = None
            if losses is not None and text is not None:
                share = text.given[role].sum() / text.positions.sum()
                on_prompts = OnPrompts.of(*losses, float(share))
            return pair_report.ModelReport.of(model, on_prompts)

        proposer: pair_report.ModelReport | pair_report.NgramReport | pair_report.HybridReport
        if self.draft is None:
            proposer = pair_report.NgramReport(NGRAM)
        else:
            proposer = describe(self.draft, "draft")
            if s.ngram_first:
                proposer = pair_report.HybridReport(self.name.draft_id, s.ngram_first, proposer)

        return document(
            PairReport,
            s,
            s.sampling,
            target=describe(self.target, "target"),
            draft=proposer,
            lossless=True,
            how=pair_records.how_measured(s, self.options._asdict()),
            alpha=m.alpha,
            alpha_tokens=m.positions,
            alpha_on_prompts=text and text.alpha,
            per_lookahead=[pair_report.LookaheadReport.of(result) for result in m.lookaheads],
            generation=self.times,
            convention_definitions={key: c._asdict() for key, c in CONVENTIONS.items()},
            prompts=pair_report.PromptsReport.of(self.prompts),
            stop_tokens=list(s.stop_tokens),
            warnings=self.warnings,
            expected=[document(pair_report.ExpectedReport, rounds) for rounds in m.expected],
            costs=self._costs(),
            replay=[pair_report.ReplayReport.of(each) for each in self.replays],
            against=self.against and pair_report.ModelReport.of(self.against, None),
            comparison=self.comparison,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; numbers that do not exist are None."""
        return to_json(self.report())

    def _losses(self, role: str, model: LoadedModel) -> tuple[Interval, Interval] | None:
        """A model's loss on the prompts, in nats per token and in bits per byte."""
        text, confidence = self.measurement.text, self.settings.confidence
        if text is None:
            return None
        return loss_on_prompts(
            text.nats[role], self.prompts, model.tokenizer, confidence, text.given[role]
        )

    def _costs(self) -> pair_report.CostsReport | None:
        if self.costs is None:
            return None
        c, command = self.costs, None
        # The command takes one α for all drafts; those of n-grams and of a model have two.
        if c.draft_step is not None and not self.settings.ngram_first:
            taus = {
                r.lookahead: r.statistics.tokens_per_round.estimate
                for r in self.measurement.lookaheads
            }
            best = c.best_lookahead(taus)
            length = f"{taus[best]:.4g}"
            # At γ + 1 every draft was accepted: α = 1 has no best lookahead.
            if float(length) < best + 1:
                command = (
                    f"sdsl lookahead --cost {c.draft_step:.4g} --verify-cost {max(c.verify_pass[best], 1.0):.4g} "
                    f"--acceptance-length {length} --at-lookahead {best}"
                )
        passes = [pair_report.VerifyCost(*item) for item in c.verify_pass.items()]
        rounds = []
        for result in self.measurement.lookaheads if self.draft is None or c.draft_step else ():
            s = result.statistics
            share = 1.0 if s.fallback_share is None else s.fallback_share.estimate
            cost = c.round_cost(result.lookahead, share)
            speedup = s.tokens_per_round.estimate / cost
            rounds.append(pair_report.RoundCost(result.lookahead, cost, speedup))
        return pair_report.CostsReport(c.target_step, c.draft_step, passes, command, rounds)

    def append_to(self, folder: str | Path) -> None:
        """Adds the pair to a folder of records, which `sdsl fit acceptance` reads.

        A model whose loss is not on record gets its loss on these prompts.

        Raises:
          SdslError: the folder cannot be written to or is damaged, holds this pair already, pairs
            measured in another way, or another model of the same name.
        """
        folder = Path(folder)
        _prepare(folder, self.draft, self.target, self.prompts, self.settings, self.options)
        self._append(folder)

    def _append(self, folder: Path) -> None:
        rows, m, clusters = (
            PairRows(self.name, self.settings.confidence),
            self.measurement,
            len(self.prompts.lengths),
        )
        models = []
        for role, model in (("draft", self.draft), ("target", self.target)):
            if model is not None:
                losses = self._losses(role, model)
                models.append(pair_records.with_loss(model.record, role, losses))
        acceptance, survival = [], []
        if m.alpha is not None:
            acceptance.append(
                rows.acceptance("teacher_forced_samples", 0, m.alpha, clusters, m.positions)
            )
        if m.text is not None:
            tokens = int(m.text.positions.sum())
            acceptance.append(
                rows.acceptance("teacher_forced_text", 0, m.text.alpha, clusters, tokens)
            )
        for result in m.lookaheads:
            more, survived = rows.decoded(result.lookahead, result.statistics, clusters)
            acceptance += more
            survival += survived
        # The target alone is timed with every draft: one row each tells what a speed-up refers to.
        dtype = type_name(self.target.params)
        pair_records.append_pair(
            folder,
            self.name,
            models,
            self.report(),
            acceptance=acceptance,
            survival=survival,
            generation=[rows.generation(each, dtype) for each in self.times],
            events=[rows.events(result.lookahead, result.decoded) for result in m.lookaheads],
        )

    def __repr__(self) -> str:
        return (
            f"MeasuredPair({self.name.draft_id} for {self.name.target_id}: "
            f"α = {self.acceptance:.3f})\n{_brief(self.table())}"
        )

    def _repr_html_(self) -> str:
        title = f"{self.name.draft_id} for {self.name.target_id}"
        return (
            f"<p><b>{html.escape(title)}</b>: α = {self.acceptance:.3f}</p>"
            f"{_brief(self.table()).to_html(float_format='{:.3f}'.format)}"
        )


class _WholeTable(pandas.DataFrame):
    """A table that shows every column; pandas by itself leaves out the middle ones of a wide table."""

    @property
    def _constructor(self) -> type[_WholeTable]:
        return _WholeTable

    def __repr__(self) -> str:
        return self.to_string(line_width=100, float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        return self.to_html(float_format="{:.4g}".format)


def _brief(table: pandas.DataFrame) -> pandas.DataFrame:
    """A table without the ends of intervals."""
    return table[[name for name in table if not str(name).endswith(("_low", "_high"))]]


@dataclass(frozen=True, repr=False)
class Speculation:
    """Continuations of prompts, decoded with a draft.

    Attributes:
      texts: The new text of each prompt.
      tokens: The new token ids of each prompt.
      statistics: Statistics of the run. Under a rule, survival counts rounds with fewer drafts as lost,
        and the TAR has no meaning.
    """

    texts: list[str]
    tokens: list[np.ndarray]
    statistics: DecodedStatistics

    @property
    def tokens_per_round(self) -> float:
        """τ: tokens that one pass of the target yields, its own one included."""
        return self.statistics.tokens_per_round.estimate

    @property
    def acceptance(self) -> float:
        """Accepted over tested drafts."""
        return self.statistics.per_test.estimate

    def __repr__(self) -> str:
        return (
            f"Speculation({len(self.texts)} texts, {self.tokens_per_round:.2f} tokens per round, "
            f"acceptance {self.acceptance:.3f})"
        )

    def _repr_html_(self) -> str:
        return table_of(repr(self), {str(i): text for i, text in enumerate(self.texts)})


def speculate(
    draft: AnyModel,
    target: AnyModel,
    prompts: AnyPrompts,
    lookahead: int | LookaheadRule = 4,
    new_tokens: int = 96,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    max_lookahead: int | None = None,
    options: LoadOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
    **settings: Any,
) -> Speculation:
    """Continues prompts by lossless speculative decoding.

    Args:
      draft: The drafter: a loaded model, a path to one, or "ngram".
      target: The model whose text is decoded: a loaded model or a path.
      prompts: Strings, or sequences of token ids.
      lookahead: Drafts per round, γ (num_speculative_tokens); or a rule of `sdsl_jax.decoding` that
        chooses them in every round: `OnlineLookahead`, `ConfidenceThreshold`, `SharedBudget`.
      new_tokens: Tokens to generate for each prompt (max_new_tokens); more than the lookahead.
      temperature: Sampling temperature; 0 for greedy decoding.
      seed: Seed of the sampling.
      max_lookahead: Most drafts of a row in a round; required with a rule, and only then allowed.
      options: How to read published checkpoints.
      progress: Reports progress while models are read.
      **settings: Filters of the sampling (top_k, top_p, min_p), and other fields of `PairSettings`:
        verification, stop_tokens, batch, ngram_first.

    Raises:
      SdslError: an argument is out of range, a model cannot be read, or the two have different
        tokenizers.
    """
    rule = lookahead if isinstance(lookahead, LookaheadRule) else None
    require(
        (max_lookahead is None) == (rule is None),
        "a lookahead rule needs max_lookahead, the most drafts of a row in a round."
        if rule
        else f"max_lookahead is {max_lookahead}; it belongs to a rule, and the lookahead is {lookahead!r}.",
    )
    widest = _whole_numbers(lookahead if rule is None else max_lookahead)
    how = _settings(widest, new_tokens, temperature, seed, **settings)
    draft_model, target_model = _load_pair(draft, target, options, how, progress)
    chosen = _as_prompts(prompts, draft_model, target_model)
    pair = _decoding_pair(draft_model, target_model, how)
    decoded = decode(*pair, chosen, max(widest), how, rule=rule)
    tokens = [
        np.asarray(ids[begin:end])
        for ids, begin, end in zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths)
    ]
    texts = [target_model.tokenizer.decode(ids) for ids in tokens]
    return Speculation(texts, tokens, summarise(decoded, max(widest), how.confidence))


def measure_pair(
    draft: AnyModel,
    target: AnyModel,
    prompts: AnyPrompts = "heldout",
    lookaheads: int | Sequence[int] = (1, 2, 4, 8),
    new_tokens: int = 96,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    count: int = 64,
    prompt_tokens: int = 32,
    timed: int = 0,
    replayed: int = 0,
    against: AnyModel | None = None,
    options: LoadOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
    **settings: Any,
) -> MeasuredPair:
    """Measures how much of what a draft proposes a target accepts; `sdsl measure` as a function.

    Args:
      draft: The drafter: a loaded model, a path to one, or "ngram".
      target: The model to speed up: a loaded model or a path.
      prompts: Strings or sequences of token ids; or a source, as for `sdsl measure --prompts`: a
        .txt or .jsonl file, "heldout" or "sotu".
      lookaheads: Drafts per round, γ (num_speculative_tokens); of several, each is measured by a run
        of its own.
      new_tokens: Tokens to generate for each prompt (max_new_tokens).
      temperature: Sampling temperature of both models; 0 for greedy decoding.
      seed: Seed of all sampling.
      count: Prompts to take from a source.
      prompt_tokens: Longest prompt taken from a source.
      timed: Prompts whose generation is timed, one at a time; 0 for none.
      replayed: Prompts whose run is replayed with all distributions; 0 for none.
      against: Another draft, to compare on the same samples of the target.
      options: How to read published checkpoints.
      progress: Reports progress after every batch.
      **settings: Filters of the sampling (top_k, top_p, min_p), and other fields of `PairSettings`:
        verification, stop_tokens, batch, confidence, ngram_first.

    Raises:
      SdslError: an argument is out of range, a model or the prompts cannot be read, or the two have
        different tokenizers.
    """
    how = _settings(_whole_numbers(lookaheads), new_tokens, temperature, seed, **settings)
    draft_model, target_model = _load_pair(draft, target, options, how, progress)
    other = None
    if against is not None:
        require(against != NGRAM, NO_ALPHA)
        other, _ = _load_pair(against, target_model, options, how, progress)
    return measure_and_record(
        draft_model,
        target_model,
        _as_prompts(prompts, draft_model, target_model, count, prompt_tokens),
        how,
        timed=timed,
        replayed=replayed,
        against=other,
        options=options,
        requested=count if isinstance(prompts, str | Path) else 0,
        progress=progress,
    )


def measure_and_record(
    draft: LoadedModel | None,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    *,
    timed: int = 0,
    replayed: int = 0,
    against: LoadedModel | None = None,
    out: Path | None = None,
    options: LoadOptions = DEFAULT_OPTIONS,
    requested: int = 0,
    progress: Progress | None = None,
    drawn: dict[int, Samples] | None = None,
) -> MeasuredPair:
    """Measures a pair of loaded models, and adds it to a folder of records if there is one.

    The folder is checked before anything is decoded.

    Args:
      draft: The model that proposes; None for n-grams.
      target: The model that verifies.
      prompts: The prompts.
      settings: How to measure.
      timed: Prompts whose generation is timed; 0 for none.
      replayed: Prompts whose run is replayed; 0 for none.
      against: Another draft, to compare on the same samples of the target; it is not decoded.
      out: Folder of records.
      options: How published checkpoints were read.
      requested: Prompts that were asked for.
      progress: Reports progress after every batch.
      drawn: Samples of the target by earlier calls, see `measure_models`.

    Raises:
      SdslError: the models have different tokenizers, the folder cannot take the pair, or the
        decoder fails.
    """
    for model in (draft, against):
        if model is not None:
            pair_warnings.require_one_tokenizer(model, target)
            pair_warnings.require_own_target(model, target)
    require(against is None or (draft is not None and not settings.ngram_first), NO_ALPHA)
    drafter, verifier = _decoding_pair(draft, target, settings)
    if out is not None:
        _prepare(out, draft, target, prompts, settings, options)
    work = drafter, verifier, prompts, settings
    measured = measure_models(*work, progress, against and against.draft, drawn)
    comparison = None
    if measured.exact is not None and measured.against is not None:
        comparison = compare_drafts(measured.exact, measured.against, settings)
    pair = MeasuredPair(
        draft,
        target,
        prompts,
        settings,
        measured,
        times=time_generation(*work, timed, progress=progress) if timed else [],
        costs=time_costs(*work) if timed else None,
        replays=[replay_run(*work, lookahead, replayed) for lookahead in settings.lookaheads]
        if replayed
        else [],
        options=options,
        requested=requested,
        against=against,
        comparison=comparison,
    )
    if out is not None:
        pair._append(out)
    return pair


def _whole_numbers(lookaheads: Any) -> tuple[int, ...]:
    """Lookaheads as they are given: one whole number or several."""
    several = lookaheads if isinstance(lookaheads, Iterable) else (lookaheads,)
    given = () if isinstance(lookaheads, str) else tuple(several)
    require(
        given and all(isinstance(one, Integral) for one in given),
        f"the lookahead is {lookaheads!r}; it must be a whole number such as 4, or several such as (1, 2, 4).",
    )
    return tuple(map(int, given))


def _settings(
    lookaheads: tuple[int, ...],
    new_tokens: int,
    temperature: float,
    seed: int,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    **others: Any,
) -> PairSettings:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    return PairSettings(lookaheads, new_tokens, sampling, seed=seed, **others)


def pair_name(
    draft: LoadedModel | None, target: LoadedModel, prompts: Prompts, settings: PairSettings
) -> PairName:
    """What identifies a measurement in a folder of records."""
    draft_id = NGRAM if draft is None else draft.record.model_id
    if settings.ngram_first:
        draft_id = f"{NGRAM}{settings.ngram_first}+{draft_id}"
    temperature = float(settings.sampling.temperature)
    return PairName(draft_id, target.record.model_id, temperature, prompts.domain)


def _prepare(
    folder: Path,
    draft: LoadedModel | None,
    target: LoadedModel,
    prompts: Prompts,
    settings: PairSettings,
    options: LoadOptions,
) -> None:
    """Makes a folder for records, after checking that it may take this pair."""
    models = [model for model in (draft, target) if model is not None]
    name = pair_name(draft, target, prompts, settings)
    pair_records.require_same_models(folder, *models)
    pair_records.require_one_text(folder, models, name)
    how = pair_records.how_measured(settings, options._asdict())
    pair_records.prepare_output_dir(folder, name, how)


def _decoding_pair(
    draft: LoadedModel | None, target: LoadedModel, settings: PairSettings
) -> tuple[PairDraft, Model]:
    """Both models with one vocabulary, as the decoder takes them, with n-grams first where they are asked
    for."""
    if draft is None:
        require(
            not settings.ngram_first,
            "n-grams that draft first need a model to fall back on; give one as the draft, or leave out ngram_first "
            "(--ngram-first).",
        )
        return NgramDraft(target.config.ids), target.model
    model: Model | Head
    if draft.head is not None:
        model, verifier = with_tables(Head(draft.head, draft.params), target.model), target.model
    else:
        model, verifier = one_vocabulary(draft.model, target.model)
    if not settings.ngram_first:
        return model, verifier
    return HybridDraft(
        NgramDraft(verifier.config.ids, max(3, settings.ngram_first), settings.ngram_first), model
    ), verifier


def draft_options(
    draft: AnyModel,
    target: AnyModel,
    options: LoadOptions,
    settings: PairSettings,
    prompt_tokens: int,
    progress: Progress | None,
) -> LoadOptions:
    """How to read the draft of a pair. Where devices share the target, says first what each of them will
    hold, before anything is read.

    Args:
      draft: The drafter.
      target: The target.
      options: How the target is read.
      settings: How the pair is measured.
      prompt_tokens: Longest prompt.
      progress: Is given the memory as a note.

    Raises:
      SdslError: There are too few devices, or a path holds no model.
    """
    options = options._replace(chat_template="none")
    if options.devices == 1:
        return options
    models = [
        model.config if isinstance(model, LoadedModel) else architecture(model, options.ignore_keys)
        for model in (target, draft)
        if model != NGRAM
    ]
    lookahead = max(settings.lookaheads)
    sharing = share_devices(
        models[0],
        models[1] if len(models) > 1 else None,
        options.devices,
        np.dtype(DTYPES[options.dtype]).itemsize,
        rows=settings.batch,
        positions=prompt_tokens + settings.new_tokens + lookahead,
        width=lookahead + 1,
    )
    if progress is not None:
        progress.note(str(sharing))
    return options._replace(repeated=sharing.repeated)


def _load_pair(
    draft: AnyModel,
    target: AnyModel,
    options: LoadOptions,
    settings: PairSettings,
    progress: Progress | None,
) -> tuple[LoadedModel | None, LoadedModel]:
    """Reads the models that are given by their paths."""
    drafting = draft_options(draft, target, options, settings, _LONGEST_PROMPT, progress)
    if not isinstance(target, LoadedModel):
        target = load_model(target, options, progress)
    if draft == NGRAM:
        return None, target
    if not isinstance(draft, LoadedModel):
        draft = load_model(draft, drafting, progress)
    pair_warnings.require_one_tokenizer(draft, target)
    return draft, target


def _as_prompts(
    prompts: AnyPrompts,
    draft: LoadedModel | None,
    target: LoadedModel,
    count: int = 64,
    longest: int = 32,
) -> Prompts:
    """Prompts of any form in the target's ids; `count` and `longest` are for a source of prompts. Text
    is held out of the target's training, or else the draft's."""
    if isinstance(prompts, Prompts):
        return prompts
    if isinstance(prompts, str | Path):
        data = target.data or (draft.data if draft else None)
        return load_prompts(
            str(prompts), target.tokenizer, count=count, max_tokens=longest, data=data
        )
    items: list[Any] = list(prompts)
    require(items, "there are no prompts; give at least one.")
    kinds = [isinstance(item, str) for item in items]
    require(
        all(kinds) or not any(kinds),
        "the prompts mix strings and token ids; give all of one kind.",
    )
    if all(kinds):
        return encode_prompts(items, target.tokenizer, _LONGEST_PROMPT, "given prompts")
    rows = [np.asarray(item, np.int32).reshape(-1) for item in items]
    require(all(map(len, rows)), "a prompt has no tokens; each needs at least one.")
    return pad_prompts(rows, "given prompts", len(rows), 0)
