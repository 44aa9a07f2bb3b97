"""A head on the target's hidden states: what it reads and when, and that decoding with it is lossless."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import KindCell, V, check_kind, head, kind_cells, model, table_head
from sdsl_jax.decoding import Head, Sampling, loop, speculate
from sdsl_jax.decoding.drafters import over_all
from sdsl_jax.decoding.feature_drafter import FeatureDrafter, with_tables
from sdsl_jax.errors import SdslError
from sdsl_jax.models import forward, outputs
from sdsl_jax.models.feature_head import graft, start_fusion, unrolled

PLAIN = Sampling()
# False alarm of 1e-6 in all, over at most 20 tests.
ALPHA = 1e-6 / 20
LENGTH = 20


@pytest.fixture(scope="module")
def text():
    return jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, LENGTH)))


def features_of(target, taps, tokens):
    return outputs(target.config, target.params, tokens, taps=taps).features


def test_taps_are_the_residual_stream(text):
    """The last one, normed and multiplied by the head, gives the logits; the pass itself is unchanged."""
    target = model(2, 2)
    out = outputs(target.config, target.params, text, taps=(0, 2))
    plain, _ = forward(target.config, target.params, text)
    np.testing.assert_array_equal(out.logits, plain)
    last = out.features[..., target.config.width :]
    scale = target.params["final_norm"]["scale"].get_value()
    normed = last / jnp.sqrt(jnp.square(last).mean(-1, keepdims=True) + 1e-6) * scale[None, None]
    np.testing.assert_allclose(
        normed @ target.params["head"].get_value(), out.logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_grafted_head_is_the_plain_model(text):
    """P = Q = 0: every draft has the plain model's logits, and decoding draws the same tokens."""
    target, body, some = model(2, 2), model(1, 1), head()
    plain = Head(some.config, graft(some.config, body.params))
    features = features_of(target, some.config.taps, text)
    logits = unrolled(plain.config, plain.params, text, features, 3)
    expected, _ = forward(body.config, body.params, text)
    for k in range(3):
        np.testing.assert_allclose(logits[k, :, k:], expected[:, k:], rtol=1e-4, atol=1e-5)
    settings = dict(lookahead=3, new_tokens=9, seed=5)
    prompts = np.asarray(text[:, :3])
    one, other = (speculate(d, target, prompts, **settings) for d in (plain, body))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    chex.assert_trees_all_close(one.events, other.events, atol=1e-5)


def test_the_first_draft_is_told_what_the_target_saw_before_it(text):
    """Draft k at position t depends on the features up to t − k, and on none after: x_t has none yet."""
    target, some = model(2, 2), head()
    features = features_of(target, some.config.taps, text)
    logits = unrolled(some.config, some.params, text, features, 3)
    t = 6
    for changed in range(LENGTH):
        moved = features.at[:, changed].add(1.0 + jnp.arange(features.shape[-1])[None])
        others = unrolled(some.config, some.params, text, moved, 3)
        for k in range(1, 4):
            same = np.array_equal(others[k - 1, :, t], logits[k - 1, :, t])
            assert same == (changed > t - k), (changed, k)


@pytest.mark.parametrize(
    ("window", "parallel", "poison"),
    [
        pytest.param(4, 0, np.nan, marks=pytest.mark.slow),
        pytest.param(4, 4, np.nan, marks=pytest.mark.slow),
        pytest.param(2, 0, np.inf, marks=pytest.mark.slow),
        pytest.param(5, 0, 0.0, marks=pytest.mark.slow),
        pytest.param(4, "a block on the tables", np.nan, marks=pytest.mark.slow),
        pytest.param(3, "one matrix on the tables", np.nan, marks=pytest.mark.slow),
    ],
)
def test_cached_drafts_after_any_rounds_are_the_unrolled_ones(text, window, parallel, poison):
    """Random acceptances and rejections, driven by hand; features of rejected tokens are poisoned."""
    target = model(2, 2)
    if isinstance(parallel, int):
        some = head(parallel=parallel)
    elif parallel == "a block on the tables":
        some = with_tables(table_head(), target)
    else:
        some = with_tables(table_head(blocks=0, readout_ids=(0, 2, 3)), target)
    features = features_of(target, some.config.taps, text)
    dense = unrolled(some.config, some.params, text, features, window)
    drafter = FeatureDrafter(some.config, window)
    random = np.random.default_rng(window)
    B = len(text)
    lengths = jnp.asarray([1, 2, 4])
    width = int(lengths.max())
    state = drafter.start(some.params, text[:, :width], LENGTH + window + 1, features[:, :width])
    buffer = jnp.where(jnp.arange(LENGTH)[None] < lengths[:, None], text, 0)
    rows = np.arange(B)
    while int(lengths.max()) + window < LENGTH:
        kept = jnp.asarray(random.integers(0, window, B))
        proposal, state = drafter.first(some.params, state, buffer, lengths, PLAIN, rows >= 0)
        for k in range(1, window + 1):
            # Draft k continues the text up to position n + k − 2, as long as the drafts are of the text.
            expected = jax.nn.softmax(dense[k - 1, rows, lengths + k - 2])
            known = np.asarray(k - 1 <= kept)
            found = over_all(proposal, V).probs
            np.testing.assert_allclose(found[known], expected[known], atol=2e-5)
            if k < window:
                # Those that are rejected are other tokens than the text's.
                drawn = (text[rows, lengths + k - 1] + (k > kept)) % 4
                proposal, state = drafter.next(
                    some.params, state, buffer, lengths, drawn, jnp.int32(k), PLAIN, rows >= 0
                )
        at = lengths[:, None] - 1 + jnp.arange(window)[None]
        seen = features[rows[:, None], at]
        seen = jnp.where((jnp.arange(window)[None] <= kept[:, None])[..., None], seen, poison)
        state = drafter.observe(some.params, state, lengths - 1, seen)
        lengths = lengths + kept + 1
        buffer = jnp.where(jnp.arange(LENGTH)[None] < lengths[:, None], text, 0)


def test_a_parallel_head_has_no_more_drafts_than_it_gives(text):
    """Draft k reads the hidden state of its round and the token before it; beyond K there is none."""
    target, some = model(2, 2), head(parallel=2)
    features = features_of(target, some.config.taps, text)
    logits = unrolled(some.config, some.params, text, features, 2)
    changed = text.at[:, 6].set((text[:, 6] + 1) % 4)
    others = unrolled(some.config, some.params, changed, features, 2)
    # The second draft after position 6 was told token 6 and the round that ended at 5, whose body
    # has not read token 6; after 7, the other way round.
    assert not np.allclose(others[1, :, 6], logits[1, :, 6])
    assert not np.allclose(others[1, :, 7], logits[1, :, 7])
    np.testing.assert_array_equal(others[:, :, :6], logits[:, :, :6])
    decoded = speculate(some, target, np.asarray(text[:, :3]), lookahead=4, new_tokens=9, seed=2)
    proposed = np.asarray(decoded.events.proposed)
    assert set(proposed[np.asarray(decoded.events.emitted) > 0]) == {2}
    with pytest.raises(SdslError, match="of 2 drafts is asked for 3"):
        unrolled(some.config, some.params, text, features, 3)


def plain_head(target, some, text, features):
    """What a head on the tables without blocks computes, written out."""
    own = some.params
    rms = lambda x: x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    embedding, scale, rows = (
        target.params[name].get_value()
        if name != "final_norm"
        else target.params[name]["scale"].get_value()
        for name in ("embedding", "final_norm", "head")
    )
    told, drafts = jnp.pad(rms(features)[:, :-1], ((0, 0), (1, 0), (0, 0))), []
    for _ in range(3):
        hidden = rms(embedding[text]) @ own.embed + told @ own.read + own.bias[None, None]
        drafts.append(rms(hidden) * scale[None, None] @ rows)
        told = jnp.pad(rms(hidden)[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.stack(drafts)


def test_a_head_on_the_tables_is_one_matrix_between_them(text):
    """Embedding, last norm and readout are the target's; a truncated readout has those of its ids. Blocks
    that have not been trained change nothing."""
    target = model(2, 2)
    features = features_of(target, (2,), text)
    for blocks, ids in ((0, ()), (0, (0, 2, 3)), (1, ())):
        some = table_head(blocks=blocks, readout_ids=ids)
        if blocks:
            own = some.params
            still = start_fusion(some.config, own.embed, own.read, own.bias, jax.random.key(0))
            some = some._replace(params=still)
        bound = with_tables(some, target)
        logits = jax.jit(unrolled, static_argnums=(0, 4))(*bound, text, features, 3)
        expected = plain_head(target, some, text, features)
        kept = list(ids) or slice(None)
        np.testing.assert_allclose(logits[..., kept], expected[..., kept], rtol=1e-4, atol=1e-5)
        if ids:
            assert jax.nn.softmax(logits)[..., 1].max() == 0
            p = jax.nn.softmax(forward(target.config, target.params, text)[0])
            alpha = jnp.minimum(p[None], jax.nn.softmax(logits)).sum(-1)
            assert (alpha <= p[..., kept].sum(-1)[None] + 1e-6).all()
    other = target._replace(config=dataclasses.replace(target.config, layers=1))
    with pytest.raises(
        SdslError, match="on the tables of a target of 2 blocks of width 8 and 4 ids"
    ):
        with_tables(some, other)


@pytest.mark.slow
def test_rows_do_not_see_each_other(text):
    target, some = model(2, 2), head()
    prompts = np.asarray(text[:, :4])
    settings = dict(lookahead=3, new_tokens=8, seed=1)
    together = speculate(some, target, prompts, rows=np.arange(3), **settings)
    for row in range(3):
        alone = speculate(some, target, prompts[row : row + 1], rows=np.asarray([row]), **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell,
            marks=pytest.mark.slow
            if (cell.kind, cell.lookahead, cell.verification, cell.temperature)
            in (
                ("head", 2, "block", 0.7),
                ("parallel-head", 4, "token", 1.0),
                ("table-head", 4, "token", 1.0),
                ("table-head-of-some", 2, "block", 0.7),
            )
            else pytest.mark.release,
        )
        for cell in kind_cells(("head", "parallel-head", "table-head", "table-head-of-some"))
    ],
    ids=str,
)
def test_joint_distribution(cell):
    """Ragged rows that stop at different times, against exact enumeration."""
    assert min(check_kind(cell, 20_000)) > ALPHA


def test_a_head_of_another_target_is_refused():
    some = head()
    wide = some._replace(config=dataclasses.replace(some.config, target_width=16))
    with pytest.raises(
        SdslError,
        match="reads blocks 1, 2 of a target of width 16; this one has 2 blocks of width 8",
    ):
        speculate(wide, model(2, 2), np.array([[1]]), lookahead=2, new_tokens=3)
    with pytest.raises(SdslError, match="at least one tap"):
        dataclasses.replace(some.config, taps=())


def never_told(monkeypatch):
    """Features of the verify pass never arrive."""
    told = lambda self, params, state, start, features: state  # noqa: E731
    monkeypatch.setattr(FeatureDrafter, "observe", told)


def one_position_early(monkeypatch):
    """x_t is read with f_t, which no decoder has when it needs it."""
    observe = FeatureDrafter.observe
    early = lambda self, p, s, start, features: observe(self, p, s, start - 1, features)  # noqa: E731
    monkeypatch.setattr(FeatureDrafter, "observe", early)


def rewrites_two(monkeypatch):
    """The next round feeds two tokens again, as a plain draft's does, and leaves older keys as they were."""
    first = FeatureDrafter.first

    def two(self, *arguments):
        return first(dataclasses.replace(self, window=2), *arguments)

    monkeypatch.setattr(FeatureDrafter, "first", two)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [never_told, one_position_early, rewrites_two])
def test_a_fault_is_found(text, monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        test_cached_drafts_after_any_rounds_are_the_unrolled_ones(text, 4, 0, 0.0)


@pytest.mark.slow
def test_drafts_judged_by_another_distribution_are_found(monkeypatch, fresh_loop):
    """Verification must use the very array that was drawn from; here it is smoothed a little."""
    verify = loop.verify_rows

    def smoothed(verification, drafts, q, p, counts, noise, ids):
        return verify(verification, drafts, 0.8 * q + 0.05, p, counts, noise, ids)

    monkeypatch.setattr(loop, "verify_rows", smoothed)
    assert min(check_kind(KindCell("head", 2, 1.0, "token"), 20_000)) < 1e-9
