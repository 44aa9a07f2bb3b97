import jax
import numpy as np
import pytest

from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.decoding import (
    FixedLookahead,
    HybridDraft,
    Model,
    NgramDraft,
    Sampling,
    loop,
    speculate,
)
from sdsl_jax.decoding.drafters import ModelDrafter
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.clock import Entrant, cache_slots, time_decoders
from sdsl_jax.measurement.clock_stage import Pairing, pairings
from sdsl_jax.models import ModelConfig, init_params, prefill
from sdsl_jax.records import ModelRecord

V = 16


def _model(width: int, seed: int) -> Model:
    config = ModelConfig(
        vocab_size=V, width=width, layers=1, heads=1, kv_heads=1, head_dim=width, hidden=2 * width
    )
    return Model(config, init_params(config, jax.random.key(seed)))


@pytest.fixture(scope="module")
def pair():
    return _model(8, 0), _model(16, 1)


def test_runs_count_what_they_did(pair):
    draft, target = pair
    prompts = np.random.default_rng(2).integers(0, V, (3, 4, 5))
    entrants = [Entrant(target), Entrant(target, draft, 2), Entrant(target, draft, 2, batch=2)]
    plain, single, double = time_decoders(
        entrants, prompts, new_tokens=12, sampling=Sampling(), seed=0
    )
    assert (plain.rounds == 4 * 12).all()
    assert (plain.tokens == 4 * 12).all()
    for run, rows in ((single, 1), (double, 2)):
        assert (run.seconds > 0).all()
        # Every row emits 1 to γ + 1 tokens in every round, and none had room for fewer than a round
        # at the end.
        assert (run.tokens >= rows * run.rounds).all()
        assert (run.tokens <= 3 * rows * run.rounds).all()
        assert (run.tokens < 4 * 12).all()
    # One row alone goes on until a round might not fit.
    assert (single.tokens >= 4 * (12 - 3)).all()
    assert cache_slots(entrants[0], 5, 12) == 17
    assert cache_slots(entrants[1], 5, 12) == 20


@pytest.mark.slow
def test_ngrams_with_a_fallback_are_timed(pair):
    """Their tokens and rounds are those of the decoder, in whole rounds."""
    draft, target = pair
    hybrid = HybridDraft(NgramDraft(V, 3, 1), draft)
    prompts = np.random.default_rng(2).integers(0, V, (2, 4, 5))
    entrants = [Entrant(target, hybrid, 2), Entrant(target, hybrid, 2, batch=2)]
    for run, rows in zip(
        time_decoders(entrants, prompts, new_tokens=12, sampling=Sampling(), seed=0), (1, 2)
    ):
        assert (run.tokens >= rows * run.rounds).all()
        assert (run.tokens <= 3 * rows * run.rounds).all()


@pytest.mark.slow
def test_a_timed_run_is_the_beginning_of_an_untimed_one(pair):
    draft, target = pair
    prompts = np.random.default_rng(3).integers(0, V, (4, 5))
    whole = speculate(draft, target, prompts, lookahead=3, new_tokens=20, seed=5)
    buffer, capacity = 25, 29
    requests = loop.Requests(
        prompts.astype(np.int32),
        np.full(4, 5, np.int32),
        np.full(4, 25, np.int32),
        loop_keys(5, 4),
        np.zeros(0, np.int32),
    )
    with jax.default_matmul_precision("highest"):
        timed = loop.speculative_loop(
            ModelDrafter(draft.config),
            target.config,
            draft.params,
            target.params,
            requests,
            Sampling(),
            FixedLookahead(3),
            prefill(draft.config, draft.params, requests.prompts, capacity=capacity),
            prefill(target.config, target.params, requests.prompts, capacity=capacity),
            verification="token",
            max_lookahead=3,
            buffer=buffer,
            max_rounds=20,
            keep_distributions=False,
            whole_rounds=True,
        )
    rounds = int(timed.batch_rounds)
    # In every round that was taken every row took part and had room for all that it accepted; in
    # the next one a row might not.
    emitted, verified = np.asarray(timed.events.emitted), np.asarray(timed.events.verified)
    assert (emitted[:, :rounds] == verified[:, :rounds] + 1).all()
    assert not emitted[:, rounds:].any()
    assert max(np.asarray(timed.lengths)) + 4 >= 25
    for row in range(4):
        length = int(timed.lengths[row])
        assert (
            np.asarray(timed.tokens)[row, :length] == np.asarray(whole.tokens)[row, :length]
        ).all()


def loop_keys(seed: int, rows: int):
    from sdsl_jax.decoding.noise import row_keys

    return row_keys(seed, np.arange(rows))


def test_what_cannot_be_timed_is_said(pair):
    draft, target = pair
    prompts = np.zeros((2, 3, 4), int)
    with pytest.raises(SdslError, match="3 prompts cannot be divided into batches of 2"):
        time_decoders(
            [Entrant(target, batch=2)], prompts, new_tokens=8, sampling=Sampling(), seed=0
        )
    with pytest.raises(SdslError, match="lookahead 7 does not fit into 8 new tokens"):
        time_decoders(
            [Entrant(target, draft, 7)], prompts, new_tokens=8, sampling=Sampling(), seed=0
        )


def test_decoders_of_a_broken_model_are_not_timed(pair):
    draft, target = pair
    prompts = np.random.default_rng(2).integers(0, V, (3, 4, 5))
    broken = draft._replace(params=jax.tree.map(lambda x: x * np.nan, draft.params))
    with pytest.raises(SdslError, match="the logits of the draft are not finite"):
        time_decoders(
            [Entrant(target, broken, 2)], prompts, new_tokens=12, sampling=Sampling(), seed=0
        )


def _record(role: str, params: int, tokens: int, seed: int = 0, prefix: str = "") -> ModelRecord:
    return ModelRecord(
        model_id=f"{prefix}{role}-{params}-{tokens}-s{seed}",
        role=role,
        params_nonembedding=params,
        params_total=params,
        train_tokens=tokens,
        loss_nats=1.0,
        perplexity=2.7,
        seed=seed,
    )


def test_which_decoders_a_study_times():
    ladder = {
        "draft_params": [1000],
        "draft_tokens": [1],
        "target_params": [9000],
        "target_tokens": [1],
    }
    config = from_dict(
        StudyConfig,
        {
            "name": "t",
            "ladder": ladder,
            "clock": {"lookaheads": [1, 4], "batches": [4], "batch_lookaheads": [1], "prompts": 4},
        },
        "study",
    )
    drafts = [_record("draft", n, d) for n in (1000, 2000, 4000, 8000) for d in (10, 20)]
    targets = [_record("target", 90000, 20)]
    others = [
        _record("draft", 4040, 10, prefix="deep/"),
        _record("target", 200000, 20, prefix="large/"),
    ]
    blocks = pairings(config, [*drafts, *targets], others)
    for block in blocks:
        # Each has the plain decoder of its own target and batch, and nothing twice.
        assert len({(p.target, p.batch) for p in block}) == 1
        assert [p.lookahead for p in block].count(0) == 1
        assert len(block) == len(set(block)) > 1
    assert blocks[0][0] == Pairing("", "target-90000-20-s0", 0, 1)
    found = [p for block in blocks for p in block]
    single = [p for p in found if p.batch == 1 and p.draft and p.draft.endswith("-20-s0")]
    assert (
        len(single) == 4 * 2 * 2
    )  # four drafts of the largest budget, two targets, two lookaheads
    shapes = {p.draft for p in found if p.draft.endswith("-10-s0")}
    assert shapes == {"deep/draft-4040-10-s0", "draft-4000-10-s0"}  # the other shape, and its like
    assert {p.draft for p in found if p.batch == 4} == {
        "",
        "draft-1000-20-s0",
        "draft-4000-20-s0",
        "draft-8000-20-s0",
    }
