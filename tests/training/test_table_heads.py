"""Heads on their target's tables: the closed form that they start from, and their training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding.feature_drafter import Head, with_tables
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.measured_pair import measure_pair
from sdsl_jax.models import count, outputs
from sdsl_jax.models.feature_head import normalised_features, start_fusion, table_body
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table
from sdsl_jax.training import plan_rungs, rungs, train_rungs
from sdsl_jax.training.closed_form import NormalEquations, linear_start
from sdsl_jax.training.ladder import check_ladder

SHIPPED = Path("checkpoints/ladder/checkpoints/target-500k-s0.298f773084/model-11719")


def test_the_streamed_solution_is_that_of_all_rows_at_once():
    """λ·n is a row of √(λ·n) for each coefficient but the constant's; errors are those of the rows."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(size=(90, 6)), np.ones((90, 1))], axis=1)
    y = random.normal(size=(90, 3)) + x[:, :3]
    parts = [NormalEquations.of(x[i : i + 40], y[i : i + 40]) for i in (0, 40, 80)]
    summed = parts[0].plus(parts[1]).plus(parts[2])
    for strength in (0.0, 0.3):
        more = np.sqrt(strength * 90) * np.eye(7)[:6]
        stacked = np.concatenate([x, more]), np.concatenate([y, np.zeros((6, 3))])
        expected = np.linalg.lstsq(*stacked, rcond=None)[0]
        found = summed.ridge(strength)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        error = np.square(y - x @ found).sum(axis=1).mean()
        assert summed.error(found) == pytest.approx(error, rel=1e-12)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


@pytest.fixture(scope="module")
def target(measured_study):
    record = next(r for r in read_table(measured_study / "records", "models") if r.role == "target")
    return load_model_folder(measured_study / record.checkpoint)


def linear_size(target):
    width = target.config.width
    return 2 * width * width + width


def config_of(target, cache, blocks=0, readout=(), **changed):
    block = count(target.config, 0).nonembedding - target.config.width
    size = linear_size(target) + blocks * block // target.config.layers
    return tiny(
        family={"readout": list(readout)},
        ladder={"draft_params": [size], "draft_tokens": [4_000, 8_000]},
        training={"learning_rate": 1e-3, "evaluation_windows": 8},
        distil={
            "teacher": str(target.folder),
            "objective": "tv",
            "taps": [target.config.layers],
            "tables": "target",
            "unrolled": 3,
            "cache": str(cache),
        }
        | changed,
    )


class Notes(Silent):
    def __init__(self, stop_after=0):
        self.notes, self.training, self.left = [], False, stop_after

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total):
        self.training = stage == "train"

    def advance(self, amount, detail=""):
        if self.left and self.training:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def drafts(config, dataset, folder, progress=None):
    plans = [p for p in plan_rungs(config, dataset, folder) if p.rung.role == "draft"]
    return train_rungs(config, dataset, folder, plans, progress).records


def test_sizes_and_settings_of_heads_on_tables(dataset, tmp_path):
    """A size is a number of blocks; tables count in FLOPs alone."""
    target = load_model_folder(SHIPPED)
    config = config_of(target, tmp_path)
    for blocks, readout in ((0, ()), (1, (40,))):
        config = config_of(target, tmp_path, blocks, readout)
        plan = next(p for p in plan_rungs(config, dataset, tmp_path) if p.rung.role == "draft")
        assert plan.model.layers == blocks
        assert plan.counts.total == plan.counts.nonembedding
        assert plan.counts.nonembedding == pytest.approx(config.ladder.draft_params[0], rel=0.01)
        assert plan.model.readout_ids == (dataset.frequent_ids(40) if readout else ())
        if not blocks:
            width = target.config.width
            assert plan.counts.flops_per_token == 2 * width * (256 + 2 * width)
    with pytest.raises(SdslError, match=r"it must be \[3\], the last block of the teacher"):
        plan_rungs(config_of(target, tmp_path, taps=[2]), dataset, tmp_path)
    with pytest.raises(SdslError, match="must name the teacher's last block alone"):
        config_of(target, tmp_path, parallel=True)
    odd = dataclasses.replace(config.ladder, draft_params=(50,))
    with pytest.raises(SdslError, match=r"without blocks it has 28,920, and each block adds \d"):
        plan_rungs(dataclasses.replace(config, ladder=odd), dataset, tmp_path)
    check_ladder(config)


def test_a_target_that_a_head_cannot_be_on(dataset, tmp_path, monkeypatch):
    """One without a norm before its readout; and one with more rows than tokens, where all
    probabilities are compared."""
    target = load_model_folder(SHIPPED).config
    with pytest.raises(SdslError, match="needs a target with a norm before its readout"):
        table_body(dataclasses.replace(target, final_norm=False), 0)
    padded = dataclasses.replace(target, vocab_size=300)
    monkeypatch.setattr(rungs, "teacher_architecture", lambda distil: padded)
    config = config_of(load_model_folder(SHIPPED), tmp_path)
    with pytest.raises(SdslError, match=r"table of 300 rows .* 256 entries, .* set distil\.top"):
        plan_rungs(config, dataset, tmp_path)
    some = dataclasses.replace(config, distil=dataclasses.replace(config.distil, top=64))
    plan = next(p for p in plan_rungs(some, dataset, tmp_path) if p.rung.role == "draft")
    assert plan.model.ids == 300


@pytest.fixture(scope="module", params=[0, 1])
def trained(request, target, dataset, tmp_path_factory):
    """Heads of no block and of one, the latter with a truncated readout."""
    folder, notes = tmp_path_factory.mktemp("heads"), Notes()
    readout = (60,) if request.param else ()
    config = config_of(target, folder / "cache", request.param, readout)
    return config, folder, drafts(config, dataset, folder, notes), notes.notes


def by_draft(head, target, windows):
    overlaps = head_overlap(head, target.model, windows, first=0, drafts=3).drafts
    return [each.mean(0.9).estimate for each in overlaps]


@pytest.mark.slow
def test_a_head_starts_from_the_closed_form_and_learns(trained, target, dataset):
    """The start is the regression of a whole batch of windows, and training raises α of every draft. Its
    folder holds no table; without them it is bound to its target."""
    _, folder, records, notes = trained
    assert sum("the closed-form start explains" in note for note in notes) == 1
    last = load_model_folder(folder / records[-1].checkpoint)
    assert (last.record.kind, last.record.teacher_digest) == (
        "table-head",
        target.record.params_digest,
    )
    own = last.params
    assert sum(x.size for x in jax.tree.leaves(own)) == last.record.params_total
    if not last.head.body.layers:
        assert last.record.params_total == linear_size(target)
    windows = dataset.text("train").windows(64)[:, :-1]
    cache = {
        i: {"tokens": row, "features": f}
        for i, (row, f) in enumerate(
            zip(dataset.text("train").windows(64), features(target, windows))
        )
    }
    bound = with_tables(last.draft, target.model)
    start = linear_start(bound.params.tables, cache, range(64))
    x, y = rows_of(target, dataset.text("train").windows(64), features(target, windows))
    held_back = np.sqrt(start.strength * len(x)) * np.eye(x.shape[1])[:-1]
    stacked = (
        np.concatenate([x, held_back]),
        np.concatenate([y, np.zeros((len(held_back), y.shape[1]))]),
    )
    dense = np.linalg.lstsq(*stacked, rcond=None)[0]
    found = np.concatenate([start.embed, start.read, start.bias[None]])
    np.testing.assert_allclose(found, dense, rtol=1e-3, atol=1e-4)
    before = start_fusion(last.head, start.embed, start.read, start.bias, jax.random.key(0))
    was, now = (by_draft(Head(last.head, p), target, windows) for p in (before, own))
    assert (np.asarray(now) > np.asarray(was)).all()


def features(target, windows):
    last = (target.config.layers,)
    out = outputs(target.config, target.params, jnp.asarray(windows), taps=last)
    return np.asarray(normalised_features(out.features, 1))


def rows_of(target, windows, features):
    """Inputs and outputs of the regression, written out."""
    embedding = np.asarray(target.params["embedding"].get_value(), float)[windows[:, 1:-1]]
    embedding /= np.sqrt(np.square(embedding).mean(-1, keepdims=True) + 1e-6)
    known = features[:, :-1].astype(float)
    x = np.concatenate([embedding, known, np.ones((*known.shape[:2], 1))], axis=-1)
    return x.reshape(-1, x.shape[-1]), features[:, 1:].reshape(-1, features.shape[-1]).astype(float)


@pytest.mark.slow
def test_a_killed_head_ends_in_the_same_bits(trained, dataset, tmp_path):
    config, _, whole, _ = trained
    with pytest.raises(KeyboardInterrupt):
        drafts(config, dataset, tmp_path, Notes(12))
    again = drafts(config, dataset, tmp_path)
    assert [r.params_digest for r in again] == [r.params_digest for r in whole]
    assert [r.loss_nats for r in again] == [r.loss_nats for r in whole]


@pytest.mark.slow
def test_a_head_is_measured_with_its_own_target_alone(
    trained, target, measured_study, sdsl, tmp_path
):
    """The decoder agrees with the exact numbers, and the bound of a truncated readout holds."""
    _, folder, records, _ = trained
    path = folder / records[-1].checkpoint
    pair = measure_pair(path, target.folder, [[1, 2, 3], [4, 5]], lookaheads=(2,), new_tokens=12)
    assert 0 < pair.acceptance.estimate < 1
    other = next(
        r
        for r in read_table(measured_study / "records", "models")
        if r.model_id == "draft-2.5k-16k-s0"
    )
    with pytest.raises(SdslError, match="measure it with its own, the weights as loaded"):
        measure_pair(path, measured_study / other.checkpoint, [[1, 2, 3]])
    status, _, error = sdsl("export", path, "--out", tmp_path / "out")
    assert status == 2
    assert "no published layout holds" in error
