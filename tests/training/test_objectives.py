"""What drafts are trained for: identities of the objectives, and drafts trained for a teacher."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny
from scipy.optimize import linprog

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.config import TrainingConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Head
from sdsl_jax.errors import SdslError
from sdsl_jax.evidence import Evidence
from sdsl_jax.fitting.fits import fit_acceptance, fit_loss
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.models import forward, init_params
from sdsl_jax.models.feature_head import graft
from sdsl_jax.models.kernels import never
from sdsl_jax.progress import Silent
from sdsl_jax.records import read_table, write_table
from sdsl_jax.study import run_study
from sdsl_jax.training import plan_rungs, train_ladder
from sdsl_jax.training.objectives import (
    Objective,
    Readout,
    TeacherProbs,
    acceptance,
    coarsened,
    compared,
    divergence,
    draft_weights,
)
from sdsl_jax.training.step import init_state, step_config, train_step, window_losses
from sdsl_jax.training.teacher import cache_folder, open_teacher

KINDS = ("kl", "reverse-kl", "js", "tv", "log-acceptance", "hybrid")


def logits(seed, *shape, scale=2.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def of_logits(kind, z_p, z_q, eta=3.0):
    return divergence(kind, jax.nn.log_softmax(z_p), jax.nn.log_softmax(z_q), eta)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_is_zero_at_the_target_and_positive_elsewhere(x64, kind):
    z_p, z_q = logits(0, 50, 7), logits(1, 50, 7)
    np.testing.assert_allclose(of_logits(kind, z_p, z_p), 0.0, atol=1e-15)
    np.testing.assert_allclose(
        jax.grad(lambda z: of_logits(kind, z_p, z).sum())(z_p), 0.0, atol=1e-15
    )
    assert (of_logits(kind, z_p, z_q) > 0.01).all()


def test_the_definitions(x64):
    p, q = (np.asarray(jax.nn.softmax(logits(seed, 20, 6))) for seed in (2, 3))
    mean, alpha = (p + q) / 2, np.minimum(p, q).sum(-1)
    weight = np.exp(-2 * alpha.mean())

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    expected = {
        "kl": kl(p, q),
        "reverse-kl": kl(q, p),
        "js": (kl(p, mean) + kl(q, mean)) / 2,
        "tv": 1 - alpha,
        "log-acceptance": -np.log(alpha),
        "hybrid": weight * kl(p, q) + (1 - weight) * (1 - alpha),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(divergence(kind, np.log(p), np.log(q), 2.0), values, rtol=1e-12)
    np.testing.assert_allclose(acceptance(np.log(p), np.log(q)), alpha, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(x64, kind):
    """Central differences; the hybrid's weight is held, as its gradient holds it."""
    z_p, z_q, step = logits(4, 5), logits(5, 5), 1e-6
    weight = float(np.exp(-3 * acceptance(jax.nn.log_softmax(z_p), jax.nn.log_softmax(z_q))))

    def value(z):
        if kind != "hybrid":
            return float(of_logits(kind, z_p, z))
        return float(weight * of_logits("kl", z_p, z) + (1 - weight) * of_logits("tv", z_p, z))

    gradient = jax.grad(lambda z: of_logits(kind, z_p, z))(z_q)
    for v, direction in enumerate(np.eye(5)):
        difference = (value(z_q + step * direction) - value(z_q - step * direction)) / (2 * step)
        assert float(gradient[v]) == pytest.approx(difference, abs=1e-8)


def test_gradients_in_closed_form(x64):
    """∂KL/∂z = q − p; ∇(−ln α) = ∇TV/α; ∂TV/∂z_v = −q_v·(1[q_v < p_v] − Σ q·1[q < p])."""
    z_p, z_q = logits(6, 30, 8), logits(7, 30, 8)
    p, q = jax.nn.softmax(z_p), jax.nn.softmax(z_q)
    gradient = {k: jax.grad(lambda z, k=k: of_logits(k, z_p, z).sum())(z_q) for k in KINDS}
    np.testing.assert_allclose(gradient["kl"], q - p, atol=1e-12)
    alpha = jnp.minimum(p, q).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient["log-acceptance"], gradient["tv"] / alpha, atol=1e-12)
    below = (q < p).astype(float)
    expected = -q * (below - (q * below).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient["tv"], expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_a_logit_change_nothing(kind):
    z_p, z_q = (logits(s, 4, 6).astype(jnp.float32) for s in (8, 9))
    padding = jnp.full((4, 3), -jnp.inf)
    wide_p, wide_q = (jnp.concatenate([z, padding], axis=-1) for z in (z_p, z_q))
    plain, plain_gradient = jax.value_and_grad(lambda z: of_logits(kind, z_p, z).sum())(z_q)
    padded, gradient = jax.value_and_grad(lambda z: of_logits(kind, wide_p, z).sum())(wide_q)
    assert float(padded) == pytest.approx(float(plain), rel=1e-6)
    np.testing.assert_allclose(gradient[:, :6], plain_gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 6:], 0.0)


def test_optima_of_one_draft_for_several_targets(x64):
    """A draft that cannot tell contexts apart: KL's optimum is the mean Σ wᵢpᵢ; TV's that of a linear programme."""
    z, weights = logits(10, 4, 5), np.array([0.4, 0.3, 0.2, 0.1])
    p = np.asarray(jax.nn.softmax(z))

    def mean_objective(kind, z_q):
        return (weights * of_logits(kind, z, jnp.broadcast_to(z_q, z.shape))).sum()

    at_mean = jax.grad(lambda x: mean_objective("kl", x))(np.log(weights @ p))
    np.testing.assert_allclose(at_mean, 0.0, atol=1e-12)
    # Σ w·½|p − q| over distributions q: each |·| is a variable bounded by both signs of its content.
    n, V = p.shape
    cost = np.concatenate([np.zeros(V), np.repeat(weights / 2, V)])
    above = np.hstack([np.tile(np.eye(V), (n, 1)), -np.eye(n * V)])
    below = np.hstack([-np.tile(np.eye(V), (n, 1)), -np.eye(n * V)])
    least = linprog(
        cost,
        A_ub=np.vstack([above, below]),
        b_ub=np.concatenate([p.ravel(), -p.ravel()]),
        A_eq=np.concatenate([np.ones(V), np.zeros(n * V)])[None],
        b_eq=[1.0],
    ).fun

    @jax.jit
    def descend(z_q):
        def step(i, z_q):
            rate = 3.0 / jnp.sqrt(1.0 + i)  # a subgradient needs steps that shrink
            return z_q - rate * jax.grad(lambda x: mean_objective("tv", x))(z_q)

        return jax.lax.fori_loop(0, 20_000, step, z_q)

    reached = float(mean_objective("tv", descend(jnp.log(jnp.asarray(weights @ p)))))
    assert least - 1e-9 <= reached < least + 2e-3
    assert float(mean_objective("tv", np.log(weights @ p))) > least + 0.005


def test_coarsening_moves_every_number_one_way_and_by_no_more_than_the_rest(x64):
    log_p, log_q = (jax.nn.log_softmax(logits(s, 40, 12)) for s in (11, 12))
    ids = jax.lax.top_k(log_p, 4)[1]
    few_p, few_q = coarsened(log_p, ids), coarsened(log_q, ids)
    np.testing.assert_allclose(jnp.exp(few_q).sum(-1), 1.0, rtol=1e-12)
    rest = np.exp(np.asarray(few_p[:, -1]))
    more = np.asarray(acceptance(few_p, few_q) - acceptance(log_p, log_q))
    assert (more >= -1e-12).all()
    assert (more <= rest + 1e-12).all()
    for kind in ("kl", "reverse-kl", "js", "tv"):
        assert (divergence(kind, few_p, few_q) <= divergence(kind, log_p, log_q) + 1e-12).all()
    assert coarsened(log_p, None) is log_p


# Drafts of a truncated readout.

READOUT = (1, 3, 4, 7, 10)
ALL = Readout((), 12)


def truncated(z):
    """Logits as a model with these readout ids gives them."""
    inside = np.isin(np.arange(z.shape[-1]), READOUT)
    return jnp.where(inside, z, never(z.dtype))


@pytest.mark.parametrize("top", [0, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_truncated_readout_is_compared_over_the_whole_vocabulary(top, temperature):
    """By brute force in float64: q is 0 outside the ids, α at most p(K), and what of KL is infinite is left out."""
    z_p, z_q = (np.asarray(logits(s, 30, 12)) for s in (14, 15))
    log_p = jax.nn.log_softmax(z_p)
    ids = jax.lax.top_k(log_p, top)[1] if top else None
    inputs = jnp.asarray(z_q, jnp.float32)[:, np.asarray(READOUT)]
    objective = Objective("tv", temperature=temperature)
    teacher = TeacherProbs(coarsened(log_p, ids), ids)
    readout = Readout(READOUT, 12)
    seen = compared(objective, readout, inputs, jax.nn.logsumexp(inputs, -1), teacher)
    # The same in numpy, token by token.
    p, q = np.exp(np.asarray(log_p, float)), np.zeros((30, 12))
    weights = np.exp(np.asarray(z_q, float)[:, list(READOUT)] / temperature)
    q[:, list(READOUT)] = weights / weights.sum(-1, keepdims=True)
    given = np.tile(np.isin(np.arange(12), READOUT), (30, 1))
    if top:
        kept = np.asarray(ids)
        p, q, given = (np.take_along_axis(x, kept, -1) for x in (p, q, given))
        p, q = (np.append(x, 1 - x.sum(-1, keepdims=True), axis=-1) for x in (p, q))
        given = np.append(given, np.ones((30, 1), bool), axis=-1)
    alpha, reached = np.minimum(p, q).sum(-1), (p * given).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(given & (p > 0), p * np.log(p / q), 0).sum(-1) - reached * np.log(reached)
        reverse = np.where(q > 0, q * np.log(q / p), 0).sum(-1)
        m = (p + q) / 2
        js = [np.where(x > 0, x * np.log(x / m), 0).sum(-1) for x in (p, q)]
    weight = np.exp(-3 * alpha.mean())
    expected = {
        "kl": kl,
        "reverse-kl": reverse,
        "js": sum(js) / 2,
        "tv": 1 - alpha,
        "log-acceptance": -np.log(alpha),
        "hybrid": weight * kl + (1 - weight) * (1 - alpha),
    }
    np.testing.assert_allclose(acceptance(*seen), alpha, atol=1e-6)
    assert (alpha <= reached + 1e-12).all()
    assert (np.asarray(acceptance(*seen)) <= reached + 1e-6).all()
    for kind, values in expected.items():
        # What is left for the others, 1 − Σ q, loses digits in float32.
        np.testing.assert_allclose(divergence(kind, *seen), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_truncated_readout(x64, kind):
    """Central differences; ids without a logit have none, and KL's is p(K)·q − p."""
    z_p, z_q, step = logits(16, 12), logits(17, 12), 1e-6
    log_p, inside = jax.nn.log_softmax(z_p), np.isin(np.arange(12), READOUT)
    p, q = np.exp(log_p), np.asarray(jax.nn.softmax(truncated(z_q)))

    def value(z):
        log_q = jnp.where(inside, jax.nn.log_softmax(truncated(z)), -jnp.inf)
        return divergence(kind, log_p, log_q, 3.0, jnp.float64(0.4))

    gradient = np.asarray(jax.grad(value)(z_q))
    up, down = (jax.vmap(value)(z_q[None] + sign * step * np.eye(12)) for sign in (1, -1))
    np.testing.assert_allclose(gradient, (up - down) / (2 * step), atol=1e-8)
    np.testing.assert_array_equal(gradient[~inside], 0.0)
    if kind == "kl":
        np.testing.assert_allclose(gradient, inside * (p[inside].sum() * q - p), atol=1e-12)
        # Nothing is left to gain at the target's distribution among the ids.
        assert float(value(z_p)) == pytest.approx(0.0, abs=1e-15)
    if kind == "tv":
        assert float(value(z_p)) == pytest.approx(1 - p[inside].sum(), abs=1e-15)


@pytest.mark.slow
def test_cross_entropy_of_a_truncated_readout_counts_what_it_can_give(small_model):
    """The mean over those labels, and the gradient of that mean; a step leaves no other trace."""
    config = dataclasses.replace(small_model, readout_ids=READOUT)
    params, tokens = (
        init_params(config, jax.random.key(1)),
        jax.random.randint(jax.random.key(2), (4, 9), 0, 11),
    )

    def by_hand(params):
        z = forward(small_model, params, tokens[:, :-1])[0][..., np.asarray(READOUT)]
        label = (tokens[:, 1:, None] == np.asarray(READOUT)[None, None]).astype(jnp.float32)
        losses = -(label * jax.nn.log_softmax(z)).sum(-1)
        return losses.sum() / label.sum(), losses.sum(-1) / label.sum((-1, -2))

    (loss, each), gradient = jax.value_and_grad(by_hand, has_aux=True)(params)
    recipe = step_config(TrainingConfig(z_loss=0.0, weight_decay=0.0, clip_norm=1e9))
    np.testing.assert_allclose(window_losses(params, tokens, model=config), each, rtol=1e-5)
    _, metrics = train_step(init_state(recipe, params), tokens, 1e-3, model=config, config=recipe)
    assert float(metrics.loss_nats) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics.gradient_norm) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)


def test_both_are_compared_at_the_temperature():
    z = logits(13, 2, 3, 9).astype(jnp.float32)
    log_p = jax.nn.log_softmax(z / 0.5)
    teacher = TeacherProbs(log_p)
    same = compared(Objective("tv", temperature=0.5), ALL, z, jax.nn.logsumexp(z, -1), teacher)
    np.testing.assert_allclose(*same, atol=1e-5)
    plain = compared(Objective("tv"), ALL, z, jax.nn.logsumexp(z, -1), teacher)
    np.testing.assert_allclose(plain[1], jax.nn.log_softmax(z), atol=1e-6)


# Drafts of a tiny study, trained for its target.


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


@pytest.fixture(scope="module")
def models(measured_study):
    return read_table(measured_study / "records", "models")


def distil(measured_study, models, cache, **changed):
    target = next(r for r in models if r.role == "target")
    return tiny(
        ladder={"draft_params": [600], "draft_tokens": [4_000, 8_000]},
        training={"learning_rate": 1e-3, "evaluation_windows": 8},
        distil={
            "teacher": str(measured_study / target.checkpoint),
            "init_from": str(measured_study),
            "objective": "tv",
            "cache": str(cache),
        }
        | changed,
    )


def drafts(config, dataset, folder, progress=None):
    """Trains the drafts of a study, and returns their records."""
    from sdsl_jax.training import train_rungs

    plans = [p for p in plan_rungs(config, dataset, folder) if p.rung.role == "draft"]
    return train_rungs(config, dataset, folder, plans, progress).records


class Notes(Silent):
    def __init__(self, stop_at=None):
        self.notes, self.stage, self.left = [], "", stop_at

    def note(self, text):
        self.notes.append(text)

    def start(self, stage, total):
        self.stage = stage

    def advance(self, amount, detail=""):
        if self.left and self.stage == self.left[0]:
            self.left = (self.left[0], self.left[1] - 1)
            if self.left[1] <= 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(measured_study, models, dataset, tmp_path_factory):
    """Drafts trained for total variation, and the notes of the run."""
    folder, notes = tmp_path_factory.mktemp("distilled"), Notes()
    config = distil(measured_study, models, folder / "cache")
    return config, folder, drafts(config, dataset, folder, notes), notes.notes


def test_records_name_objective_teacher_and_parent(trained, models):
    _, folder, records, notes = trained
    assert [r.model_id for r in records] == ["draft-600-4k-tv-s0", "draft-600-8k-tv-s0"]
    target = next(r for r in models if r.role == "target")
    parent = next(r for r in models if r.model_id == "draft-600-16k-s0")
    for record in records:
        assert record.objective == "tv"
        assert record.teacher_digest == target.params_digest
        assert record.parent_digest == parent.params_digest
    assert sum("GB of at most 4 GB" in note for note in notes) == 1
    assert sum("the mean α is at most" in note for note in notes) == 1
    metrics = [json.loads(line) for line in next(folder.rglob("trunk/metrics.jsonl")).open()]
    assert all(
        row["objective"] == pytest.approx(1 - row["acceptance"], abs=1e-5) for row in metrics
    )


def test_training_starts_from_the_parent_and_raises_acceptance(
    trained, measured_study, models, dataset
):
    _, folder, records, _ = trained
    target = load_model_folder(
        measured_study / next(r for r in models if r.role == "target").checkpoint
    )
    parent = load_model_folder(
        measured_study / next(r for r in models if r.model_id == "draft-600-16k-s0").checkpoint
    )
    child = load_model_folder(folder / records[-1].checkpoint)
    windows = jnp.asarray(dataset.text("train").windows(64)[:, :-1])

    def alpha(draft):
        log_p, log_q = (
            jax.nn.log_softmax(forward(m.config, m.params, windows)[0]) for m in (target, draft)
        )
        return float(acceptance(log_p, log_q).mean())

    assert alpha(child) > alpha(parent) + 0.02
    # And it gives up some loss, which plain training for so long would not.
    first = json.loads(next(folder.rglob("trunk/metrics.jsonl")).open().readline())
    assert first["acceptance"] == pytest.approx(alpha(parent), abs=0.03)


def test_a_killed_run_ends_in_the_same_bits(trained, dataset, tmp_path):
    """Interrupted while the teacher is cached, and again while the draft is trained."""
    config, _, whole, _ = trained
    config = dataclasses.replace(
        config, distil=dataclasses.replace(config.distil, cache=str(tmp_path / "cache"))
    )
    for where in (("teacher", 2), ("train", 12)):
        with pytest.raises(KeyboardInterrupt):
            drafts(config, dataset, tmp_path, Notes(where))
    assert [r.params_digest for r in drafts(config, dataset, tmp_path)] == [
        r.params_digest for r in whole
    ]


def test_what_the_teacher_says_of_a_window_depends_on_nothing_else(trained, dataset, tmp_path):
    """Not on who computed it nor on what else was computed; a damaged shard is made again."""
    config, *_ = trained
    there = cache_folder(config, dataset)
    windows = sorted(
        w for path in there.glob("*.json") for w in json.loads(path.read_text())["windows"]
    )
    whole = open_teacher(config, dataset, windows, Silent())
    alone = dataclasses.replace(
        config, distil=dataclasses.replace(config.distil, cache=str(tmp_path))
    )
    few = open_teacher(alone, dataset, windows[3:40:7], Silent())
    for window in windows[3:40:7]:
        np.testing.assert_array_equal(few[window]["log_probs"], whole[window]["log_probs"])
        np.testing.assert_array_equal(few[window]["tokens"], dataset.train_windows[window])
    shard = next(cache_folder(alone, dataset).glob("*.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    notes = Notes()
    again = open_teacher(alone, dataset, windows[3:40:7], notes)
    assert any("is damaged; its windows are computed again" in note for note in notes.notes)
    np.testing.assert_array_equal(again[windows[3]]["log_probs"], whole[windows[3]]["log_probs"])
    assert not shard.exists()
    # Drafts that read no features find the probabilities beside those of drafts that do.
    tapped = dataclasses.replace(
        alone, distil=dataclasses.replace(alone.distil, cache=str(tmp_path / "more"), taps=(1,))
    )
    with_features = open_teacher(tapped, dataset, windows[:2], Silent())[windows[1]]
    notes = Notes()
    untapped = dataclasses.replace(tapped.distil, taps=())
    without = open_teacher(
        dataclasses.replace(tapped, distil=untapped), dataset, windows[:2], notes
    )[windows[1]]
    assert not any("are to be computed" in note for note in notes.notes)
    assert set(without) == set(with_features) - {"features"}
    np.testing.assert_array_equal(without["log_probs"], with_features["log_probs"])


@pytest.mark.slow
def test_stored_probabilities_are_as_far_off_as_they_say(
    trained, measured_study, models, dataset, tmp_path
):
    """Whole and of the most probable tokens; what is said bounds the error in α, whatever the draft."""
    config, *_ = trained
    target = load_model_folder(
        measured_study / next(r for r in models if r.role == "target").checkpoint
    )
    windows = [0, 5, 9]
    tokens = np.stack([dataset.train_windows[w] for w in windows])[:, :-1]
    log_p = jax.nn.log_softmax(forward(target.config, target.params, jnp.asarray(tokens))[0])
    log_q = jax.nn.log_softmax(log_p + jax.random.normal(jax.random.key(0), log_p.shape))
    exact = acceptance(log_p, log_q)
    for top, most in ((0, 5e-4), (8, 0.9)):
        asked = dataclasses.replace(
            config, distil=dataclasses.replace(config.distil, cache=str(tmp_path), top=top)
        )
        cache = open_teacher(asked, dataset, windows, Silent())
        rows = [cache[w] for w in windows]
        teacher = TeacherProbs(
            jnp.stack([r["log_probs"] for r in rows]),
            jnp.stack([r["ids"] for r in rows]) if top else None,
        )
        seen = compared(Objective("tv"), ALL, log_q, jnp.zeros(log_q.shape[:-1]), teacher)
        error = float(jnp.abs(acceptance(*seen) - exact).mean())
        assert error <= cache.kept_error + 1e-6 < most
        assert error > cache.kept_error / 50  # a bound, and no idle one


@pytest.mark.slow
def test_samples_continue_the_windows_and_only_they_count(
    measured_study, models, dataset, tmp_path
):
    config = distil(
        measured_study,
        models,
        tmp_path / "cache",
        text="samples",
        prompt_tokens=5,
        objective=["ce", "kl"],
    )
    records = drafts(config, dataset, tmp_path)
    assert {r.objective for r in records} == {"ce", "kl"}
    assert all(r.teacher_digest for r in records)  # cross-entropy on the teacher's text, too
    some = open_teacher(config, dataset, [4, 2], Silent())
    other = dataclasses.replace(
        config, distil=dataclasses.replace(config.distil, cache=str(tmp_path / "other"))
    )
    again = open_teacher(other, dataset, [2], Silent())
    np.testing.assert_array_equal(some[2]["tokens"], again[2]["tokens"])
    np.testing.assert_array_equal(some[2]["tokens"][:5], dataset.train_windows[2][:5])
    assert not np.array_equal(some[2]["tokens"], dataset.train_windows[2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cache_gb": 1e-6}, r"GB in .*; distil.cache_gb allows 1e-06\. Raise it"),
        ({"init_from": "nowhere"}, "distil.init_from is 'nowhere', where no trained ladder is"),
        ({"teacher": "nowhere"}, "the model folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused(
    measured_study, models, dataset, tmp_path, changed, message
):
    config = distil(measured_study, models, tmp_path / "cache", **changed)
    with pytest.raises(SdslError, match=message):
        drafts(config, dataset, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


def test_a_parent_of_another_seed_or_shape_is_refused(measured_study, models, dataset, tmp_path):
    config = distil(measured_study, models, tmp_path / "cache")
    for ladder in ({"seeds": (4,)}, {"draft_params": (800,)}):
        asked = dataclasses.replace(config, ladder=dataclasses.replace(config.ladder, **ladder))
        with pytest.raises(SdslError, match=r"holds no draft of the shape of draft-.*and seed"):
            train_ladder(asked, dataset, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"objective": "tv", "teacher": ""},
            "distil.objective holds 'tv', which needs distil.teacher",
        ),
        ({"text": "samples", "teacher": "", "objective": "ce"}, "which needs distil.teacher"),
        ({"objective": ["kl", "kl"]}, "repeats a value"),
        (
            {"objective": "huber"},
            r"distil.objective is 'huber'; it must be one of 'ce', 'kl', .*'hybrid' or an array of such",
        ),
        (
            {"objective": ["tv", "huber"]},
            r"distil.objective is \['tv', 'huber'\]; it must be one of",
        ),
        ({"text": "samples", "prompt_tokens": 40}, "it must be less than data.sequence_length"),
        ({"taps": [1], "unrolled": 33}, "distil.unrolled is 33; it must be at most 32"),
        (
            {"taps": [1], "unrolled": 28, "text": "samples", "prompt_tokens": 8},
            "it must be at most 24, the tokens of a window that count",
        ),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(SdslError, match=message):
        tiny(distil={"teacher": "x"} | changed)


def test_plain_rungs_keep_their_names_and_folders(measured_study, models, dataset, tmp_path):
    """Neither the targets of a study that distils nor a study that does not train elsewhere than before."""
    plain = {p.rung.name: p.folder for p in plan_rungs(tiny(), dataset, tmp_path)}
    made = {path.name for path in (measured_study / "checkpoints").iterdir()}
    assert {folder.name for folder in plain.values()} == made
    config = distil(measured_study, models, tmp_path)
    target = next(p for p in plan_rungs(config, dataset, tmp_path) if p.rung.role == "target")
    assert (target.parent, target.teacher_digest, target.rung.objective) == (None, "", "")


def test_what_decides_a_distilled_rung_is_in_its_folder(measured_study, models, dataset, tmp_path):
    def folder(**changed):
        config = distil(measured_study, models, tmp_path, **changed)
        return next(
            p.folder for p in plan_rungs(config, dataset, tmp_path) if p.rung.role == "draft"
        )

    same = [folder(), folder(eta=1.0), folder(cache_gb=2.0), folder(prompt_tokens=3)]
    other = [
        folder(objective="kl"),
        folder(temperature=0.7),
        folder(text="samples"),
        folder(top=5),
        folder(init_from=""),
    ]
    assert len({*same}) == 1
    assert len({*same, *other}) == 1 + len(other)
    assert folder(objective="hybrid") != folder(objective="hybrid", eta=1.0)


@pytest.mark.slow
def test_a_study_trains_measures_and_compares_objectives(measured_study, models, dataset, tmp_path):
    """Laws are fitted to the parents, which join the records with the teacher; the report has the comparison."""
    config = distil(measured_study, models, tmp_path / "cache", objective=["ce", "tv"])
    ladder = dataclasses.replace(
        config.ladder, draft_params=(600, 1200, 2500), target_params=(), target_tokens=()
    )
    config = dataclasses.replace(config, ladder=ladder)
    records = run_study(config, tmp_path / "study")
    assert {m.objective for m in records.trained} == {"", "ce", "tv"}
    assert {m.trained_for for m in records.models} == {"text"}
    assert len(records.models) == 3 * 2 + 1  # parents of two budgets, and the teacher
    answer = records.document("evidence", Evidence).objectives
    assert {(r.objective, r.draft_params, r.train_tokens) for r in answer.results} == {
        (m.objective, m.params_nonembedding, m.train_tokens) for m in records.trained if m.objective
    }
    alpha = {
        r.draft_id: r.alpha for r in records.measured_acceptance if r.estimator == answer.estimator
    }
    by_id = {m.model_id: m for m in records.trained}
    for result in answer.results:
        own = f"draft-{result.draft_params}"
        of = {
            o: next(
                alpha[name]
                for name, m in by_id.items()
                if (m.objective, m.params_nonembedding, m.train_tokens)
                == (o, result.draft_params, result.train_tokens)
            )
            for o in {result.objective, "ce"}
        }
        assert result.alpha.estimate == pytest.approx(of[result.objective]), own
        assert result.gain.estimate == pytest.approx(of[result.objective] - of["ce"])
    assert [law.objective for law in answer.laws] == ["ce", "tv"]
    page = (tmp_path / "study" / "report.html").read_text()
    assert "What does training for acceptance change?" in page
    assert "total variation" in page
    csv = tmp_path / "study" / "records"
    with pytest.raises(
        SdslError, match=r"different objectives: ce, text, tv.* Choose one with --objective"
    ):
        fit_loss(csv / "models.csv")
    with pytest.raises(SdslError, match="different objectives"):
        fit_acceptance(csv)
    assert len(fit_acceptance(csv, objective="tv", starts=4, bootstrap=20).fits) > 1
    with pytest.raises(SdslError, match="holds no drafts of the objective kl; it has ce, text, tv"):
        fit_acceptance(csv, objective="kl")


# Heads on the teacher's hidden states.


@pytest.fixture(scope="module")
def trained_heads(measured_study, models, tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("heads")
    config = distil(measured_study, models, folder / "cache", taps=[1], unrolled=3)
    return config, folder, drafts(config, dataset, folder)


@pytest.mark.slow
def test_a_head_is_saved_with_what_it_reads(trained_heads, models):
    _, folder, records = trained_heads
    assert [r.model_id for r in records] == ["draft-600-4k-head-tv-s0", "draft-600-8k-head-tv-s0"]
    target = next(r for r in models if r.role == "target")
    parent = next(r for r in models if r.model_id == "draft-600-16k-s0")
    loaded = load_model_folder(folder / records[-1].checkpoint)
    assert (loaded.head.taps, loaded.head.target_width) == ((1,), target.width)
    extra = loaded.config.width * (target.width + loaded.config.width)
    for record in records:
        assert (record.kind, record.trained_for) == ("head", "head tv")
        assert record.params_nonembedding == parent.params_nonembedding + extra
        assert record.params_total == parent.params_total + extra
    assert np.abs(loaded.draft.params.read).max() > 0
    assert np.abs(loaded.draft.params.feed).max() > 0
    with pytest.raises(SdslError, match="is a head on the hidden states of its target"):
        _ = loaded.model


@pytest.mark.slow
def test_a_killed_head_ends_in_the_same_bits(trained_heads, dataset, tmp_path):
    config, _, whole = trained_heads
    with pytest.raises(KeyboardInterrupt):
        drafts(config, dataset, tmp_path, Notes(("train", 12)))
    again = drafts(config, dataset, tmp_path)
    assert [r.params_digest for r in again] == [r.params_digest for r in whole]
    assert [r.loss_nats for r in again] == [r.loss_nats for r in whole]


@pytest.mark.slow
def test_every_draft_of_a_head_is_accepted_more_often_than_its_parent(
    trained_heads, measured_study, models, dataset
):
    _, folder, records = trained_heads
    target, parent = (
        load_model_folder(measured_study / next(r for r in models if chosen(r)).checkpoint).model
        for chosen in (lambda r: r.role == "target", lambda r: r.model_id == "draft-600-16k-s0")
    )
    head = load_model_folder(folder / records[-1].checkpoint).draft
    windows = dataset.text("train").windows(64)[:, :-1]
    by_draft = head_overlap(head, target, windows, first=0, drafts=3).drafts
    plain = Head(head.config, graft(head.config, parent.params))
    before = head_overlap(plain, target, windows, first=0, drafts=3).drafts
    for now, then in zip(by_draft, before):
        assert now.mean(0.9).estimate > then.mean(0.9).estimate + 0.01


def test_weights_of_drafts():
    weights = draft_weights(Objective("tv", first=2, drafts=4, draft_decay=0.5), 10)
    assert weights.sum() == pytest.approx(1)
    assert (weights[:, :2] == 0).all()
    assert (weights[3, :3] == 0).all()
    np.testing.assert_allclose(
        weights.sum(axis=1) / weights.sum(axis=1)[0], np.exp(-0.5 * np.arange(4)), rtol=1e-6
    )
    assert (draft_weights(Objective(), 10) == np.float32(0.1)).all()


def test_taps_of_a_teacher_are_checked(measured_study, models, dataset, tmp_path):
    with pytest.raises(
        SdslError, match=r"distil.taps is \[9\]; the teacher .* has blocks from 1 to"
    ):
        plan_rungs(distil(measured_study, models, tmp_path, taps=[9]), dataset, tmp_path)
    with pytest.raises(SdslError, match=r"needs distil\.teacher"):
        tiny(distil={"taps": [1]})


@pytest.mark.slow
def test_a_head_is_no_teacher_and_no_draft_of_its_objective(trained_heads, dataset, tmp_path):
    config, folder, records = trained_heads
    told = dataclasses.replace(
        config.distil, teacher=str(folder / records[-1].checkpoint), init_from="", taps=()
    )
    with pytest.raises(
        SdslError, match="a head on the hidden states of another model; it cannot be"
    ):
        drafts(dataclasses.replace(config, distil=told), dataset, tmp_path)


def test_heads_and_plain_drafts_are_not_fitted_together(models, tmp_path):
    mixed = [
        dataclasses.replace(
            models[0],
            model_id=f"draft-{n}-{kind}",
            params_nonembedding=500 * (n + 1),
            loss_nats=3 - 0.1 * n,
            train_tokens=1000 * (1 + n % 3),
            objective="tv",
            teacher_digest="t",
            kind=kind,
        )
        for n in range(6)
        for kind in ("", "head")
    ]
    write_table(tmp_path, "models", mixed)
    with pytest.raises(SdslError, match="different objectives: head tv, tv"):
        fit_loss(tmp_path)
    assert fit_loss(tmp_path, objective="head tv", starts=4, bootstrap=20).record.n == 6


@pytest.mark.slow
def test_a_parallel_head_is_trained_saved_and_measured(measured_study, models, dataset, tmp_path):
    config = distil(
        measured_study,
        models,
        tmp_path / "cache",
        taps=[1],
        unrolled=3,
        parallel=True,
        objective="kl",
    )
    records = drafts(config, dataset, tmp_path)
    assert [r.kind for r in records] == ["parallel-head"] * 2
    assert records[-1].model_id == "draft-600-8k-parallel-head-kl-s0"
    loaded = load_model_folder(tmp_path / records[-1].checkpoint)
    assert loaded.head.parallel == 3
    assert loaded.params.feed.shape == (2, 2 * loaded.config.width, loaded.config.width)
    target = load_model_folder(
        measured_study / next(r for r in models if r.role == "target").checkpoint
    ).model
    windows = dataset.text("train").windows(32)[:, :-1]
    now = head_overlap(loaded.draft, target, windows, first=0, drafts=3).drafts
    start = Head(loaded.head, graft(loaded.head, loaded.params.body))
    before = head_overlap(start, target, windows, first=0, drafts=3).drafts
    # With Q = 0 the later drafts would guess the token after the round's last one again.
    assert all(a.mean(0.9).estimate > b.mean(0.9).estimate for a, b in zip(now[1:], before[1:]))


def test_a_parallel_head_needs_taps():
    with pytest.raises(SdslError, match=r"distil\.parallel needs distil\.taps"):
        tiny(distil={"teacher": "x", "objective": "kl", "parallel": True})
