"""Stretches between common cuts: what is counted, and what the measure is not."""

import jax
import numpy as np
import pytest
from published_checkpoints import character_tokenizer

from sdsl_jax.data.prompts import encode_prompts
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.decoding import Model
from sdsl_jax.measurement.pair import PairSettings, sample_target
from sdsl_jax.measurement.retokenised import _Cut, _ends, _Row, _stretches, retokenised_acceptance
from sdsl_jax.models import ModelConfig, forward, init_params


def cuts_of(lengths, begin=0):
    return _Cut(np.zeros(len(lengths), int), begin + np.cumsum(lengths))


def test_probabilities_of_a_stretch_are_the_products_of_its_tokens():
    row = _Row(
        "abcdefgh", 2, True, {"target": cuts_of([2, 1, 1, 2, 2]), "draft": cuts_of([2, 2, 1, 3])}
    )
    scores = {"target": np.log([0.5, 0.4, 0.3, 0.2]), "draft": np.log([0.6, 0.7, 0.1])}
    found = _stretches(row, scores)
    # Cuts at 2, 4, 8: "cd" and "efgh".
    np.testing.assert_allclose(found.ratios, np.log([0.6 / 0.2, 0.07 / 0.06]), rtol=1e-12)
    assert (found.tokens, found.size) == ({"target": 4, "draft": 3}, 6)
    assert found.nats["target"] == pytest.approx(-np.log(0.2 * 0.06))


def test_what_the_end_of_a_row_cuts_off_is_left_out_unless_the_text_ended():
    cuts = {"target": cuts_of([1, 1, 1]), "draft": cuts_of([1, 1, 1])}
    scores = {"target": np.log([0.5, 0.5]), "draft": np.log([0.5, 0.25])}
    assert len(_stretches(_Row("abc", 1, True, cuts), scores).ratios) == 2
    assert len(_stretches(_Row("abc", 1, False, cuts), scores).ratios) == 1
    broken = _stretches(_Row("a\ufffdc", 1, True, cuts), scores)
    np.testing.assert_allclose(broken.ratios, np.log([0.5]))


def test_tokens_end_where_what_they_make_is_the_text():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    text = "aé b"
    np.testing.assert_array_equal(
        _ends(Bytes(), np.frombuffer(text.encode(), np.uint8), text), [1, -1, 2, 3, 4]
    )


def test_a_perfect_draft_of_other_tokens_can_score_below_one():
    """The documented bias: a text of a and b drawn evenly, and a draft that merges every ab and is the exact law of that text."""
    random = np.random.default_rng(0)
    letters = random.integers(0, 2, 60_000)
    text = "".join("ab"[i] for i in letters)
    own = cuts_of([1] * len(text))
    lengths, logs, previous_a = [], [], False
    i = 0
    while i < len(text):
        if text[i : i + 2] == "ab":
            # Behind an a that was not merged, a b cannot follow.
            token, q, size = "ab", (0.25 if not previous_a else 0.5), 2
        elif text[i] == "a":
            token, q, size = "a", (0.25 if not previous_a else 0.5), 1
        else:
            token, q, size = "b", 0.5, 1
        lengths.append(size)
        logs.append(np.log(q))
        previous_a = token == "a"
        i += size
    cut = cuts_of(lengths)
    scores = {"target": np.log(np.full(len(text) - 1, 0.5)), "draft": np.asarray(logs[1:])}
    found = _stretches(_Row(text, 1, False, {"target": own, "draft": cut}), scores)
    accepted = np.exp(np.minimum(found.ratios, 0)).mean()
    assert found.nats["draft"] == pytest.approx(found.nats["target"], rel=1e-3)
    # 11/12, to five standard errors of 36,000 stretches, of which a sixth count half.
    assert accepted == pytest.approx(11 / 12, abs=5 * 0.5 * (1 / 6 * 5 / 6 / 36_000) ** 0.5)


def test_with_one_tokenizer_it_is_the_acceptance_of_what_the_target_wrote():
    """min(1, q(y)/p(y)) of every token, computed from two plain passes: the same number, but for the rounding of sums."""
    config = ModelConfig(
        vocab_size=53, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    draft, target = (
        Model(config, jax.tree.map(lambda x: 1.4 * x, init_params(config, jax.random.key(seed))))
        for seed in (1, 2)
    )
    tokenizer = PublishedTokenizer(character_tokenizer())
    prompts = encode_prompts(["the house", "a", "we must go"], tokenizer, 16, "letters")
    settings = PairSettings(lookaheads=(1,), new_tokens=20)
    found = retokenised_acceptance(draft, target, tokenizer, tokenizer, prompts, settings)
    tokens, lengths = sample_target(target, prompts, settings, lambda: None)
    log_probs = [
        np.asarray(
            jax.nn.log_softmax(jax.jit(forward, static_argnums=0)(m.config, m.params, tokens)[0])
        )
        for m in (target, draft)
    ]
    rows = np.arange(len(tokens))[:, None]
    # All but the last: the row's end cut it off.
    at = lengths[:, None] + np.arange(settings.new_tokens - 1)
    log_p, log_q = (x[rows, at - 1, tokens[rows, at]] for x in log_probs)
    assert found.stretches == at.size
    assert found.alpha.estimate == pytest.approx(
        np.exp(np.minimum(log_q - log_p, 0)).mean(), rel=1e-4
    )
    assert found.roles["draft"].loss_nats.estimate == pytest.approx(-log_q.mean(), rel=1e-4)
