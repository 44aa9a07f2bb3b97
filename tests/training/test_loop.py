import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.loading import load_recorded
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.models import forward, init_params, member
from sdsl_jax.models.kernels import token_losses
from sdsl_jax.progress import Silent
from sdsl_jax.training import train_ladder
from sdsl_jax.training.schedule import make_schedule
from sdsl_jax.training.step import init_state, optimizer, step_config, train_step

ONE_RUNG = {
    "draft_params": [600],
    "draft_tokens": [8_000, 16_000],
    "target_params": [900],
    "target_tokens": [8_000],
}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


def test_schedule():
    config = tiny(
        training={"warmup_tokens": 1024, "cooldown_fraction": 0.25, "learning_rate": 1.0}
    ).training
    schedule = make_schedule(config, config.reference_params, (25_600, 51_200), 32)
    assert schedule.ends == (100, 200)
    assert schedule.branches == (75, 150)
    assert schedule.total_steps == 150 + 25 + 50
    assert [schedule.trunk_rate(s) for s in (0, 1, 3, 4, 149)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert schedule.cooldown_rate(0, 75) == 1.0
    assert schedule.cooldown_rate(0, 99) == pytest.approx(1 / 25)
    smaller = make_schedule(config, config.reference_params // 32, (25_600,), 32)
    assert smaller.peak == pytest.approx(32**config.learning_rate_exponent)


def test_budgets_less_than_a_step_apart_are_refused():
    with pytest.raises(SdslError, match="one step is 256 tokens"):
        make_schedule(tiny().training, 1000, (1000, 1010), 32)


def test_token_losses_are_cross_entropies():
    logits = jnp.array([[[1.0, 2.0, 0.5]]])
    loss, log_z = token_losses(logits, jnp.array([[1]]))
    z = np.exp([1.0, 2.0, 0.5]).sum()
    assert float(loss[0, 0]) == pytest.approx(np.log(z) - 2.0)
    assert float(log_z[0, 0]) == pytest.approx(np.log(z))


def test_a_step_is_adamw_on_the_documented_loss(dataset):
    """One step against its definition, written out: gradient of loss + z-loss, clipped, Adam, decay on matrices only."""
    config = tiny(training={"weight_decay": 0.5, "z_loss": 0.1}).training
    recipe = step_config(config)
    model = member(tiny().family, 600, 256)
    params = init_params(model, jax.random.key(0))
    tokens = jnp.asarray(dataset.batches(0, 8)[0])

    def objective(p):
        loss, log_z = token_losses(forward(model, p, tokens[:, :-1])[0], tokens[:, 1:])
        return loss.mean() + 0.1 * jnp.square(log_z).mean()

    gradient = jax.jit(jax.grad(objective))(params)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    scale = min(1.0, config.clip_norm / norm)

    def expected(p, g):
        # After one step Adam's moments, corrected for their start at zero, are g and g².
        direction = scale * g / (jnp.abs(scale * g) + 1e-8)
        return p - 0.01 * (direction + (0.5 * p if p.ndim == 2 else 0.0))

    wanted = jax.tree.map(expected, params, gradient)
    state, metrics = train_step(
        init_state(recipe, params), tokens, 0.01, model=model, config=recipe
    )
    assert float(metrics.gradient_norm) == pytest.approx(norm, rel=1e-5)
    for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(got, want, atol=2e-5)
    assert int(state.step) == 1
    assert optimizer(recipe) is not None


class _StopsAt(Silent):
    """Raises after so many steps, as if the process had been killed there."""

    def __init__(self, steps: int):
        self.left = steps

    def advance(self, amount, detail=""):
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "killed_at",
    [
        pytest.param([3], marks=pytest.mark.slow),
        [48, 20],
        pytest.param([60], marks=pytest.mark.slow),
    ],
)
def test_resume_equals_an_uninterrupted_run(tmp_path, dataset, killed_at):
    """Bitwise: parameters of every budget, and metrics without gaps or doubles."""
    config = tiny(ladder=ONE_RUNG)
    whole = train_ladder(config, dataset, tmp_path / "whole")
    for steps in killed_at:
        with pytest.raises(KeyboardInterrupt):
            train_ladder(config, dataset, tmp_path / "cut", _StopsAt(steps))
    resumed = train_ladder(config, dataset, tmp_path / "cut")
    assert [r.params_digest for r in resumed] == [r.params_digest for r in whole]
    assert [r.loss_nats for r in resumed] == [r.loss_nats for r in whole]
    files = sorted((tmp_path / "whole").rglob("metrics.jsonl"))
    assert len(files) == 5  # a trunk and two cool-downs of the draft, a trunk and one of the target
    for file in files:
        mine = (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_text().splitlines()
        assert [json.loads(line)["step"] for line in mine] == list(
            range(json.loads(mine[0])["step"], json.loads(mine[-1])["step"] + 1)
        )
        assert mine == file.read_text().splitlines()


@pytest.mark.slow
def test_a_budget_added_later_reuses_the_trunk_and_changes_nothing(tmp_path, dataset):
    config = tiny(ladder=ONE_RUNG)
    before = train_ladder(config, dataset, tmp_path)
    more = tiny(ladder=ONE_RUNG | {"draft_tokens": [8_000, 16_000, 24_000]})
    after = train_ladder(more, dataset, tmp_path)
    kept = {r.model_id: r.params_digest for r in after}
    assert all(kept[r.model_id] == r.params_digest for r in before)
    between = tiny(ladder=ONE_RUNG | {"draft_tokens": [8_000, 12_000, 16_000, 24_000]})
    train_ladder(between, dataset, tmp_path)
    trunk = next(f for f in tmp_path.rglob("trunk/metrics.jsonl") if "draft" in str(f))
    steps = [json.loads(line)["step"] for line in trunk.read_text().splitlines()]
    assert steps == list(range(70))  # the last cool-down of 94 steps leaves after 70
    alone = train_ladder(
        tiny(ladder=ONE_RUNG | {"draft_tokens": [8_000, 24_000]}), dataset, tmp_path / "alone"
    )
    assert {r.model_id: r.params_digest for r in alone}["draft-600-24k-s0"] == kept[
        "draft-600-24k-s0"
    ]


def test_loss_falls_and_records_tell_the_truth(tmp_path, dataset):
    config = tiny(ladder=ONE_RUNG)
    records = train_ladder(config, dataset, tmp_path)
    by_tokens = [r.loss_nats for r in records if r.role == "draft"]
    assert np.log(256) > by_tokens[0] > by_tokens[1]
    for record in records:
        assert record.perplexity == pytest.approx(np.exp(record.loss_nats))
        assert record.bits_per_byte == pytest.approx(record.loss_nats / np.log(2))
        assert record.loss_nats_low < record.loss_nats < record.loss_nats_high
        model, params = load_recorded(record, tmp_path).model
        assert storage.digest(params) == record.params_digest
        assert sum(x.size for x in jax.tree.leaves(params)) == record.params_total
        windows = jnp.asarray(dataset.text("test").windows(32))
        loss, _ = token_losses(forward(model, params, windows[:, :-1])[0], windows[:, 1:])
        assert float(loss.mean()) == pytest.approx(record.loss_nats, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_rung(tmp_path, dataset):
    config = tiny(ladder=ONE_RUNG, training={"learning_rate": 1e30, "clip_norm": 1e30})
    with pytest.raises(
        SdslError, match=r"the gradient of draft-600-s0 had the norm nan at step 1; its last"
    ):
        train_ladder(config, dataset, tmp_path)


@pytest.mark.parametrize(
    "damage",
    ["swapped", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("truncated", "missing"))],
)
def test_a_damaged_checkpoint_is_named(tmp_path, dataset, damage):
    config = tiny(ladder=ONE_RUNG)
    records = train_ladder(config, dataset, tmp_path)
    folder = tmp_path / records[0].checkpoint
    if damage == "truncated":
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_size > 1000:
                file.write_bytes(file.read_bytes()[:200])
    elif damage == "missing":
        folder.rename(tmp_path / "elsewhere")
    else:
        folder.rename(tmp_path / "elsewhere")
        (tmp_path / records[1].checkpoint).rename(folder)
    with pytest.raises(SdslError, match=f"checkpoint.*{folder.parent.name}.*"):
        load_recorded(records[0], tmp_path)
