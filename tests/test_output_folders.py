"""Nothing of a user's own is overwritten where results go."""

from types import SimpleNamespace

import pytest
from conftest import tiny

from sdsl_jax.config import load_study, to_toml
from sdsl_jax.errors import SdslError
from sdsl_jax.hardware import load_hardware, save_hardware
from sdsl_jax.measurement import protocol
from sdsl_jax.measurement.pair_records import PairName, prepare_output_dir
from sdsl_jax.records import require_replaceable, require_study_folder, write_marked
from sdsl_jax.study import run_study
from sdsl_jax.study.shared_training import train_part


def test_settings_that_a_study_wrote_are_replaced(tmp_path):
    require_study_folder(tmp_path)
    require_study_folder(tmp_path / "new")
    write_marked(tmp_path / "config.toml", to_toml(tiny()))
    require_study_folder(tmp_path)
    assert load_study(tmp_path / "config.toml") == tiny()
    (tmp_path / "report.html").write_text("<title>tiny: speculative-decoding scaling laws</title>")
    require_study_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[tool]\nname = 'mine'\n", "# my notes\n" + to_toml(tiny()), to_toml(tiny()), "\x00\xff"],
)
def test_settings_that_no_study_wrote_are_not(tmp_path, content):
    (tmp_path / "config.toml").write_text(content)
    with pytest.raises(
        SdslError,
        match=r"config\.toml was not written by a study, or was changed since, .* another folder",
    ):
        require_study_folder(tmp_path)


def test_settings_that_were_changed_since_are_not(tmp_path):
    write_marked(tmp_path / "config.toml", to_toml(tiny()))
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 1", 1))
    with pytest.raises(SdslError, match="was changed since"):
        require_study_folder(tmp_path)


def test_settings_of_earlier_versions_are_known_by_what_lies_beside_them(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(tiny()))
    (tmp_path / "stages.json").write_text("{}")
    require_study_folder(tmp_path)


def test_a_report_of_somebody_else_is_not(tmp_path):
    (tmp_path / "report.html").write_text("<title>My report</title>")
    with pytest.raises(SdslError, match=r"report\.html was not written by a study"):
        require_study_folder(tmp_path)


@pytest.mark.parametrize("run", [run_study, train_part])
@pytest.mark.parametrize("name", ["config.toml", "report.html"])
def test_studies_and_training_refuse_the_folder(tmp_path, run, name):
    (tmp_path / name).write_text("mine = 1\n")
    with pytest.raises(SdslError, match="was not written by a study"):
        run(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine = 1\n"


PAIR = PairName("draft", "target", 1.0, "text")


@pytest.mark.parametrize("name", ["config.toml", "models.csv", "events.parquet"])
def test_measurements_refuse_a_folder_with_files_of_others(tmp_path, name):
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(SdslError, match=f"{name}.* name another folder"):
        prepare_output_dir(tmp_path, PAIR, {})
    config = SimpleNamespace(measure=None, seed=0, targets=(), drafts=())
    with pytest.raises(SdslError, match=f"{name}.* name another folder"):
        protocol.run_protocol(config, tmp_path, "prompts.txt", tmp_path)


def test_measurements_may_go_beside_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    prepare_output_dir(tmp_path, PAIR, {})


def test_a_device_that_somebody_wrote_or_changed_is_not_replaced(tmp_path):
    path = tmp_path / "mine.toml"
    require_replaceable(path)
    save_hardware(load_hardware("h100"), path)
    require_replaceable(path)
    for content in (
        path.read_text() + "# measured on a Monday\n",
        path.read_text().replace("h100", "H-100", 1),
        "x = 1",
    ):
        path.write_text(content)
        with pytest.raises(
            SdslError,
            match=r"mine\.toml exists, and was not written by sdsl or was changed since; name another file",
        ):
            require_replaceable(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["tune", "study.toml", "--write", "study.toml"],
            "the file study.toml exists, and was not written by sdsl",
        ),
        (["tune", "study.toml", "--out", "mine"], "mine/config.toml was not written by a study"),
        (["train", "study.toml", "--out", "mine"], "mine/config.toml was not written by a study"),
        (["study", "study.toml", "--out", "mine"], "mine/config.toml was not written by a study"),
        (
            ["calibrate", "--out", "study.toml"],
            "the file study.toml exists, and was not written by sdsl",
        ),
    ],
)
def test_commands_refuse(sdsl, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text("# mine\n" + to_toml(tiny()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("mine = 1\n")
    status, _, err = sdsl(*arguments)
    assert status == 2
    assert words in err
    assert (tmp_path / "study.toml").read_text().startswith("# mine\n")
