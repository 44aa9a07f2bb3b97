"""The lookahead of every load: each cell against every γ tried by itself, and tables by batch against
all tables."""

import itertools
import json

import numpy as np
import pytest

from sdsl_jax.codesign.problem import Problem
from sdsl_jax.codesign.schedule import falling_lookaheads, mixed_survival, schedule
from sdsl_jax.errors import SdslError
from sdsl_jax.theory.hardware import Load, pass_time, resident_bytes, round_time
from sdsl_jax.theory.lookahead import tokens_per_round
from sdsl_jax.theory.serving import shapes

BATCHES, CONTEXTS = (1, 3, 8, 40, 200), (0.0, 512.0, 30_000.0)
SURVIVAL = (0.8, 0.6, 0.4, 0.25)


@pytest.fixture(scope="module")
def problem():
    return Problem(
        target_params="8B", draft="Qwen/Qwen3-0.6B", hardware="h100", engine="vllm-graphs"
    ).ready


@pytest.mark.parametrize("survival", [(), SURVIVAL], ids=["law", "survival"])
def test_every_cell_is_the_best_of_all_lookaheads(problem, x64, survival):
    found = schedule(problem, BATCHES, CONTEXTS, survival=survival)
    serving, design = problem.inputs.serving, problem.inputs.fixed
    draft, target = shapes(serving, design)
    assert len(found.cells) == len(BATCHES) * len(CONTEXTS)
    for cell in found.cells:
        load = float(cell.batch), cell.context
        step = pass_time(serving.hardware, target, serving.precision, Load(1.0, *load))
        best = (1.0, 0)
        for gamma in range(1, (len(survival) or 16) + 1):
            tau = (
                1 + sum(survival[:gamma])
                if survival
                else float(tokens_per_round(found.acceptance, gamma))
            )
            took = round_time(
                serving.hardware,
                draft,
                target,
                float(gamma),
                *load,
                serving.precision,
                serving.draft_precision,
            ).seconds
            best = max(best, (float(tau * step / took), gamma))
        assert (cell.lookahead, cell.speedup) == (best[1], pytest.approx(best[0], rel=1e-12))
        held = sum(float(resident_bytes(s, serving.precision, *load)) for s in (draft, target))
        assert cell.fits == (held <= 0.9 * 80e9)
    assert any(cell.lookahead == 0 for cell in found.cells)
    assert len({cell.lookahead for cell in found.cells}) > 2


def test_a_falling_table_is_the_best_of_all_falling_tables():
    random = np.random.default_rng(0)
    for _ in range(20):
        value = random.normal(size=(4, 5))
        tables = [t for t in itertools.product(range(4), repeat=5) if list(t) == sorted(t)[::-1]]
        best = max(tables, key=lambda t: sum(value[g, b] for b, g in enumerate(t)))
        assert falling_lookaheads(value).tolist() == list(best)
    # Of equal tables the one that drafts less.
    assert falling_lookaheads(np.zeros((3, 4))).tolist() == [0, 0, 0, 0]


def test_spans_and_engines_hold_one_table(problem):
    found = schedule(problem, BATCHES, (512.0,), draft="a draft", survival=SURVIVAL)
    by_batch = {b: s.lookahead for s in found.spans for b in range(s.first, s.last + 1)}
    assert list(by_batch) == list(range(1, 201))
    assert [by_batch[b] for b in BATCHES] == [cell.scheduled for cell in found.cells]
    assert list(by_batch.values()) == sorted(by_batch.values(), reverse=True)
    # With one context the table is the best γ of each batch, unless that rises somewhere.
    assert found.largest_scheduled_loss < 1e-3
    assert found.single_largest_loss > 0.05
    table = found.vllm["num_speculative_tokens_per_batch_size"]
    assert table == [[s.first, s.last, s.lookahead] for s in found.spans]
    assert found.vllm["num_speculative_tokens"] == max(k for *_, k in table)
    assert {int(b): v["candidate_steps"] for b, v in found.sglang.items()} == {
        s.first: [s.lookahead] for s in found.spans
    }


def test_survival_of_equal_acceptance_is_acceptance(problem):
    alpha = schedule(problem, (8,), (512.0,)).acceptance
    by_survival = schedule(problem, (8,), (512.0,), survival=[alpha**k for k in range(1, 17)])
    (one,), (other,) = by_survival.cells, schedule(problem, (8,), (512.0,)).cells
    assert one.lookahead == other.lookahead
    assert one.speedup == pytest.approx(other.speedup, rel=1e-12)


def test_a_mix_counts_rounds_and_not_acceptance(sdsl, x64):
    alphas, shares = {"code": 0.9, "chat": 0.5}, {"code": 0.3, "chat": 0.7}
    mixed = mixed_survival(
        {name: [alpha**k for k in range(1, 6)] for name, alpha in alphas.items()}, shares
    )
    for gamma in range(1, 6):
        # Of 1,000 tokens each domain needs as many rounds as its own tokens per round say.
        rounds = sum(1000 * shares[n] / float(tokens_per_round(alphas[n], gamma)) for n in alphas)
        assert 1 + sum(mixed[:gamma]) == pytest.approx(1000 / rounds, rel=1e-12)
    assert mixed == sorted(mixed, reverse=True)
    level = {"a": [0.9, 0.9, 0.9], "b": [0.9, 0.9, 0.9]}
    assert mixed_survival(level, {"a": 0.3, "b": 0.7}) == pytest.approx([0.9] * 3)
    assert (
        sorted(mixed_survival(level, {"a": 0.3, "b": 0.7}))
        == mixed_survival(level, {"a": 0.3, "b": 0.7})[::-1]
    )
    asked = ["codesign", "--schedule", "--target-params", "8B", "--draft", "600M", "--json"]
    mix = ["--mix", "code=0.3,chat=0.7", "--acceptance", "code=0.9,chat=0.5"]
    status, text, _ = sdsl(*asked, *mix)
    assert status == 0
    assert json.loads(text)["survival"][:5] == pytest.approx(mixed)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--draft", "125M", "--mix", "code"], "must be of the form code=0.5,chat=0.5"),
        (["--draft", "125M", "--mix", "code=1"], "--mix needs the acceptance of each domain"),
        (
            ["--draft", "125M", "--mix", "code=0.5,chat=0.6", "--acceptance", "code=0.8,chat=0.6"],
            "sum to 1",
        ),
        (
            ["--draft", "125M", "--mix", "code=0.5,law=0.5", "--acceptance", "code=0.8"],
            "both must name the same domains",
        ),
        ([], "--schedule is for a draft at hand"),
        (["--draft", "foo/bar"], "the size of the draft foo/bar is unknown here"),
        (["--draft", "125M", "--candidates", "350M"], "--schedule is for one draft at hand"),
        (["--draft", "125M", "--constraint", "latency_seconds=2"], "takes no --objective"),
        (["--draft", "125M", "--overlapped"], "draft and verify in turn"),
        (["--draft", "125M", "--acceptance", "a=0.8"], "needs their shares: give --mix"),
        (
            ["--draft", "125M", "--batch", "4000", "--context", "8k"],
            "do not fit in memory at any of these",
        ),
        (["--draft", "125M", "--survival", "0.5,0.6"], "survival of position 2 is 0.6"),
        (["--draft", "125M", "--survival", "0.5", "--acceptance", "0.7"], "given several times"),
        (["--draft", "125M", "--acceptance", "1"], "acceptance"),
        (["--draft", "125M", "--batch", "1,x"], "--batch is '1,x'"),
        (["--draft", "125M", "--batch", "2.5"], "must be a whole number of rows"),
        (["--draft", "125M", "--records", "no-such-folder"], "no-such-folder"),
        (["--draft", "125M", "--context", "9M"], "do not fit in memory"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_in_a_sentence(sdsl, flags, words):
    status, _, error = sdsl("codesign", "--schedule", "--target-params", "8B", *flags)
    assert status == 2
    assert words in error
    assert error.count("\n") == 1


def test_the_command_prints_draws_and_gives_json(sdsl, tmp_path):
    asked = ["codesign", "--schedule", "--target-params", "8B", "--draft", "600M"]
    asked += ["--survival", "0.8,0.6,0.4", "--batch", "1,64", "--context", "512,2k"]
    status, page, _ = sdsl(*asked, "--picture", str(tmp_path / "s.png"))
    assert status == 0
    assert "Lookahead by batch" in page
    assert "num_speculative_tokens_per_batch_size" in page
    assert (tmp_path / "s.png").stat().st_size > 5000
    status, text, _ = sdsl(*asked, "--json")
    assert status == 0
    assert [c["batch"] for c in json.loads(text)["cells"]] == [1, 1, 64, 64]


def test_survival_belongs_to_schedules(sdsl):
    status, _, error = sdsl("codesign", "--target-params", "8B", "--survival", "0.5")
    assert status == 2
    assert "belong to --schedule" in error


def test_a_problem_has_one_batch():
    with pytest.raises(SdslError, match="--batch has 2 values"):
        Problem(target_params="8B", batch="1,8").config()
