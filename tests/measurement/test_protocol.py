"""A protocol on small random checkpoints: what is there is measured once, what is absent is named."""

import json

import pandas
import pytest
from published_checkpoints import CASES, LETTERS, copy_checkpoint
from small_protocol import PROMPTS, toml

from sdsl_jax.checkpoints.loading import LoadOptions
from sdsl_jax.config import load_protocol
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement import pair_records, protocol
from sdsl_jax.measurement.pair import PairSettings
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table

OTHER = LETTERS[::-1]  # a tokenizer whose ids mean something else


@pytest.fixture
def run(sdsl, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    (tmp_path / "checkpoints").mkdir()

    def call(targets, drafts, *more):
        (tmp_path / "small.toml").write_text(toml(targets, drafts))
        return sdsl(
            "protocol",
            tmp_path / "small.toml",
            "--checkpoints",
            tmp_path / "checkpoints",
            "--out",
            tmp_path / "out",
            *more,
        )

    return call


def test_settings_that_a_protocol_vouches_for_are_left_out_and_part_no_folders(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('ignore_keys = ["logits_scaling"]\n' + toml(["smollm2"], ["smollm2"]))
    config = load_protocol(path)
    assert config.ignore_keys == ("logits_scaling",)
    folder = copy_checkpoint("smollm2", tmp_path / "smollm2")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"logits_scaling": 8}))
    loaded = protocol._load(config.targets[0], tmp_path, config, 1, Silent())
    assert loaded.ignored_settings == ("logits_scaling",)
    settings = PairSettings(lookaheads=(1,), new_tokens=4)
    how = [
        pair_records.how_measured(settings, LoadOptions(ignore_keys=keys)._asdict())
        for keys in ((), ("a",))
    ]
    assert how[0] == how[1]


@pytest.mark.slow
def test_what_is_there_is_measured_once_and_what_is_absent_is_named(run, tmp_path):
    folder = tmp_path / "checkpoints"
    copy_checkpoint("llama-2", folder / "llama-2")
    copy_checkpoint("smollm2", folder / "smollm2")
    copy_checkpoint("gpt2", folder / "gpt2", OTHER)
    targets, drafts = ["llama-2", "opt-nowhere"], ["smollm2", "gpt2", "pythia"]
    status, out, err = run(targets, drafts, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["absent"] == ["opt-nowhere", "pythia"]
    assert [t["state"] for t in found["targets"]] == ["measured", "absent"]
    assert {(p["draft"], p["lossless"]) for p in found["pairs"]} == {
        ("smollm2", True),
        ("gpt2", False),
    }
    assert found["plane"] is None
    models = {m.model_id: m for m in read_table(tmp_path / "out", "models")}
    assert {m.train_tokens for m in models.values()} == {180_000_000_000}
    assert all(m.perplexity > 1 for m in models.values())
    before = (tmp_path / "out" / "acceptance.csv").read_bytes()
    # A second time nothing is measured; then a checkpoint arrives, and only its pair is.
    assert run(targets, drafts, "--json")[1] == out
    assert (tmp_path / "out" / "acceptance.csv").read_bytes() == before
    copy_checkpoint("pythia", folder / "pythia")
    found = json.loads(run(targets, drafts, "--json")[1])
    assert {p["draft"] for p in found["pairs"]} == {"smollm2", "gpt2", "pythia"}
    assert (tmp_path / "out" / "acceptance.csv").read_bytes().startswith(before)
    status, out, _ = run(targets, drafts)
    assert status == 0
    for words in ("llama-2", "absent", "†: re-tokenised", "published"):
        assert words in out


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_stops_nothing(run, tmp_path):
    folder = tmp_path / "checkpoints"
    copy_checkpoint("llama-2", folder / "llama-2")
    copy_checkpoint("smollm2", folder / "smollm2")
    copy_checkpoint("gpt2", folder / "gpt2")
    (folder / "gpt2" / "model.safetensors").write_bytes(b"no weights")
    found = json.loads(run(["llama-2", "gpt2"], ["smollm2", "gpt2"], "--json")[1])
    assert [p["draft"] for p in found["pairs"]] == ["smollm2"]
    assert "truncated or no safetensors file" in found["unreadable"]["gpt2"]
    assert [t["state"] for t in found["targets"]] == ["measured", "unreadable"]


@pytest.mark.slow
def test_an_interruption_leaves_no_record_twice(run, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    copy_checkpoint("llama-2", folder / "llama-2")
    copy_checkpoint("smollm2", folder / "smollm2")
    write = pair_records.write_table

    def interrupted(where, name, rows):
        if name == "survival":
            raise KeyboardInterrupt
        write(where, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(pair_records, "write_table", interrupted)
        assert run(["llama-2"], ["smollm2"], "--json")[0] == 130
    assert run(["llama-2"], ["smollm2"], "--json")[0] == 0
    rows = [(r.estimator, r.lookahead) for r in read_table(tmp_path / "out", "acceptance")]
    assert len(rows) == len(set(rows))
    events = pandas.read_parquet(tmp_path / "out" / "events.parquet")
    assert len(events) == len(events.drop_duplicates())
    assert len(json.loads((tmp_path / "out" / "measurements.json").read_text())) == 1


def test_a_folder_that_was_begun_in_another_way_is_refused(run, tmp_path):
    assert run(["nowhere"], ["neither"], "--json")[0] == 0
    (tmp_path / "prompts.txt").write_text("other words")
    status, _, err = run(["nowhere"], ["neither"], "--json")
    assert (status, "was begun with prompts_sha256 = " in err) == (2, True)


@pytest.mark.release
def test_every_family_as_target_and_as_draft(run, tmp_path):
    """And then the plane of their pairs can be fitted, and drawn."""
    names = ["gpt2", "pythia", "llama-3", "opt-post-norm", "qwen2", "qwen3", "seed-oss"]
    for name in names:
        copy_checkpoint(name, tmp_path / "checkpoints" / name)
    status, out, err = run(names, names[:3], "--json")
    assert status == 0, err
    found = json.loads(out)
    assert len(found["pairs"]) == 21
    assert found["plane"]["pairs"] == 21
    assert (tmp_path / "out" / "plane.png").exists()
    # The sizes that the file states for all of them are those of OPT-30B, whose N* the paper gives
    # as 189M.
    for target in found["targets"]:
        assert target["optimum_of_published_plane"]["draft_params"] == pytest.approx(
            189e6, rel=0.01
        )


def test_the_papers_protocol_is_read_and_its_wrong_forms_are_refused(tmp_path):
    config = load_protocol(CASES.parents[2] / "experiments" / "paper-protocol.toml")
    assert (len(config.targets), len(config.drafts)) == (13, 10)
    assert {t.folder: t.optimum for t in config.targets if t.optimum} == {
        "opt-30b": 189e6,
        "Qwen1.5-110B": 410e6,
    }
    assert all(len(config.drafts_of(t)) == 10 for t in config.targets)
    path = tmp_path / "wrong.toml"
    for text, message in (
        (toml(["../x"], ["y"]), "must be a name within the folder"),
        (toml(["x", "x"], ["y"]), "name a folder twice"),
        (toml([], ["y"]), "the key targets is missing"),
        (
            toml(["x"], ["y"]).replace("plane_lookahead = 3", "plane_lookahead = 5"),
            "plane_lookahead is 5",
        ),
        (
            toml(["x"], ["y"]).replace("[[drafts]]", 'drafts = ["z"]\n[[drafts]]'),
            "the drafts of x hold z",
        ),
        (
            toml(["x"], ["y"]).replace("train_tokens = 180e9", "train_tokens = 0"),
            "train_tokens of x is 0",
        ),
    ):
        path.write_text(text)
        with pytest.raises(SdslError, match=message):
            load_protocol(path)
