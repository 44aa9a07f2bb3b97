"""Devices as files: what ships with the package, what is written and read back, and what is refused."""

import dataclasses
import math

import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.hardware import Calibration, known_hardware, load_hardware, save_hardware
from sdsl_jax.theory.hardware import Hardware, Load, Precision, Shape, pass_time

CALIBRATION = Calibration("2026-11-25", "0.10.2", "float32", 1, 80, 18, 27, 0.06, 0.2, 0.04, 0.01)


def test_every_preset_loads_and_is_sane():
    assert known_hardware() == ("a100", "h100", "h200", "v5e", "v6e")
    for name in known_hardware():
        file = load_hardware(name)
        h = file.hardware
        assert file.name == name
        assert file.precision == Precision(2.0, 2.0)
        # Nobody measured these, and they say so.
        assert not file.measured
        assert file.calibration is None
        assert any("assumed" in note and "sdsl calibrate" in note for note in file.notes)
        assert file.source
        assert 5e11 < h.bytes_per_second < 1e13
        assert 1e14 < h.flops_per_second < 2e15
        # A bfloat16 pass of one row is bound by memory on all of them, by a factor of 100 or more.
        assert 100 < h.flops_per_second / h.bytes_per_second < 1000
        assert 1e-6 < h.layer_seconds < 2e-4
        assert 1e11 < h.link_bytes_per_second < 1e12
        assert 1e-7 < h.link_seconds < 1e-5
        assert 1e10 < h.memory_bytes < 2e11
        assert h.price_per_hour == 0


@pytest.mark.parametrize(
    ("name", "shape", "seconds", "tolerance"),
    [
        # gpt-fast, Llama-2-7B: 104.9 tokens/s; Hazy Research, Llama-3.2-1B: half of the bandwidth.
        ("a100", Shape(6.48e9, 32, 4096, 4096, 4096, 32000, 2), 1 / 104.9, 0.05),
        ("h100", Shape(0.973e9, 16, 2048, 2048, 512, 128256, 1), 2 * 2.47e9 / 3.35e12, 0.05),
    ],
)
def test_presets_give_the_times_that_they_were_derived_from(name, shape, seconds, tolerance):
    file = load_hardware(name)
    found = float(pass_time(file.hardware, shape, file.precision, Load(1.0)))
    assert found == pytest.approx(seconds, rel=tolerance)


def test_round_trip(tmp_path):
    preset = load_hardware("H100")
    measured = dataclasses.replace(
        preset,
        name="mine",
        hardware=Hardware(1e-5, 2e-5, 0.0, 1e10, 2e10, sharpness=2.5, round_seconds=3e-6),
        measured=True,
        calibration=CALIBRATION,
        notes=("One note.",),
    )
    for file in (preset, measured):
        path = tmp_path / "new" / f"{file.name}.toml"
        save_hardware(file, path)
        again = load_hardware(path)
        assert again == file
        assert load_hardware(str(path)) == file
    text = path.read_text()
    # What is unknown is absent, and read as what makes it vanish.
    assert "price" not in text.split("[hardware]")[1]
    assert math.isinf(again.hardware.link_bytes_per_second)
    assert math.isinf(again.hardware.memory_bytes)
    assert sorted(p.name for p in path.parent.iterdir()) == ["h100.toml", "mine.toml"]


GOOD = """
name = "x"
devices = "d"
source = "s"
measured = false
[precision]
weight_bytes = 2
cache_bytes = 2
[hardware]
pass_seconds = 0
layer_seconds = 1e-5
token_seconds = 0
bytes_per_second = 1e12
flops_per_second = 1e14
sharpness = 4
round_seconds = 0
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        (
            "bytes_per_second = 1e12",
            "bytes_per_second = 0",
            "hardware.bytes_per_second is 0.0; it must be positive",
        ),
        (
            "bytes_per_second = 1e12",
            "bytes_per_second = inf",
            "hardware.bytes_per_second is inf; it must be a finite",
        ),
        (
            "bytes_per_second = 1e12",
            'bytes_per_second = "fast"',
            "hardware.bytes_per_second is 'fast'; it must be a f",
        ),
        ("bytes_per_second = 1e12", "", "the key hardware.bytes_per_second is missing"),
        (
            "layer_seconds = 1e-5",
            "layer_seconds = -1e-5",
            "hardware.layer_seconds is -1e-05; it must not be negative",
        ),
        (
            "sharpness = 4",
            "sharpness = 0.5",
            r"hardware.sharpness is 0.5; it must lie in \[1, 64\]",
        ),
        (
            "sharpness = 4",
            "sharpnes = 4",
            "unknown key hardware.sharpnes; the keys allowed here are pass_seconds",
        ),
        (
            "weight_bytes = 2",
            "weight_bytes = 16",
            r"precision.weight_bytes is 16.0; it must lie in \(0, 8\]",
        ),
        (
            "measured = false",
            "measured = true",
            r"measured is true; it must be true with a table \[calibration\]",
        ),
        ("measured = false", 'measured = "no"', "measured is 'no'; it must be true or false"),
        ('name = "x"', 'name = " "', "name is empty"),
        ('name = "x"', 'name = "x', "is not valid TOML"),
        ('name = "x"', 'name = "x"\nnotes = 3', "notes is 3; it must be an array"),
        (
            "round_seconds = 0",
            "round_seconds = 0\n[calibration]\ndate = 1",
            "calibration.jax is missing|calibration.date",
        ),
    ],
)
def test_bad_files_give_one_sentence(tmp_path, old, new, words):
    path = tmp_path / "x.toml"
    path.write_text(GOOD.replace(old, new, 1) if old else GOOD)
    if words is None:
        assert load_hardware(path).hardware.bytes_per_second == 1e12
        return
    with pytest.raises(SdslError, match=words) as raised:
        load_hardware(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message.removesuffix(".").split("TOML:")[0]
    assert message.endswith(".")


def test_names_and_paths_that_do_not_exist(tmp_path):
    with pytest.raises(
        SdslError, match="no hardware named 'h900'; known are a100, h100, h200, v5e, v6e"
    ):
        load_hardware("h900")
    with pytest.raises(SdslError, match=r"h900\.toml cannot be read \(No such file or directory\)"):
        load_hardware("h900.toml")
    with pytest.raises(SdslError, match="cannot be read"):
        load_hardware(tmp_path)


def test_nothing_that_could_not_be_read_is_written(tmp_path):
    file = load_hardware("h100")
    bad = dataclasses.replace(file, hardware=file.hardware._replace(layer_seconds=-1.0))
    with pytest.raises(SdslError, match="layer_seconds is -1"):
        save_hardware(bad, tmp_path / "bad.toml")
    with pytest.raises(SdslError, match=r"must end in \.toml"):
        save_hardware(file, tmp_path / "good.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shown"),
    [("h100", "NVIDIA H100 SXM5"), ("v5e", "TPU v5e"), ("v6e", "TPU v6e (Trillium)")],
)
def test_pages_name_a_device_as_people_do(name, shown):
    file = load_hardware(name)
    assert file.display_name == shown
    assert dataclasses.replace(file, devices="2 cores of a CPU").display_name == name


def test_an_engine_replaces_overheads_and_nothing_else(tmp_path):
    device = load_hardware("h100")
    graphs = load_hardware("h100", "vllm-graphs")
    (engine,) = (e for e in device.engines if e.name == "vllm-graphs")
    changed = {
        n for n in Hardware._fields if getattr(graphs.hardware, n) != getattr(device.hardware, n)
    }
    assert (
        changed == set(engine.coefficients) == {"layer_seconds", "token_seconds", "cache_slowdown"}
    )
    assert graphs.measured
    assert not device.measured
    assert "vllm-graphs" in graphs.display_name
    save_hardware(device, tmp_path / "h.toml")
    assert load_hardware(tmp_path / "h.toml", "vllm-graphs").hardware == graphs.hardware
    with pytest.raises(SdslError, match="write the file without one"):
        save_hardware(graphs, tmp_path / "g.toml")
    # The H200's are the H100's, and it says so.
    assert not load_hardware("h200", "vllm-graphs").measured


ENGINE = """
[engines.mine]
description = "d"
source = "s"
measured = false
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hardware x has no engine named 'mine'; it has none"),
        (ENGINE, "engines.mine.hardware is missing"),
        (ENGINE + "[engines.mine.hardware]\nlayer_secs = 1e-5\n", "layer_secs"),
        (ENGINE + "[engines.mine.hardware]\nlayer_seconds = -1.0\n", "layer_seconds"),
        (
            ENGINE.replace("false", "true") + "[engines.mine.hardware]\nlayer_seconds = 1e-5\n",
            "0 timings",
        ),
    ],
)
def test_an_engine_that_cannot_be_used_is_refused(tmp_path, text, message):
    (tmp_path / "h.toml").write_text(GOOD + text)
    with pytest.raises(SdslError, match=message):
        load_hardware(tmp_path / "h.toml", "mine")
