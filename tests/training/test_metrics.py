import dataclasses
import json

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.training.metrics import MetricsFile, Tally, read_metrics, tensorboard


def losses():
    rng = np.random.default_rng(0)
    values = 3 + 2 * np.exp(-np.arange(400) / 50) + 0.05 * rng.standard_normal(400)
    values[[200, 300]] += 2.0
    return [float(x) for x in values]


def spikes(tally, values, deviations=6.0):
    return [i for i, x in enumerate(values) if tally.observe(x, False, deviations)]


def test_spikes_are_found_and_nothing_else():
    tally = Tally()
    assert spikes(tally, losses()) == [200, 300]
    assert (tally.spikes, tally.seen, tally.skipped) == (2, 400, 0)


def test_spikes_do_not_depend_on_where_a_run_was_cut():
    whole, cut = Tally(), Tally()
    expected = spikes(whole, losses())
    found = []
    for start in range(0, 400, 37):
        cut = Tally(**json.loads(json.dumps(dataclasses.asdict(cut))))
        found += [start + i for i in spikes(cut, losses()[start : start + 37])]
    assert found == expected
    assert cut == whole


@pytest.mark.parametrize("at", [60, 80, 110, 150, 300])
def test_a_spike_is_seen_while_the_loss_still_falls(at):
    """30 standard deviations of the noise, on a loss that falls by a third of that deviation a step at first."""
    rng = np.random.default_rng(2)
    values = 2 + 3.5 * np.exp(-np.arange(400) / 30) + 0.05 * rng.standard_normal(400)
    values[at] += 1.5
    assert spikes(Tally(), [float(x) for x in values]) == [at]


def test_few_false_alarms():
    """Gaussian noise exceeds six deviations in one of 1e9 steps; a noise that is itself estimated, about as seldom."""
    rng = np.random.default_rng(3)
    assert spikes(Tally(), (3 + 0.1 * rng.standard_normal(20_000)).tolist()) == []


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_level_and_noise_are_plain_while_few_and_follow_later(noise):
    tally, rng = Tally(), np.random.default_rng(1)
    values = 3 + noise * rng.standard_normal(50)
    for x in values[:10]:
        tally.observe(float(x), False, 6.0)
    assert tally.level == pytest.approx(values[:10].mean())
    for x in values[10:]:
        tally.observe(float(x), False, 6.0)
    assert tally.variance == pytest.approx((np.diff(values) ** 2).mean() / 2)
    found = spikes(tally, [100.0] * 400)  # a lasting rise becomes the level
    assert found[0] == 0
    assert len(found) < 50
    assert tally.level == pytest.approx(100, abs=1)


def test_skipped_steps_enter_no_level():
    tally = Tally(level=3.0, variance=0.1, latest=3.0, seen=60)
    assert not tally.observe(float("nan"), True, 6.0)
    assert not tally.observe(float("inf"), True, 6.0)
    assert (tally.level, tally.seen, tally.skipped, tally.skipped_in_a_row) == (3.0, 60, 2, 2)
    tally.observe(3.0, False, 6.0)
    assert (tally.skipped, tally.skipped_in_a_row) == (2, 0)


def write(file, *steps, value=1.0, last=False):
    for step in steps:
        file.add(step, loss_nats=value)
    file.flush(last)


def found(path):
    return [
        (line["step"], line["loss_nats"]) for line in map(json.loads, path.read_text().splitlines())
    ]


def test_lines_after_the_last_checkpoint_and_lines_cut_short_are_written_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), 0, 1, 2, 3)
    with open(path, "a") as file:
        file.write('{"step": 4, "loss_na')
    resumed = MetricsFile(path)
    write(resumed, 2, 3, value=2.0)
    write(resumed, 4, 5, value=2.0)
    assert found(path) == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_two_writers_neither_double_nor_lose_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    one, two = MetricsFile(path), MetricsFile(path)
    write(one, 0, 1)
    write(two, 0, 1, 2)
    write(one, 2, 3)
    write(one, 4)
    write(two, 3, 4, 5, last=True)
    write(one, 5, last=True)
    assert [step for step, _ in found(path)] == [0, 1, 2, 3, 4, 5]


def test_the_last_lines_mend_what_a_race_has_doubled(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), 0, 1)
    path.write_text(path.read_text() * 2)
    write(MetricsFile(path), 2, last=True)
    assert [step for step, _ in found(path)] == [0, 1, 2]


def test_values_that_are_not_finite_are_null(tmp_path):
    write(MetricsFile(tmp_path / "m"), 0, value=float("nan"))
    assert json.loads(read_metrics(tmp_path / "m")[0]) == {"step": 0, "loss_nats": None}


def test_tensorboard_without_its_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SdslError, match=r"needs the package tensorboardX; install sdsl_jax\[tensorboard\]"
    ):
        tensorboard(tmp_path, 0)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    board = tensorboard(tmp_path, 0)
    file = MetricsFile(tmp_path / "metrics.jsonl", board)
    write(file, 0, 1, value=2.5)
    file.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    data, scalars = events.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        record = data[12 : 12 + length]
        assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(record)
        event = Event.FromString(record)
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert scalars == [(0, "loss_nats", 2.5), (1, "loss_nats", 2.5)]
