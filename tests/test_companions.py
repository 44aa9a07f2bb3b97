"""Processes that train beside a study."""

import time
from types import SimpleNamespace

import pytest

from conftest import tiny
from sdsl_jax.checkpoints import model_folder
from sdsl_jax.data import load_dataset
from sdsl_jax.study import companions as module
from sdsl_jax.study.companions import companion_count, companions
from sdsl_jax.training.rungs import plan_rungs


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setattr(module, "computing_threads", lambda: 1)
    monkeypatch.setattr(module, "available_threads", lambda: 3)


def plan(flops, whole=False):
    return SimpleNamespace(flops=flops, models=[whole])


def test_a_companion_for_each_idle_processor_that_gains_by_it(monkeypatch, one_thread):
    monkeypatch.setattr(model_folder, "is_whole", lambda whole: whole)
    large, small = 1e12, 1e10
    assert companion_count([plan(large)] * 5) == 2
    assert companion_count([plan(large)] * 2) == 1
    assert companion_count([plan(large), plan(large, whole=True)]) == 0
    assert companion_count([plan(small)] * 5) == 0
    monkeypatch.setattr(module, "computing_threads", lambda: 2)
    assert companion_count([plan(large)] * 5) == 0


@pytest.mark.slow
def test_a_companion_trains_the_studys_models(tmp_path):
    config = tiny()
    plans = plan_rungs(config, load_dataset(config.data), tmp_path)
    with companions(config, tmp_path, 1):
        deadline = time.monotonic() + 120
        models = [model for plan in plans for model in plan.models]
        while time.monotonic() < deadline and not all(map(model_folder.is_whole, models)):
            time.sleep(0.5)
    assert all(map(model_folder.is_whole, models))


@pytest.mark.slow
def test_companions_end_with_a_study_that_fails(tmp_path, monkeypatch):
    started = []
    start = module._start
    monkeypatch.setattr(module, "_start", lambda *a: started.append(start(*a)) or started[-1])
    with pytest.raises(ZeroDivisionError), companions(tiny(), tmp_path, 1):
        raise ZeroDivisionError
    assert started[0].returncode is not None
