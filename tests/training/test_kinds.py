"""Drafts cut out of a target, and nested ones: trained by a study, saved, and measured like any other."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.config import HEAD_KINDS
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding.exit_drafter import shared_blocks
from sdsl_jax.errors import SdslError
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.evidence.kinds import kinds as kinds_of
from sdsl_jax.models import count
from sdsl_jax.models.cuts import cut, leading
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table, write_table
from sdsl_jax.study import run_study
from sdsl_jax.training import plan_rungs, train_rungs


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


@pytest.fixture(scope="module")
def target(measured_study):
    record = next(r for r in read_table(measured_study / "records", "models") if r.role == "target")
    return load_model_folder(measured_study / record.checkpoint)


def config_of(target, cache, sizes, **distil):
    return tiny(
        family=distil.pop("family", {}),
        ladder={"draft_params": sizes, "draft_tokens": [4_000, 8_000]},
        training={"learning_rate": 1e-3, "evaluation_windows": 8},
        distil={"teacher": str(target.folder), "cache": str(cache)} | distil,
    )


def drafts(config, dataset, folder, progress=None):
    plans = [p for p in plan_rungs(config, dataset, folder) if p.rung.role == "draft"]
    return train_rungs(config, dataset, folder, plans, progress).records


class StopAt(Silent):
    """Interrupts training after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount, detail=""):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def size_of(config):
    return count(config, 0).nonembedding


@pytest.mark.slow
def test_an_early_exit_keeps_what_it_shares(target, dataset, tmp_path):
    """Bit by bit, weight decay or not; its readout learns."""
    exit_size = size_of(dataclasses.replace(target.config, layers=1, early_exit=True))
    config = config_of(target, tmp_path, [exit_size], objective="tv", cut="early-exit")
    first, last = drafts(config, dataset, tmp_path)
    assert (last.kind, last.trained_for) == ("early-exit", "early-exit tv")
    assert last.parent_digest == last.teacher_digest == target.record.params_digest
    loaded = load_model_folder(tmp_path / last.checkpoint)
    assert shared_blocks(loaded.model, target.model) == 1
    before, after = (np.asarray(m.params["embedding"].get_value()) for m in (target, loaded))
    assert np.abs(np.asarray(loaded.params["exit_head"].get_value()) - before).max() > 1e-3
    np.testing.assert_array_equal(before, after)
    assert np.abs(np.asarray(loaded.params["exit_map"].get_value())).max() > 1e-4
    # Forward passes of everything, and gradients of the readout alone.
    readout = 2 * loaded.config.width * (loaded.config.width + loaded.config.vocab_size)
    tokens = last.train_tokens
    assert last.train_flops == pytest.approx(tokens * (last.flops_per_token + 2 * readout))
    assert first.train_flops < last.train_flops


def nested(target, cache, **changed):
    family = {"layers": 2, "head_dim": 8}
    settings = dict(objective="hybrid", cut="nested", family=family) | changed
    return config_of(target, cache, [1_400, 6_000], **settings)


@pytest.mark.slow
def test_slices_of_a_nested_draft_are_models_of_their_own(target, dataset, tmp_path):
    """Each budget gives a folder for every slice, whose weights are the first of the whole's."""
    config = nested(target, tmp_path)
    records = drafts(config, dataset, tmp_path)
    assert {r.model_id for r in records} == {
        f"draft-{size}-{tokens}-nested-hybrid-s0"
        for size in ("1.4k", "6k")
        for tokens in ("4k", "8k")
    }
    by_id = {r.model_id: load_model_folder(tmp_path / r.checkpoint) for r in records}
    small, whole = (by_id[f"draft-{size}-8k-nested-hybrid-s0"] for size in ("1.4k", "6k"))
    config_of_slice, params = cut(whole.config, whole.params, leading(small.config))
    assert config_of_slice == small.config
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(small.params)):
        np.testing.assert_array_equal(one, other)
    assert small.record.train_flops == whole.record.train_flops
    assert whole.record.train_flops == pytest.approx(
        3
        * whole.record.train_tokens
        * (small.record.flops_per_token + whole.record.flops_per_token)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nested", "early-exit", "pruned"])
def test_a_killed_run_ends_in_the_same_bits(target, dataset, tmp_path, kind):
    sizes = {"early-exit": size_of(dataclasses.replace(target.config, layers=1, early_exit=True))}
    sizes["pruned"] = int(0.6 * size_of(target.config))

    def config(cache):
        if kind == "nested":
            return nested(target, cache)
        return config_of(target, cache, [sizes[kind]], objective="hybrid", cut=kind)

    whole = drafts(config(tmp_path / "a"), dataset, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        drafts(config(tmp_path / "a"), dataset, tmp_path / "b", StopAt(12))
    again = drafts(config(tmp_path / "a"), dataset, tmp_path / "b")
    assert [r.params_digest for r in again] == [r.params_digest for r in whole]


@pytest.mark.slow
def test_a_study_compares_kinds(target, measured_study, dataset, tmp_path, sdsl):
    """Drafts that others trained, measured and timed together; the answer is that of their rows."""
    kinds = {
        "pruned": config_of(
            target, tmp_path, [int(0.6 * size_of(target.config))], objective="tv", cut="pruned"
        ),
        "nested": nested(target, tmp_path, objective="tv"),
        "head": config_of(
            target, tmp_path, [600], objective="tv", init_from=str(measured_study), taps=[1]
        ),
    }
    for name, config in kinds.items():
        ladder = dataclasses.replace(config.ladder, target_params=(), target_tokens=())
        run_study(dataclasses.replace(config, ladder=ladder), tmp_path / name, only="train")
    config = tiny(
        ladder={
            "draft_params": [],
            "draft_tokens": [],
            "target_params": [],
            "target_tokens": [],
            "given_targets": [str(measured_study)],
            "given_drafts": [str(tmp_path / name) for name in kinds],
        },
        measure={"decode": "none"},
        clock={"lookaheads": [1], "repetitions": 2, "prompts": 2},
    )
    for stage in ("train", "measure", "clock"):
        records = run_study(config, tmp_path / "study", only=stage)
    assert {m.kind for m in records.models} == {""}
    assert {r.draft_id for r in records.runs} == {"", "draft-600-16k-s0"}
    answer = kinds_of(records)
    assert {r.kind for r in answer.results} == {"independent", *kinds}
    assert answer.domains == []
    rows = [r for r in records.measured_acceptance if r.estimator == "teacher_forced_samples"]
    elsewhere = [dataclasses.replace(r, domain="code", alpha=r.alpha / 2) for r in rows]
    write_table(tmp_path / "study" / "records", "conditions", [*rows, *elsewhere])
    again = kinds_of(StudyRecords(tmp_path / "study"))
    assert again.domains == ["code"]
    for one in again.results:
        assert one.domain_alpha["code"].estimate == pytest.approx(one.alpha.estimate / 2)
    by_id = {m.model_id: m for m in records.trained}
    for row in records.measured_rounds:
        if by_id[row.draft_id].kind not in HEAD_KINDS:
            step = by_id[row.draft_id].flops_per_token / target.record.flops_per_token
            assert row.round_cost == pytest.approx(1 + row.lookahead * step)
    for result in answer.results:
        best = max(
            r.tokens_per_round / r.round_cost
            for r in records.measured_rounds
            if (by_id[r.draft_id].kind or "independent", by_id[r.draft_id].params_nonembedding)
            == (result.kind, result.draft_params)
            and by_id[r.draft_id].train_tokens == result.train_tokens
        )
        assert result.speedup.estimate == pytest.approx(best)
        assert result.clock_lookahead == 1
    status, out, _ = sdsl(
        "codesign", "--kinds", "independent,nested,early-exit", "--study", tmp_path / "study"
    )
    assert status == 0
    assert "early-exit: no draft of this kind was trained and measured" in out
    assert "nested, tv: no law of this kind is fitted: 2 sizes were trained" in out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cut": "pruned", "teacher": ""}, "a part of the teacher, which needs distil.teacher"),
        ({"cut": "pruned", "taps": [1]}, "only one of them can be given"),
        ({"cut": "pruned", "init_from": "x"}, "distil.init_from must be left out"),
        ({"trained_blocks": 1}, "distil.cut must be 'early-exit'"),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(SdslError, match=message):
        tiny(distil={"teacher": "x"} | changed)
