import dataclasses
import shutil

import matplotlib.image
import numpy as np
import pandas
import pytest
from conftest import tiny
from report_page import without_scripts

from sdsl_jax.checkpoints.loading import load_recorded
from sdsl_jax.cli.arguments import split_overrides
from sdsl_jax.codesign.predict import Target, predict
from sdsl_jax.config import load_study, to_toml
from sdsl_jax.errors import SdslError
from sdsl_jax.evidence import StudyRecords
from sdsl_jax.fitting.law_files import load_law
from sdsl_jax.models import small_matmul
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_json, read_table, write_json, write_table
from sdsl_jax.report.figures import CAPTIONS
from sdsl_jax.study import STAGES, holdout, run_study, stages
from sdsl_jax.study.run import stamps
from sdsl_jax.study.shared_training import train_part


class Notes(Silent):
    """Remembers notes and tasks."""

    def __init__(self):
        self.notes, self.tasks = [], []

    def note(self, text):
        self.notes.append(text)

    def start(self, task, total):
        self.tasks.append(task)


@pytest.mark.slow
def test_all_outputs_are_there(tiny_study):
    for path in (
        "config.toml",
        "records/models.csv",
        "records/acceptance.csv",
        "records/survival.csv",
        "records/expected.csv",
        "records/latency.csv",
        "records/conditions.csv",
        "records/other_models.csv",
        "records/losses.csv",
        "records/clock.csv",
        "records/events.parquet",
        "records/fits.json",
        "records/codesign.json",
        "records/schema.json",
        "report.html",
    ):
        assert (tiny_study / path).stat().st_size > 50, path
    assert load_study(tiny_study / "config.toml") == tiny()
    assert not list(tiny_study.rglob("*.partial"))


def test_records_hold_every_pair_and_estimator(measured_study):
    models = read_table(measured_study / "records", "models")
    assert [m.role for m in models].count("draft") == 6
    assert all(len(m.params_digest) == 64 for m in models)
    acceptance = pandas.read_csv(measured_study / "records" / "acceptance.csv")
    assert len(acceptance) == 6 * (2 + 2 * 2)
    assert acceptance.groupby("estimator").size().to_dict() == {
        "teacher_forced_text": 6,
        "teacher_forced_samples": 6,
        "decoded_per_test": 12,
        "decoded_tar": 12,
    }
    assert (
        (acceptance.alpha_low < acceptance.alpha) & (acceptance.alpha < acceptance.alpha_high)
    ).all()
    survival = pandas.read_csv(measured_study / "records" / "survival.csv")
    assert len(survival) == 6 * (1 + 3)
    assert len(read_table(measured_study / "records", "expected")) == 6 * 4
    for _, group in survival.groupby(["draft_id", "lookahead"]):
        assert (np.diff(group.survival) <= 0).all()
        assert group.tokens_per_round.iloc[0] == pytest.approx(1 + group.survival.sum())
    events = pandas.read_parquet(measured_study / "records" / "events.parquet")
    assert events.groupby(["draft_id", "lookahead", "row"]).emitted.sum().eq(16).all()
    latency = read_table(measured_study / "records", "latency")
    assert sorted((r.operation, r.width) for r in latency) == [("decode", 1)] * 4 + [
        ("verify", 2),
        ("verify", 4),
    ]


@pytest.mark.slow
def test_gradient_and_reference_agree_in_the_records(tiny_study):
    entries = read_json(tiny_study / "records" / "codesign.json", list)
    # Which law predicts tiny models best depends on rounding, and so on the processor.
    ranked = [
        fitted["law"]
        for fitted in read_json(tiny_study / "records" / "fits.json")["acceptance_laws"]
    ]
    laws = [ranked[0], next(name for name in ("affine_plane", *ranked[1:]) if name != ranked[0])]
    assert {(e["acceptance_law"], e["cost_model"]) for e in entries} == {
        (law, cost) for law in laws for cost in ("flops", "measured")
    }
    methods = {"flops": "closed form", "measured": "bracketed roots"}
    for entry in entries:
        assert entry["reference"]["method"] == methods[entry["cost_model"]]
        if entry["cost_model"] == "measured":
            assert entry["lookahead"] == 0 or entry["lookahead"] >= 1
        if entry["draft_params"] is None:
            assert entry["reference"]["draft_params"] is None
            continue
        if entry["relative_difference"]["lookahead"] is None:
            assert any("max_lookahead" in warning for warning in entry["warnings"])
            assert entry["lookahead"] == pytest.approx(64)
            continue
        assert entry["relative_difference"]["draft_params"] <= 1e-3
        assert entry["relative_difference"]["lookahead"] <= 1e-3
        alpha, gamma = entry["acceptance"], entry["lookahead"]
        tau = (1 - alpha ** (gamma + 1)) / (1 - alpha)
        assert entry["speedup"] == pytest.approx(
            tau / (gamma * entry["cost"] + entry["verify_cost"]), rel=1e-9
        )
    assert len(StudyRecords(tiny_study).optima) == 2


@pytest.mark.slow
def test_figures_show_something(tiny_study):
    for name in CAPTIONS:
        assert (tiny_study / "figures" / f"{name}.pdf").stat().st_size > 5_000
        image = matplotlib.image.imread(tiny_study / "figures" / f"{name}.png")
        assert image.shape[0] > 400
        assert (image[..., :3].std(axis=(0, 1)) > 0.05).all()


@pytest.mark.slow
def test_a_study_that_decodes_nothing_has_figures_and_a_report(tiny_study, tmp_path):
    """As with measure.decode = "none"; a figure of an earlier run must not stay."""
    folder = tmp_path / "study"
    shutil.copytree(tiny_study, folder)
    write_table(folder / "records", "survival", [])
    exact = [
        r
        for r in read_table(folder / "records", "acceptance")
        if not r.estimator.startswith("decoded")
    ]
    write_table(folder / "records", "acceptance", exact)
    run_study(tiny(), folder, only="figures")
    assert not list((folder / "figures").glob("survival.*"))
    assert (folder / "figures" / "predicted.png").exists()
    run_study(tiny(), folder, only="report")
    page = (folder / "report.html").read_text()
    assert CAPTIONS["predicted"].split(",")[0] in page
    assert CAPTIONS["survival"].split(",")[0] not in page


@pytest.mark.slow
def test_report_is_self_contained(tiny_study):
    page = (tiny_study / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,")
        == len(list((tiny_study / "figures").glob("*.png")))
        >= len(CAPTIONS)
    )
    assert "http://" not in without_scripts(page)
    assert "https://" not in without_scripts(page)
    assert len(page) < 8e6
    for model in read_table(tiny_study / "records", "models"):
        assert model.model_id in page
    assert "learning_rate" in page


@pytest.mark.slow
def test_nothing_is_run_twice(tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    seen = Notes()
    run_study(tiny(), folder, progress=seen)
    assert seen.tasks == []
    assert seen.notes == [f"{stage}: up to date" for stage in STAGES]


@pytest.mark.slow
def test_only_what_depends_on_a_change_is_run_again(tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    seen = Notes()
    run_study(tiny(codesign={"learning_rate": 0.09}), folder, progress=seen)
    assert seen.notes[:4] == [
        f"{stage}: up to date" for stage in ("train", "measure", "conditions", "fit")
    ]
    assert seen.tasks == ["codesign", "clock", "evidence", "figures", "report"]


@pytest.mark.release
def test_fits_and_figures_need_no_weights(tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "figures")
    for stage in list(STAGES)[2:]:
        run_study(tiny(fit={"acceptance_huber_delta": 0.021}), folder, only=stage)
    assert (folder / "figures" / "speedup.png").exists()
    assert read_table(folder / "records", "clock") == []


def test_a_stage_without_its_inputs_says_which_to_run(tmp_path):
    with pytest.raises(
        SdslError,
        match=r"the stage fit needs .*models\.csv, which does not exist; run the stage train first",
    ):
        run_study(tiny(), tmp_path, only="fit")


@pytest.mark.slow
def test_command_line_ends_with_the_table(sdsl, tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(tiny()))
    status, out, _ = sdsl("study", file, "--out", folder)
    assert status == 0
    assert "report: up to date" in out
    for words in (
        "N*, by gradient",
        "within 1% of best S",
        "closed form",
        "measured speed-up",
        "report.html",
        "target-5k-16k-s0",
    ):
        assert words in out
    assert "\x1b[" not in out  # plain when not a terminal


@pytest.fixture
def timed_again(measured_study, tmp_path, monkeypatch):
    """The stamp of the stage measure after it ran again, with the measuring itself left out."""

    def again(stage="measure", run=lambda study: None):
        folder = tmp_path / "copy"
        shutil.copytree(measured_study, folder, dirs_exist_ok=True)
        monkeypatch.setitem(STAGES, stage, STAGES[stage]._replace(run=run))
        run_study(tiny(), folder, only=stage, force=True)
        return StudyRecords(folder)

    return again


def test_times_without_the_compiled_product_say_so(timed_again, monkeypatch):
    """The stamp of the stage holds it, so that what is installed later changes nothing."""
    monkeypatch.setenv("SDSL_NO_SMALL_MATMUL", "1")
    records = timed_again()
    monkeypatch.delenv("SDSL_NO_SMALL_MATMUL")
    (note,) = records.timing_notes
    assert "(stages: measure)" in note
    assert "because SDSL_NO_SMALL_MATMUL is set:" in note
    assert "to have it, unset that variable" in note
    assert "verify pass" in note
    assert "speculation gains less on this machine" in note
    assert note.count(". ") == 0
    assert note.endswith(".")


def test_without_a_compiler_it_names_one(timed_again, monkeypatch):
    missing = small_matmul.Absence("no C++ compiler was found", small_matmul._INSTALL)
    monkeypatch.setattr(small_matmul, "_load", lambda weights: missing)
    monkeypatch.delenv("SDSL_NO_SMALL_MATMUL", raising=False)
    (note,) = timed_again().timing_notes
    assert "because no C++ compiler was found:" in note
    assert "install a C++ compiler, on Debian with apt install g++" in note


def test_nothing_is_said_with_it_or_on_another_device_or_where_nothing_was_timed(
    timed_again, monkeypatch
):
    monkeypatch.setattr(small_matmul, "_load", lambda weights: None)
    monkeypatch.delenv("SDSL_NO_SMALL_MATMUL", raising=False)
    assert timed_again().timing_notes == []
    monkeypatch.setenv("SDSL_NO_SMALL_MATMUL", "1")
    assert timed_again("conditions").timing_notes == []
    with monkeypatch.context() as accelerator:
        accelerator.setattr(small_matmul.jax, "default_backend", lambda: "gpu")
        assert timed_again().timing_notes == []
    # A stage that may time decoders, and had none to time.
    records = timed_again("clock", lambda study: write_table(study.records_folder, "runs", []))
    assert records.timing_notes == []


@pytest.mark.slow
def test_the_report_and_the_command_end_with_it(sdsl, tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    stages = read_json(folder / "stages.json")
    for stage in ("measure", "codesign"):
        stages[stage]["without_small_matmul"] = {"why": "it is <broken>", "remedy": "mend it"}
    write_json(folder / "stages.json", stages)
    (folder / "report.html").unlink()
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(tiny()))
    status, out, _ = sdsl("study", file, "--out", folder)
    assert status == 0
    last = out.rstrip().splitlines()[-1]
    assert "(stages: measure, codesign)" in last
    assert "because it is <broken>:" in last
    page = (folder / "report.html").read_text()
    assert page.count("because it is &lt;broken&gt;:") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure.lookaheads=[0]"], "measure.lookaheads holds 0; every value must be at least 1"),
        (
            ["--measure.lookaheads", "[0]"],
            "measure.lookaheads holds 0; every value must be at least 1",
        ),
        (["--training.bathc_size=3"], "unknown key training.bathc_size"),
        (["ladder.draft_params=[10]"], "cannot make a model of 10 non-embedding parameters"),
        (["data.source=nowhere.txt"], "nowhere.txt cannot be read"),
        (["--out", "/dev/null/x"], "cannot write /dev/null/x"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(sdsl, tmp_path, arguments, message):
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(tiny()))
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    status, _, err = sdsl("study", file, *arguments)
    assert status == 2
    assert err.startswith("sdsl: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acceptance.csv", "fits.json"])
def test_a_damaged_record_is_named_and_the_rest_left_alone(sdsl, tiny_study, tmp_path, name):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    damaged = folder / "records" / name
    text = damaged.read_text()
    # Behind a comma: a row that ends with some digits of its last number would look like a whole
    # one.
    damaged.write_text(text[: text.index(",", len(text) // 3) + 1])
    before = {p: p.read_bytes() for p in (folder / "records").iterdir()}
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(tiny()))
    status, _, err = sdsl("study", file, "--out", folder)
    assert status == 2
    assert name in err
    assert "damaged" in err
    assert {p: p.read_bytes() for p in (folder / "records").iterdir()} == before


def test_a_damaged_checkpoint_is_named(sdsl, measured_study, tmp_path):
    folder = shutil.copytree(measured_study, tmp_path / "copy")
    model = read_table(folder / "records", "models")[0]
    for file in (folder / model.checkpoint).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])
    study = tmp_path / "tiny.toml"
    study.write_text(to_toml(tiny()))
    status, _, err = sdsl("study", study, "--out", folder, "--only", "measure", "--force")
    assert status == 2
    assert "damaged" in err
    assert model.checkpoint.split("/")[1] in err


def test_overrides_are_told_from_options():
    rest, overrides = split_overrides(
        [
            "study",
            "a=b/c.toml",
            "--training.adam-b1",
            "0.8",
            "--out=b.c",
            "--only=fit",
            "seed=3",
            "--data.source=x y",
            "--force",
        ]
    )
    assert rest == ["study", "a=b/c.toml", "--out=b.c", "--only=fit", "--force"]
    assert overrides == ("--training.adam-b1=0.8", "seed=3", "--data.source=x y")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"), [("fits.json", "{}"), ("codesign.json", "[]"), ("models.csv", None)]
)
def test_records_that_parse_but_hold_nothing_are_named(tiny_study, tmp_path, name, content):
    folder = shutil.copytree(tiny_study, tmp_path / "copy")
    file = folder / "records" / name
    file.write_text(file.read_text().splitlines()[0] + "\n" if content is None else content)
    with pytest.raises(SdslError, match=rf"{name.replace('.', '[.]')} is damaged"):
        run_study(tiny(), folder, only="figures")


def test_a_refused_study_leaves_the_settings_of_the_results_alone(measured_study, tmp_path):
    folder = shutil.copytree(measured_study, tmp_path / "copy")
    for ladder, message in (
        ({"draft_params": [3]}, "cannot make"),
        ({"draft_params": [600]}, "need at least 4 drafts"),
        ({"given_targets": [str(tmp_path)]}, "where no trained ladder is"),
    ):
        with pytest.raises(SdslError, match=message):
            run_study(tiny(ladder=ladder), folder)
        assert load_study(folder / "config.toml") == tiny()


def test_training_with_nothing_left_to_train_keeps_given_targets(measured_study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(measured_study, folder)
    models = read_table(folder / "records", "models")
    given = dataclasses.replace(models[-1], model_id="given-5M")
    write_table(folder / "records", "models", [*models, given])
    before = stamps(folder)
    train_part(tiny(), folder)
    assert read_table(folder / "records", "models") == [*models, given]
    assert stamps(folder) == before


def test_given_targets_are_named_from_the_studys_own_folder(measured_study, tmp_path):
    config, folder = tiny(ladder={"given_targets": [str(measured_study)]}), tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    given = stages._given_models(stages.Study(config, folder, Silent()), [])
    own = [m for m in read_table(measured_study / "records", "models") if m.role == "target"]
    assert [m.model_id for m in given] == [m.model_id for m in own]
    for record in given:
        loaded = load_recorded(record, folder)
        assert loaded.record.params_digest == record.params_digest


def test_a_deleted_checkpoint_is_made_again_from_the_trunk(measured_study, tmp_path):
    folder = shutil.copytree(measured_study, tmp_path / "copy")
    model = read_table(folder / "records", "models")[0]
    shutil.rmtree(folder / model.checkpoint)
    run_study(tiny(), folder, only="train")
    assert (folder / model.checkpoint).is_dir()
    assert read_table(folder / "records", "models")[0].params_digest == model.params_digest


def test_the_quickstart_is_what_it_promises():
    """Sizes and budgets that the README names."""
    config = load_study("experiments/quickstart.toml")
    assert len(config.ladder.draft_params) >= 4
    assert len(config.ladder.draft_tokens) >= 2
    assert max(config.ladder.target_tokens) >= 5 * max(config.ladder.target_params)


@pytest.mark.slow
def test_results_plug_into_predictions(tiny_study):
    """`fits.json` as a law file of `sdsl predict`: joint draws, the study's warnings, and its ranges."""
    path = str(tiny_study / "records" / "fits.json")
    loss, acceptance = load_law(path, "loss"), load_law(path, "acceptance")
    (answer,) = predict([Target(5e3, 16e3, 16e3)], loss, acceptance)
    assert "bootstrap over whole rungs" in answer.interval_basis
    assert any(w.startswith("loss law: ") for w in answer.warnings)
    ranges = {name: (low, high) for name, low, high in loss.law.about.valid}
    assert ranges["tokens"] == pytest.approx((8_000, 16_000), rel=0.02)
    (far,) = predict([Target(5e6, 16e3, 16e3)], loss, acceptance)
    assert any("extrapolates the loss law for the target" in w for w in far.warnings)


@pytest.mark.release
def test_predictions_come_before_what_they_are_about(tmp_path, monkeypatch):
    """Nothing of a held-out model exists when its predictions are made; then all is trained once, and judged."""
    ladder = {
        "draft_params": [600, 900, 1200, 2500],
        "target_params": [4_000, 8_000],
        "target_tokens": [8_000, 16_000],
    }
    config = tiny(
        ladder=ladder,
        holdout={"draft_params": [2500], "target_params": [8_000]},
        measure={"decode": "largest"},
    )
    seen, there = Notes(), []
    forecast = holdout.forecast

    def watched(*arguments):
        there.append(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))
        return forecast(*arguments)

    monkeypatch.setattr(holdout, "forecast", watched)
    run_study(config, tmp_path, progress=seen)
    assert len(there) == 1
    assert len(there[0]) == 4
    assert not any(name.startswith(("draft-2.5k", "target-8k")) for name in there[0])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6
    assert not (tmp_path / "seen" / "checkpoints").exists()
    predictions = read_json(tmp_path / "records" / "predictions.json")
    assert {(row["role"], row["tokens"]) for row in predictions["losses"]} == {
        (role, tokens) for role in ("draft", "target") for tokens in (8_000, 16_000)
    }
    judged = read_json(tmp_path / "records" / "evidence.json")["holdout"]
    assert len(judged["losses"]) == 4
    assert all(row["draft_held_out"] or row["target_held_out"] for row in judged["pairs"])
    page = (tmp_path / "report.html").read_text()
    assert "What was predicted before it was measured" in page
    assert predictions["already_measured"] == []
    patient = dataclasses.replace(config, takes="a minute")
    run_study(patient, tmp_path, progress=(again := Notes()))
    assert again.tasks == []
    assert again.notes[0] == "takes a minute"
    assert len(there) == 1
    changed = tiny(
        ladder=ladder,
        holdout={"draft_params": [2500], "target_params": [8_000]},
        measure={"decode": "largest"},
        fit={"acceptance_huber_delta": 0.021},
    )
    run_study(changed, tmp_path)
    predictions = read_json(tmp_path / "records" / "predictions.json")
    assert (
        len(predictions["already_measured"]) == 2
    )  # who predicts again has seen the answers, and the file says so
    assert (
        "they are no test of anything that was changed since"
        in (tmp_path / "report.html").read_text()
    )
