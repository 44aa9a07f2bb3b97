import json
import os
import subprocess
import sys

import jax
import pandas
import pytest

from sdsl_jax import cli
from sdsl_jax.cli.compilation import keep_compiled_programs
from sdsl_jax.config import DataConfig
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer
from sdsl_jax.models import ModelConfig, count, init_params
from sdsl_jax.records import ModelRecord, read_table
from sdsl_jax.training import checkpoints, write_model_folder


def write(folder, seed, tokenizer, layers=1):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    params = init_params(config, jax.random.key(seed))
    name = f"model-{layers}-{seed}"
    record = ModelRecord(name, "draft", 400, count(config, 0).total, 1000, seed, 2.5, 12.2, checkpoints.digest(params))
    write_model_folder(folder, config, params, tokenizer, record, DataConfig(sequence_length=64))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random models of bytes, and a draft with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("models")
    bpe = BPETokenizer.train("the house of the people is the house that the people built " * 20, 270)
    return {
        "target": write(folder / "target", 1, ByteTokenizer(), layers=2),
        "draft": write(folder / "draft", 2, ByteTokenizer()),
        "bpe": write(folder / "bpe", 3, bpe),
    }


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["The state of the union", "My fellow", "A", "We must"] * 3))
    return str(path)


@pytest.fixture
def sdsl(monkeypatch, capsys, models, prompts):
    """Runs `sdsl measure` on the pair, with some options changed."""

    def run(*more, **changes):
        options = {"target": models["target"], "draft": models["draft"], "prompts": prompts, "lookahead": "1,3"}
        options |= {"new-tokens": "12", "prompt-tokens": "16"} | changes
        arguments = [x for key, value in options.items() for x in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", ["sdsl", "measure", *arguments, *more])
        try:
            cli.main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_json_is_one_object_with_everything(sdsl, tmp_path):
    status, out, err = sdsl("--json", "--out", str(tmp_path / "out"), "--tokens", str(tmp_path / "t.jsonl"))
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert answer["target"]["model_id"] == "model-2-1"
    assert answer["draft"]["model_id"] == "model-1-2"
    assert (answer["temperature"], answer["verification"], answer["new_tokens"]) == (1, "token", 12)
    assert (answer["prompts"]["count"], answer["prompts"]["shortest"], answer["prompts"]["longest"]) == (12, 1, 16)
    assert answer["alpha"]["low"] < answer["alpha"]["estimate"] < answer["alpha"]["high"]
    assert [row["lookahead"] for row in answer["per_lookahead"]] == [1, 3]
    for row in answer["per_lookahead"]:
        gamma, tau = row["lookahead"], row["tokens_per_round"]["estimate"]
        assert tau == pytest.approx(1 + sum(s["estimate"] for s in row["survival"]))
        assert row["tar"]["estimate"] == pytest.approx((tau - 1) / gamma)
        assert {"per_test", "tar_alpha", "self_check", "rounds", "expected_tokens_per_round"} <= set(row)
        assert row["conventions"]["vllm_acceptance_length"]["estimate"] >= 1
        assert f"vllm_position_{gamma}" in row["conventions"]
    assert "2211.17192" in answer["convention_definitions"]["per_test_acceptance"]["source"]
    # Three different prompts were cut to 16 bytes, and 12 are fewer than the default.
    assert any("keep only their last 16 tokens" in w for w in answer["warnings"])
    assert any("only 12 prompts; 64 were asked for" in w for w in answer["warnings"])

    assert json.loads((tmp_path / "out" / "measurement.json").read_text()) == answer
    acceptance = read_table(tmp_path / "out", "acceptance")
    assert [(r.estimator, r.lookahead) for r in acceptance] == [("teacher_forced_samples", 0)] + [
        (name, gamma) for gamma in (1, 3) for name in ("decoded_per_test", "decoded_tar")
    ]
    assert acceptance[0].alpha == answer["alpha"]["estimate"]
    assert [r.position for r in read_table(tmp_path / "out", "survival")] == [1, 1, 2, 3]
    assert {m.model_id for m in read_table(tmp_path / "out", "models")} == {"model-2-1", "model-1-2"}
    events = pandas.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.groupby(["lookahead", "row"]).emitted.sum().eq(12).all()
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert all(len(line["tokens"]) == 12 and line["stopped_by"] == "length" for line in lines)
    assert lines[1]["prompt"] == "My fellow"
    assert not list(tmp_path.rglob("*.partial"))

    status, _, err = sdsl("--out", str(tmp_path / "out"))
    assert status == 2
    assert "already holds measurement.json" in err


def test_tables_for_people(sdsl):
    status, out, err = sdsl(prompts="heldout", count=12, seed=1)
    assert status == 0
    for words in ("acceptance α = ", "τ expected", "first 3 accepted", "self-check z", "vLLM", "± is half of a 90%"):
        assert words in out
    assert "prompts 12 of" in out
    assert "sotu since 2009" in out
    assert "\x1b[" not in out
    assert "measure: done" in err  # progress is not part of the answer


def test_the_same_seed_gives_the_same_answer(sdsl):
    one, two, other = (json.loads(sdsl("--json", seed=s)[1]) for s in (3, 3, 4))
    assert one == two
    assert one["alpha"] != other["alpha"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "/nowhere"}, "the model folder /nowhere does not exist"),
        ({"draft": "bpe"}, "have different tokenizers (bpe of 270 entries and bytes of 256 entries)"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"prompts": "held"}, "unknown kind; they must be a .txt or .jsonl file, or 'heldout' or 'sotu'"),
        ({"lookahead": "1,x"}, "--lookahead is '1,x'; it must be whole numbers"),
        ({"lookahead": "12"}, "must exceed the largest lookahead (12)"),
        ({"temperature": "-1"}, "temperature is -1.0"),
        ({"top-k": "0"}, "top_k is 0"),
        ({"stop": "256"}, "stop token is 256; it must lie in [0, 255]"),
        ({"stop": "never"}, "--stop is 'never'"),
        ({"count": "0"}, "number of prompts is 0"),
        ({"out": "/dev/null/x"}, "cannot write /dev/null/x"),
        ({"tokens": "/nowhere/t.jsonl"}, "its folder does not exist"),
        ({"prompt-field": "x"}, "has no field 'x'"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(sdsl, models, changes, message):
    status, out, err = sdsl(**{key: models.get(value, value) for key, value in changes.items()})
    assert status == 2
    assert out == ""
    assert err.startswith("sdsl: error: ")
    assert message in err
    assert err.count("\n") == 1


def in_a_fresh_process(code, **environment):
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "SDSL", "XDG"))
    }
    code = "from sdsl_jax.cli.compilation import keep_compiled_programs as keep; keep()\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment, check=True
    )
    return done.stdout.strip()


def test_where_compiled_programs_are_kept(tmp_path):
    show = "import os, sys; print(os.environ.get('JAX_COMPILATION_CACHE_DIR'), 'jax' in sys.modules)"
    folder, light = in_a_fresh_process(show, XDG_CACHE_HOME=str(tmp_path)).split()
    assert folder.startswith(str(tmp_path / "sdsl_jax" / "xla"))
    assert light == "False"
    assert in_a_fresh_process(show, HOME=str(tmp_path)).startswith(str(tmp_path / ".cache" / "sdsl_jax" / "xla"))
    assert in_a_fresh_process(show, JAX_COMPILATION_CACHE_DIR="/mine").startswith("/mine ")
    assert in_a_fresh_process(show, SDSL_NO_CACHE="1").startswith("None ")
    assert in_a_fresh_process(show, XDG_CACHE_HOME="/dev/null").startswith("None ")


def test_a_process_that_has_imported_jax_is_left_alone(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compiled_programs(environment)
    assert environment == {"XDG_CACHE_HOME": str(tmp_path)}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_damaged_programs_are_compiled_again(tmp_path):
    code = "import jax; print(jax.jit(lambda x: jax.numpy.sin(x).sum())(jax.numpy.arange(4.0)))"
    options = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first = in_a_fresh_process(code, **options)
    kept = [p for p in tmp_path.rglob("*-cache") if p.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:50])
    assert in_a_fresh_process(code, **options) == first
