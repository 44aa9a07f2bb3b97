import dataclasses

import jax
import numpy as np
import pytest

from sdsl_jax.decoding import Model, Sampling
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.overlap import _compare, _score, chunk_shape, pairwise_overlap
from sdsl_jax.models import ModelConfig, forward, init_params

V, N, L, FIRST = 6, 37, 9, 3
SAMPLINGS = (Sampling(), Sampling(0.6), Sampling(0.0), Sampling(1.3, top_k=3))


CONFIG = ModelConfig(vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12)
PARAMS = jax.tree.map(np.asarray, init_params(CONFIG, jax.random.key(0)))


def make(seed: int, scale: float = 2.5) -> Model:
    """A model of its own for every seed, by shuffling one set of weights: initialising each would compile each."""
    random = np.random.default_rng(seed)
    return Model(
        CONFIG,
        jax.tree.map(lambda x: scale * random.permutation(x.ravel()).reshape(x.shape), PARAMS),
    )


DRAFTS, TARGETS = {"a": make(1), "b": make(2)}, {"t": make(3), "u": make(4)}


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(0)
    contexts = random.integers(0, V, (N, L)).astype(np.int32)
    following = random.integers(0, V, (N, L - FIRST)).astype(np.int32)
    lengths = random.integers(0, L + 1, N)
    lengths[:2] = 0, L
    found = pairwise_overlap(
        DRAFTS,
        TARGETS,
        contexts,
        first=FIRST,
        samplings=SAMPLINGS,
        following=following,
        lengths=lengths,
    )
    return contexts, following, lengths, found


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def by_hand(model, contexts):
    """Log-probabilities in double precision, and the distributions of each sampling, written out."""
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(forward, static_argnums=0)(*model, contexts)[0], np.float64)[
            :, FIRST:
        ]
    greedy = np.eye(V)[logits.argmax(-1)]
    filtered = np.exp(log_softmax(logits / 1.3))
    filtered = np.where(filtered >= np.sort(filtered, axis=-1)[..., -3:-2], filtered, 0)
    filtered /= filtered.sum(axis=-1, keepdims=True)
    plain = log_softmax(logits)
    return plain, (np.exp(plain), np.exp(log_softmax(logits / 0.6)), greedy, filtered)


@pytest.mark.parametrize(("draft", "target"), [("a", "t"), ("a", "u"), ("b", "t"), ("b", "u")])
def test_every_quantity_of_every_pair_written_out(case, draft, target):
    """Against numpy in double precision; sums over up to 6 positions of float32 numbers of order 1, so 1e-5 is ten roundings."""
    contexts, _, lengths, found = case
    pair = found.pairs[draft, target]
    (_, qs), (_, ps) = by_hand(DRAFTS[draft], contexts), by_hand(TARGETS[target], contexts)
    counts = np.arange(FIRST, L) < lengths[:, None]
    for s, (p, q) in enumerate(zip(ps, qs)):
        np.testing.assert_allclose(
            pair.acceptance[s], (np.minimum(p, q).sum(-1) * counts).sum(1), atol=1e-5
        )
    np.testing.assert_array_equal(pair.positions, counts.sum(1))


def test_models_by_themselves(case):
    contexts, following, lengths, found = case
    counts = np.arange(FIRST, L) < lengths[:, None]
    for scores, model in ((found.drafts["b"], DRAFTS["b"]), (found.targets["t"], TARGETS["t"])):
        plain, probs = by_hand(model, contexts)
        np.testing.assert_allclose(
            scores.entropy, (-(np.exp(plain) * plain).sum(-1) * counts).sum(1), rtol=1e-5, atol=1e-5
        )
        chosen = [np.take_along_axis(p, following[..., None], axis=-1)[..., 0] for p in probs]
        np.testing.assert_allclose(
            np.exp(scores.log_probs)[:, counts], np.stack(chosen)[:, counts], atol=1e-6
        )
        interval = scores.mean_entropy(0.9)
        assert 0 < interval.low < interval.estimate < interval.high < np.log(V)


def test_memory_changes_chunks_and_nothing_else(case):
    """One context at a time, and all models told of after every chunk."""
    contexts, following, lengths, found = case
    told = []
    least = 4 * V * ((2 + 1) * (len(SAMPLINGS) + 1) * (L - FIRST) + 3 * L)
    assert chunk_shape(least, 2, len(SAMPLINGS), L - FIRST, L, V) == (1, L - FIRST)
    assert chunk_shape(5 * least + 1, 2, len(SAMPLINGS), L - FIRST, L, V) == (5, L - FIRST)
    few = pairwise_overlap(
        DRAFTS,
        TARGETS,
        contexts,
        first=FIRST,
        samplings=SAMPLINGS,
        following=following,
        lengths=lengths,
        memory_bytes=5 * least,
        advance=told.append,
    )
    assert sum(told) == 4 * -(-N // 5)
    for name, pair in found.pairs.items():
        for a, b in zip(jax.tree.leaves(vars(pair)), jax.tree.leaves(vars(few.pairs[name]))):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found.targets["u"].log_probs, few.targets["u"].log_probs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_where_no_context_fits_positions_are_scored_in_groups():
    """The same numbers from 4, 4 and 1 positions at a time. Residual streams are the same; only the
    order of sums differs, by a few roundings of float32 numbers of order 1."""
    random = np.random.default_rng(3)
    contexts, following = random.integers(0, V, (2, 3, L)).astype(np.int32)
    lengths, samplings = np.array([L, 4, 0]), (Sampling(), Sampling(0.6))
    one = 4 * V * ((2 + 1) * (2 + 1) + 3)
    assert chunk_shape(4 * one, 2, 2, L, L, V) == (1, 3)
    assert chunk_shape(one, 2, 2, L, L, V) == (1, 1)
    told = []
    whole, parts = (
        pairwise_overlap(
            DRAFTS,
            TARGETS,
            contexts,
            first=0,
            samplings=samplings,
            following=following,
            lengths=lengths,
            by_position=True,
            advance=told.append,
            memory_bytes=memory,
        )
        for memory in (2**30, 8 * one - 1)
    )
    assert sum(told) == 4 + 4 * 3
    for a, b in zip(jax.tree.leaves(leaves(whole)), jax.tree.leaves(leaves(parts))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for pair in parts.pairs.values():
        np.testing.assert_allclose(pair.by_position.sum(axis=2), pair.acceptance, rtol=1e-6)


def leaves(found):
    """What is compared; log-probabilities mean nothing at positions that are not."""
    return [[vars(pair) for pair in found.pairs.values()]] + [
        [scores.entropy, np.where(np.isfinite(scores.log_probs), scores.log_probs, 0)[:, :1]]
        for scores in (*found.drafts.values(), *found.targets.values())
    ]


def test_compiled_once_for_all_models_of_a_shape_and_once_for_all_pairs():
    """New sizes, so that nothing is in the cache yet; 3 × 2 models of one shape and two chunks, the last one not full."""
    contexts = np.random.default_rng(1).integers(0, V, (40, 5))
    models = {str(seed): make(seed) for seed in range(5)}
    scored, compared = _score._cache_size(), _compare._cache_size()
    names = list(models)
    drafts, targets = ({name: models[name] for name in part} for part in (names[:3], names[3:]))
    pairwise_overlap(drafts, targets, contexts, first=0, samplings=[Sampling(0.5)])
    pairwise_overlap(drafts, targets, contexts, first=0, samplings=[Sampling(0.9)])
    assert (_score._cache_size() - scored, _compare._cache_size() - compared) == (1, 1)


def test_a_model_against_itself():
    contexts = np.random.default_rng(2).integers(0, V, (N, L))
    model = make(3)
    same = pairwise_overlap({"t": model}, {"t": model}, contexts, first=0).pairs["t", "t"]
    np.testing.assert_allclose(same.acceptance[0], L, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(first=L), r"first is 9; it must lie in \[0, 8\]"),
        (dict(contexts=np.zeros(4, int)), r"they must be \[contexts, tokens\]"),
        (dict(contexts=np.full((2, L), V)), "outside the vocabulary, which runs from 0 to 5"),
        (dict(samplings=()), "must hold at least one"),
        (dict(following=np.zeros((N, L), int)), "a token for each compared position"),
        (dict(lengths=np.full(N, L + 1)), r"lengths run from 10 to 10; they must lie in \[0, 9\]"),
        (dict(memory_bytes=100), "must be at least"),
        (dict(drafts={}), "at least one of each"),
    ],
)
def test_arguments_are_checked(case, change, message):
    arguments = dict(drafts=DRAFTS, targets=TARGETS, contexts=case[0], first=FIRST) | change
    with pytest.raises(SdslError, match=message):
        pairwise_overlap(**arguments)


def test_vocabularies_must_agree():
    config = dataclasses.replace(CONFIG, vocab_size=V + 1)
    with pytest.raises(SdslError, match=r"sizes \[6, 7\]"):
        pairwise_overlap({"x": Model(config, None)}, TARGETS, np.zeros((2, L), int), first=0)


@pytest.mark.parametrize("role", ["draft", "target"])
def test_logits_that_are_not_finite_are_refused_at_any_sampling(case, role):
    """Also at temperature 0, where a probability is 0 or 1 whatever the logits are."""
    contexts, following, lengths, _ = case
    broken = Model(CONFIG, jax.tree.map(lambda x: x * np.inf, PARAMS))
    drafts, targets = (
        (DRAFTS | {"b": broken}, TARGETS) if role == "draft" else (DRAFTS, TARGETS | {"u": broken})
    )
    name = "b" if role == "draft" else "u"
    with pytest.raises(
        SdslError, match=f"the logits of the {role} {name} are not finite at .* positions: "
    ):
        pairwise_overlap(
            drafts,
            targets,
            contexts,
            first=FIRST,
            samplings=SAMPLINGS,
            following=following,
            lengths=lengths,
        )


def test_a_truncated_draft_is_bounded_by_what_the_target_gives_its_ids(case):
    """p(K), in the very positions that α counts; nothing else changes."""
    contexts, following, lengths, _ = case
    ids = (0, 2, 5)
    small = Model(dataclasses.replace(CONFIG, readout_ids=ids), DRAFTS["a"].params)
    found = pairwise_overlap(
        {"a": DRAFTS["a"], "small": small},
        TARGETS,
        contexts,
        first=FIRST,
        samplings=SAMPLINGS,
        following=following,
        lengths=lengths,
    )
    counts = (np.arange(FIRST, L) < lengths[:, None])[..., None]
    for target, model in TARGETS.items():
        assert found.pairs["a", target].bound() == 1
        p = np.exp(by_hand(model, contexts)[0])[..., ids] * counts
        pair = found.pairs["small", target]
        assert pair.bound() == pytest.approx(p.sum() / counts.sum(), abs=1e-6)
        for sampling in range(len(SAMPLINGS)):
            assert pair.mean(0.9, sampling).estimate <= pair.bound(sampling) + 1e-6
