"""Drafts that propose some ids only: the same drafts as over all ids, to the last bit."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.lossless import V, head, hybrid, model, nested, table_head, truncated
from sdsl_jax.decoding import (
    Head,
    NgramDraft,
    Sampling,
    decode,
    speculate,
    verify_block,
    verify_tokens,
)
from sdsl_jax.decoding.drafters import over_all
from sdsl_jax.models.feature_head import HeadConfig

PROMPTS = np.random.default_rng(0).integers(0, V, (6, 4))
SOME = (0, 1, 3)


@pytest.mark.parametrize("verify", [verify_tokens, verify_block])
def test_verdicts_are_those_over_all_ids(verify):
    """With ids in any order and columns of no probability, whose ids occur again."""
    G, ids_in_all, columns, rows = 3, 9, 6, 2000
    random = np.random.default_rng(0)
    p = random.dirichlet(np.full(ids_in_all, 0.5), (rows, G + 1)).astype(np.float32)
    q = random.dirichlet(np.full(columns, 0.5), (rows, G)).astype(np.float32)
    order = np.argsort(random.random((rows, G, ids_in_all)))
    ids = order[..., :columns]
    q[..., -2:], ids[..., -2:] = 0, ids[..., :2]
    q /= q.sum(axis=-1, keepdims=True)
    whole = np.zeros((rows, G, ids_in_all), np.float32)
    np.put_along_axis(whole, ids[..., :-2], q[..., :-2], axis=-1)
    # The draft is right often enough that all drafts are kept now and then.
    p[:, :G] = (p[:, :G] + 3 * whole) / 4
    drawn = np.argmax(np.log(np.maximum(q, 1e-30)) + random.gumbel(size=q.shape), axis=-1)
    drafts = np.take_along_axis(ids, drawn[..., None], axis=-1)[..., 0]
    counts, uniforms = random.integers(0, G + 1, rows), random.random((rows, G), np.float32)
    gumbels = random.gumbel(size=(rows, ids_in_all)).astype(np.float32)
    rest = (p, counts, uniforms, gumbels)
    run = jax.jit(jax.vmap(verify))
    some, all_ = run(drafts, q, *rest, ids), run(drafts, whole, *rest)
    np.testing.assert_array_equal(some.accepted, all_.accepted)
    np.testing.assert_array_equal(some.next_token, all_.next_token)
    # Sums in another order.
    np.testing.assert_allclose(some.expected_accepted, all_.expected_accepted, atol=1e-6)
    assert {*np.unique(some.accepted)} == {0, 1, 2, 3}


@dataclass(frozen=True)
class OverAll:
    """A drafter whose proposals have probabilities of all ids."""

    inner: Any

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def first(self, *arguments):
        proposal, state = self.inner.first(*arguments)
        return over_all(proposal, V), state

    def next(self, *arguments):
        proposal, state = self.inner.next(*arguments)
        return over_all(proposal, V), state


def head_of_some(parallel: int = 0) -> Head:
    draft, whole = truncated(SOME), head(parallel=parallel)
    c = whole.config
    config = HeadConfig(draft.config, c.target_width, c.taps, parallel)
    return Head(config, whole.params._replace(body=draft.params))


DRAFTS = {
    "hybrid": lambda: hybrid(truncated(SOME)),
    "hybrid-head": lambda: hybrid(head_of_some()),
    "hybrid-of-all": lambda: hybrid(model(1, 1)),
    "table-head": lambda: table_head(blocks=0, readout_ids=SOME),
    "parallel-head": lambda: head_of_some(parallel=3),
    "n-grams": lambda: NgramDraft(V),
    "nested": lambda: nested(ids=SOME),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAFTS)
def test_texts_are_those_of_proposals_over_all_ids(monkeypatch, kind):
    """Sampled and greedy: all tokens and events are the same, and so are the recorded distributions."""
    original, target = decode.drafter_of, model(2, 2)

    def run(temperature):
        decoded = speculate(
            DRAFTS[kind](), target, PROMPTS, lookahead=3, new_tokens=30, seed=3,
            sampling=Sampling(temperature), keep_distributions=True,
        )  # fmt: skip
        return jax.tree.map(np.asarray, (decoded.tokens, decoded.events, decoded.blocks))

    some = [run(temperature) for temperature in (1.0, 0.0)]
    monkeypatch.setattr(decode, "drafter_of", lambda *a: OverAll(original(*a)))
    for (tokens, events, blocks), temperature in zip(some, (1.0, 0.0)):
        of_all = run(temperature)
        np.testing.assert_array_equal(tokens, of_all[0])
        for name, value in events._asdict().items():
            other = getattr(of_all[1], name)
            if name == "expected_accepted":
                np.testing.assert_allclose(value, other, atol=1e-6)
            elif value is not None:
                np.testing.assert_array_equal(value, other, err_msg=name)
        np.testing.assert_array_equal(blocks.drafts, of_all[2].drafts)
        np.testing.assert_allclose(blocks.draft_probs, of_all[2].draft_probs, atol=1e-6)
        assert blocks.draft_probs.shape[-1] == V
