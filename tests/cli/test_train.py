import pytest
from conftest import claimed, tiny

from sdsl_jax import claims
from sdsl_jax.config import to_toml
from sdsl_jax.errors import SdslError
from sdsl_jax.records import read_json, read_table, write_json
from sdsl_jax.training import ladder


@pytest.fixture
def sdsl(sdsl, tmp_path):
    """Runs `sdsl train` on a small ladder."""
    text = tmp_path / "text.txt"
    text.write_text(
        "We the people of the United States, in order to form a more perfect union. " * 600
    )
    config = tiny(
        data={"source": [str(text)]},
        ladder={
            "draft_params": [600, 900],
            "draft_tokens": [2_048],
            "target_params": [900],
            "target_tokens": [2_048],
        },
        training={"evaluation_windows": 4, "warmup_tokens": 256},
    )
    (tmp_path / "tiny.toml").write_text(to_toml(config))

    return lambda *arguments: sdsl(
        "train", tmp_path / "tiny.toml", "--out", tmp_path / "out", *arguments
    )


@pytest.mark.slow
def test_subsets_add_up_to_a_ladder(sdsl, tmp_path):
    status, out, _ = sdsl("--rungs", "draft-600,target-*")
    assert status == 0
    assert "1 models of the study are not finished yet" in out
    assert "Test: the last part of the text" in out
    found = [r.model_id for r in read_table(tmp_path / "out" / "records", "models")]
    assert found == ["draft-600-2.048k-s0", "target-900-2.048k-s0"]
    write_json(
        tmp_path / "out" / "stages.json", {"train": {"key": "x"}, "fit": {"key": "y"}, "measure": 3}
    )
    status, out, _ = sdsl("--part=1/1")
    assert status == 0
    assert "the ladder is complete" in out
    for words in (
        "Trained models",
        "nats",
        "bits per",
        "tokens/s",
        "compile",
        "wait for",
        "draft-900-2.048k-s0",
    ):
        assert words in out
    assert len(read_table(tmp_path / "out" / "records", "models")) == 3
    # The table is new: the stage of a study that wrote the one before must look again.
    assert read_json(tmp_path / "out" / "stages.json") == {"fit": {"key": "y"}}


def test_a_rung_of_another_process_is_named(sdsl, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 2.0)
    sdsl("--rungs", "draft-600")
    (rung,) = (tmp_path / "out" / "checkpoints").iterdir()
    for model in rung.glob("model-*"):
        (model / "record.json").unlink()
    with claimed(rung) as claim:
        holder = str(claim)
        status, out, _ = sdsl("--rungs", "draft-*")
    assert status == 0
    assert f"draft-600-s0: being trained by {holder}" in out
    assert "draft-900-2.048k-s0" in out
    assert "2 models of the study are not finished yet" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rungs", "draft-7"], "no rung is named 'draft-7'; the rungs are draft-600-s0, "),
        (["--part", "3/2"], "--part is '3/2'; it must be I/N with whole numbers 1 <= I <= N"),
        (["--part", "0/2"], "--part is '0/2'"),
        (["--part", "2"], "--part is '2'"),
        (["--training.batch_size=0"], "training.batch_size is 0"),
        (
            ["--ladder.weights=there"],
            "ladder.weights is 'there': the study takes its models from there and trains none",
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(sdsl, tmp_path, arguments, message):
    status, out, err = sdsl(*arguments)
    assert status == 2
    assert "Trained models" not in out
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_accelerator_shows_its_utilisation(sdsl, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sdsl_jax.training.evaluation.device_name", lambda: "1 x NVIDIA H100 80GB HBM3"
    )
    status, out, _ = sdsl("--rungs", "draft-600")
    assert status == 0
    for words in ("TFLOP/s", "of bfloat16 peak", "0.0%"):
        assert words in out


def test_a_folder_that_cannot_be_used_is_one_sentence(sdsl, tmp_path, monkeypatch):
    def refused(*arguments, **named):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out" / "checkpoints"))

    monkeypatch.setattr("sdsl_jax.study.shared_training.train_rungs", refused)
    status, _, err = sdsl()
    assert status == 2
    assert err.splitlines() == [
        f"sdsl: error: cannot use {tmp_path / 'out' / 'checkpoints'} (Permission denied); the same command continues where it "
        "stood."
    ]


def test_the_table_survives_what_ends_a_run(sdsl, tmp_path, monkeypatch):
    """Rungs that are finished when another one fails are in the table."""
    train = ladder._train_rung

    def fails(trainer, study):
        if trainer.plan.rung.role == "target":
            raise SdslError("cannot write a checkpoint.")
        train(trainer, study)

    monkeypatch.setattr(ladder, "_train_rung", fails)
    assert sdsl()[0] == 2
    found = [r.model_id for r in read_table(tmp_path / "out" / "records", "models")]
    assert found == ["draft-600-2.048k-s0", "draft-900-2.048k-s0"]
