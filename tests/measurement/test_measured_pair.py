"""The doors for notebooks: two loaded models in, one typed result out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from published_checkpoints import copy_checkpoint

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.decoding import OnlineLookahead
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement import measure_pair, measured_pair, speculate
from sdsl_jax.measurement.latency import StepCosts
from sdsl_jax.measurement.pair_warnings import result_warnings, texts_alike, timing_warnings
from sdsl_jax.records import read_table
from sdsl_jax.records.documents import schema_of, to_json
from sdsl_jax.statistics import Interval

TEXTS = ["the house of", "a people", "we must go", "so it is", "Hope"] * 2
SMALL = dict(lookaheads=(1, 3), new_tokens=8, batch=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [load_model(copy_checkpoint(n, folder / n)) for n in ("smollm2", "llama-2")]


@pytest.fixture(scope="module")
def pair(models):
    return measure_pair(*models, TEXTS, **SMALL, replayed=4)


def test_strings_are_continued_by_the_target(models):
    draft, target = models
    run = speculate(draft, target, TEXTS[:3], lookahead=2, new_tokens=8, temperature=0.0)
    plain = speculate("ngram", target, TEXTS[:3], lookahead=1, new_tokens=8, temperature=0.0)
    assert run.texts == plain.texts
    assert [len(ids) for ids in run.tokens] == [8, 8, 8]
    assert run.texts == [target.tokenizer.decode(ids) for ids in run.tokens]
    assert 1 <= run.tokens_per_round <= 3
    assert f"acceptance {run.acceptance:.3f}" in repr(run)
    assert "<table>" in run._repr_html_()


@pytest.mark.slow
def test_a_rule_chooses_the_lookahead(models):
    draft, target = models
    settings = dict(new_tokens=8, temperature=0.0)
    plain = speculate("ngram", target, TEXTS[:3], lookahead=1, **settings)
    run = speculate(
        draft, target, TEXTS[:3], lookahead=OnlineLookahead(0.3), max_lookahead=2, **settings
    )
    assert run.texts == plain.texts
    with pytest.raises(SdslError, match="a lookahead rule needs max_lookahead"):
        speculate(draft, target, TEXTS[:3], lookahead=OnlineLookahead(0.3), **settings)
    with pytest.raises(SdslError, match="max_lookahead is 2; it belongs to a rule"):
        speculate(draft, target, TEXTS[:3], lookahead=2, max_lookahead=2, **settings)


def test_ids_and_paths_are_taken_as_well(models, monkeypatch):
    draft, target = models
    ids = [target.tokenizer.encode_prompt(text, 99).ids for text in TEXTS[:3]]
    options = dict(lookahead=2, new_tokens=4, seed=3, top_k=5)
    by_text = speculate(draft, target, TEXTS[:3], **options)
    by_ids = speculate(draft.folder, str(target.folder), ids, **options)
    for one, other in zip(by_text.tokens, by_ids.tokens):
        np.testing.assert_array_equal(one, other)
    for prompts, message in (
        ([], "there are no prompts"),
        (["a", [1]], "mix strings and token ids"),
        ([[1], []], "a prompt has no tokens"),
    ):
        with pytest.raises(SdslError, match=message):
            speculate(draft, target, prompts)


def test_one_lookahead_may_be_a_number(models, monkeypatch):
    monkeypatch.setattr(measured_pair, "measure_and_record", lambda *pair, **options: pair[-1])
    assert measure_pair(*models, TEXTS[:2], lookaheads=3).lookaheads == (3,)
    for lookaheads in ("1,4", 2.5, (), (1, "4")):
        with pytest.raises(SdslError, match="it must be a whole number such as 4, or several"):
            measure_pair(*models, TEXTS[:2], lookaheads=lookaheads)


def test_a_pair_has_a_table_and_a_report(pair):
    table = pair.table()
    assert list(table.index) == [1, 3]
    tau = pair.measurement.lookaheads[1].statistics.tokens_per_round
    assert table.loc[3, "tokens_per_round"] == tau.estimate
    assert table.loc[3, "tokens_per_round_high"] == tau.high
    assert pair.acceptance == pair.measurement.alpha
    for shown in (repr(table), table._repr_html_(), repr(table[table.columns[::-1]])):
        assert "..." not in shown
        assert all(name in shown for name in table)
    assert max(map(len, repr(table).splitlines())) <= 100
    assert f"α = {pair.acceptance.estimate:.3f} ±" in repr(pair)
    assert "<table" in pair._repr_html_()
    answer = pair.to_json()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert {*answer} == {*schema_of(type(pair.report()))}
    assert answer["alpha"]["estimate"] == pair.acceptance.estimate
    assert [row["lookahead"] for row in answer["expected"]] == [1, 2, 3]
    assert answer["per_lookahead"][1]["expected_tokens_per_round"] == pytest.approx(
        answer["expected"][2]["tokens_per_round"]
    )


def test_a_draft_is_compared_with_another_one(models, pair):
    """The target as the other draft is accepted always."""
    draft, target = models
    found = measure_pair(draft, target, TEXTS, **SMALL, against=target)
    assert found.acceptance == pair.acceptance
    assert found.comparison.alpha_against.estimate == pytest.approx(1, abs=1e-6)
    assert found.comparison.difference.estimate == pytest.approx(
        pair.acceptance.estimate - 1, abs=1e-6
    )
    assert found.comparison.answer.startswith("B's α is ")
    assert found.report().against.folder == str(target.folder)
    keys = schema_of(type(found.comparison))
    for name, entry in [*keys.items(), *keys["tv"]["keys"].items()]:
        assert entry["description"], name
    assert pair.comparison is None
    assert pair.report().against is None
    for wrong in (dict(draft=draft, against="ngram"), dict(draft="ngram", against=draft)):
        with pytest.raises(SdslError, match="n-grams have none; measure each by itself"):
            measure_pair(target=target, prompts=TEXTS, **SMALL, **wrong)


def test_greedy_texts_that_run_into_one_loop_are_warned_about():
    """Only what follows the first half of the new text counts, wherever in the loop a row is."""
    loop = np.tile(np.arange(9), 6)
    tokens = np.stack([np.r_[0, loop[i : i + 40]] for i in range(3)])
    own = np.random.default_rng(0).integers(10, 1000, (9, 41))
    decoded = SimpleNamespace(
        tokens=np.concatenate([tokens, own]), prompt_lengths=np.ones(12, int), lengths=[41] * 12
    )
    assert texts_alike(decoded) == 3
    run = SimpleNamespace(
        decoded=decoded, divergences=[], lookahead=1, statistics=SimpleNamespace(self_check=0.0)
    )
    assert result_warnings(SimpleNamespace(lookaheads=[run])) == []
    decoded.tokens[3, 1:] = loop[5:45]
    (warning,) = result_warnings(SimpleNamespace(lookaheads=[run]))
    assert warning.startswith("4 of 12 greedy texts run into the same 8 tokens: prompts are then")
    run.divergences = None  # sampled
    assert result_warnings(SimpleNamespace(lookaheads=[run])) == []
    decoded.lengths = [8] * 12
    assert texts_alike(decoded) == 0


def test_a_run_is_replayed_by_the_other_verification_and_at_other_temperatures(pair):
    for replay in pair.report().replay:
        assert replay.block_accepted.estimate >= replay.token_accepted.estimate - 1e-6
        assert replay.gain.estimate == pytest.approx(
            replay.block_accepted.estimate - replay.token_accepted.estimate, abs=1e-6
        )
        assert [t.temperature for t in replay.temperatures] == [0.0, 0.5, 1.5]
        assert all(0 <= t.alpha.estimate <= 1 for t in replay.temperatures)
    # With one draft per round both rules are the same.
    assert pair.report().replay[0].gain.estimate == pytest.approx(0, abs=1e-6)


def test_records_are_those_of_the_command(models, pair, tmp_path):
    pair.append_to(tmp_path / "records")
    rows = read_table(tmp_path / "records", "acceptance")
    assert rows[0].alpha == pair.acceptance.estimate
    written = json.loads((tmp_path / "records" / "measurements.json").read_text())
    assert written == [pair.to_json()]
    with pytest.raises(SdslError, match="already holds the draft smollm2"):
        pair.append_to(tmp_path / "records")


@pytest.mark.slow
def test_a_greedy_pair_decodes_the_target_s_own_text(models):
    pair = measure_pair(*models, TEXTS, **SMALL, temperature=0.0, replayed=2)
    assert [result.divergences for result in pair.measurement.lookaheads] == [[], []]
    assert [replay.temperatures for replay in pair.replays] == [[], []]
    assert to_json(pair.report())["per_lookahead"][0]["greedy_divergences"] == []


def test_costs_name_the_best_lookahead(pair, monkeypatch):
    costs = StepCosts(0.01, 0.1, {1: 0.9, 3: 1.2})
    assert costs.best_lookahead({1: 1.7, 3: 2.9}) == 3
    assert costs.best_lookahead({1: 1.7, 3: 1.9}) == 1
    assert StepCosts(0.01, None, {1: 1.5, 3: 3.0}).best_lookahead({1: 1.5, 3: 2.0}) == 1
    # A fallback with a lookahead of its own takes no more steps than that.
    few = costs._replace(most_steps=2)
    assert few.round_cost(3, 0.5) == pytest.approx(0.5 * 2 * 0.1 + 1.2)
    assert few.round_cost(1, 0.5) == costs.round_cost(1, 0.5)
    monkeypatch.setattr(measured_pair, "time_costs", lambda *arguments: costs)
    monkeypatch.setattr(measured_pair, "time_generation", lambda *arguments, **given: [])
    timed = measured_pair.measure_and_record(
        pair.draft, pair.target, pair.prompts, pair.settings, timed=1
    )
    report = timed.report().costs
    assert [(v.lookahead, v.target_steps) for v in report.verify_passes] == [(1, 0.9), (3, 1.2)]
    assert report.lookahead_command.startswith("sdsl lookahead --cost 0.1 --verify-cost 1")
    assert timed.table().loc[3, "verify_pass"] == 1.2


def test_no_command_where_every_draft_was_accepted(models, monkeypatch):
    """sdsl lookahead has no α for it: at α = 1 no lookahead is the best one."""
    monkeypatch.setattr(
        measured_pair, "time_costs", lambda *arguments: StepCosts(0.01, 0.1, {1: 1.0, 3: 1.2})
    )
    monkeypatch.setattr(measured_pair, "time_generation", lambda *arguments, **given: [])
    _, target = models
    pair = measure_pair(target, target, TEXTS, **SMALL)
    timed = measured_pair.measure_and_record(target, target, pair.prompts, pair.settings, timed=1)
    assert timed.measurement.lookaheads[-1].statistics.tokens_per_round.estimate == 4
    costs = timed.report().costs
    assert costs.draft_step == 0.1
    assert costs.lookahead_command is None


def test_too_large_a_replay_is_refused(models, monkeypatch):
    from sdsl_jax.measurement import pair as module

    monkeypatch.setattr(module, "_REPLAY_BYTES", 1000)
    with pytest.raises(SdslError, match=r"would take .* GiB; replay at most"):
        measure_pair(*models, TEXTS, **SMALL, replayed=2)


def test_times_that_are_not_positive_are_pointed_out():
    rows = [
        SimpleNamespace(lookahead=g, per_token_seconds=Interval(seconds, seconds, seconds))
        for g, seconds in ((0, 1e-3), (2, -1e-5))
    ]
    (warning,) = timing_warnings(rows)
    assert warning.startswith("the time per token at γ = 2 is not positive")
