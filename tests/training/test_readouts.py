"""Drafts that propose only the most frequent ids: a setting of a study."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.training import plan_rungs
from sdsl_jax.training.ladder import check_ladder


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


def test_the_most_frequent_ids(dataset):
    """By their number in the training split, ties by id, and always with the end of a document."""
    train = dataset.splits["train"][:]
    often = np.bincount(train, minlength=256)
    ids = dataset.frequent_ids(40)
    assert ids == tuple(sorted(ids))
    assert 0 in ids
    others = [i for i in range(256) if i not in ids]
    rank = lambda i: (-often[i], i)  # noqa: E731
    assert max(rank(i) for i in ids if i) < min(map(rank, others))
    for wrong in (1, 256):
        with pytest.raises(
            SdslError, match="the vocabulary has 256; it must be more than the 1 that"
        ):
            dataset.frequent_ids(wrong)


def test_every_draft_is_trained_once_for_each_readout(dataset, tmp_path):
    """Targets have all ids; rungs of all ids keep their folders, and the others have their own."""
    config = tiny(family={"readout": [0, 40, 24]})
    plans = plan_rungs(config, dataset, tmp_path)
    plain = plan_rungs(tiny(), dataset, tmp_path)
    assert {p.folder for p in plain} == {p.folder for p in plans if not p.rung.readout}
    assert len({p.folder for p in plans}) == len(plans) == 3 * 3 + 1
    for plan in plans:
        ids = plan.model.readout_ids
        assert len(ids) == plan.rung.readout
        assert plan.model.truncated == bool(ids)
        if ids:
            assert plan.rung.name == f"draft-{plan.rung.name.split('-')[1]}-{len(ids)}ids-s0"
            assert ids == dataset.frequent_ids(len(ids))
            same = dataclasses.replace(plan.model, readout_ids=(), truncated=False)
            assert same in [p.model for p in plain]
    check_ladder(config)
    with pytest.raises(SdslError, match="no draft of the study proposes all ids"):
        check_ladder(tiny(family={"readout": [24]}))
    with pytest.raises(SdslError, match="only drafts with tables of their own can be truncated"):
        tiny(family={"readout": [24]}, distil={"cut": "nested"})
