"""What test_parallel.py runs in processes of its own: the number of devices is fixed when JAX starts."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.layout import Layout, make_layout
from sdsl_jax.config import ParallelConfig, TrainingConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, abstract_params, init_params
from sdsl_jax.processes import (
    any_process,
    barrier,
    broadcast_from_primary,
    initialise_distributed,
    is_primary,
)
from sdsl_jax.training.step import init_state, step_config, train_step, window_losses

# Wide enough for most of its matrices to be split.
MODEL = ModelConfig(
    vocab_size=256, width=256, layers=1, heads=4, kv_heads=2, head_dim=64, hidden=384
)
CONFIG = step_config(TrainingConfig())
STEPS = 5


def tokens(batch: int = 8, length: int = 33, count: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, batch, length), dtype=np.int32)


def init():
    return init_state(CONFIG, init_params(MODEL, jax.random.key(0)))


def run_steps(layout: Layout, state, batches: np.ndarray):
    """The state after some steps, and (loss, norm of the gradient) of each."""
    reported = []
    for batch in batches:
        placed = layout.place_batch(batch)
        state, metrics = layout.step(train_step)(
            state, placed, np.float32(0.01), model=MODEL, config=CONFIG
        )
        reported.append([metrics.loss_nats.item(), metrics.gradient_norm.item()])
    return state, reported


def share(state) -> float:
    """What a device holds of a state, as a share of its bytes."""
    leaves = jax.tree.leaves(state)
    return max(
        sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == device)
        for device in jax.local_devices()
    ) / sum(leaf.nbytes for leaf in leaves)


def stays(layout: Layout, state) -> bool:
    """Whether every array of a state lies where the layout wants it."""
    wanted = jax.tree.leaves(layout.state_shardings(state))
    return all(
        x.sharding.is_equivalent_to(s, x.ndim)
        for x, s in zip(jax.tree.leaves(state), wanted, strict=True)
    )


def collectives(layout: Layout) -> dict[str, list[list[int]]]:
    """Shapes of what each kind of collective of a step returns, for batches of many more tokens than the model is wide."""
    step = layout.step(train_step)
    state, batch = layout.abstract(jax.eval_shape(init)), layout.place_batch(tokens(16, 161, 1)[0])
    lowered = step.func.lower(
        state, batch, np.float32(0.01), model=MODEL, config=CONFIG, **step.keywords
    )
    found: dict[str, list[list[int]]] = {}
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", lowered.compile().as_text()):
        found.setdefault(kind, []).extend(
            [int(n) for n in s.split(",") if n] for s in re.findall(r"\[([\d,]*)\]", shapes)
        )
    return found


def one_process(folder: Path) -> dict:
    """Every mesh in turn; a checkpoint of one restored onto others."""
    results: dict = {}
    gradients = {}
    for shape in ((1, 1), (8, 1), (1, 8), (2, 4)):
        name, layout = "{}x{}".format(*shape), make_layout(ParallelConfig(*shape))
        first, reported = run_steps(layout, layout.place(init()), tokens()[:1])
        # After one step Adam's first moment is the clipped gradient times 1 − β₁.
        gradients[name] = jax.tree.map(np.asarray, first.optimizer[1].mu)
        state, more = run_steps(layout, first, tokens()[1:])
        difference = jax.tree.map(
            lambda a, b: abs(a - b).max() / abs(a).max(), gradients["1x1"], gradients[name]
        )
        results[name] = {
            "reported": reported + more,
            "gradient_difference": float(max(jax.tree.leaves(difference))),
            "share": share(state),
            "stays": stays(layout, state),
        }
    results["collectives"] = collectives(make_layout(ParallelConfig(1, 8)))

    half, _ = run_steps(layout, layout.place(init()), tokens()[:2])
    storage.save(folder / "half", half, {})
    half = storage.restore(folder / "half", layout.abstract(jax.eval_shape(init))).tree
    results["resumed"] = storage.digest(run_steps(layout, half, tokens()[2:])[0])

    storage.save(folder / "saved", state, {})
    digests = [storage.digest(state)]
    for shape in ((4, 2), (1, 1), (1, 8)):
        layout = make_layout(ParallelConfig(*shape))
        restored = storage.restore(folder / "saved", layout.abstract(jax.eval_shape(init))).tree
        assert stays(layout, restored)
        digests.append(storage.digest(restored))
        _, [(loss, _)] = run_steps(layout, restored, tokens()[:1])
        results.setdefault("continued", []).append(loss)
    return results | {"digests": digests}


def one_of_several(folder: Path) -> dict:
    """The same training, by a part of the devices; and what the processes tell each other."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    initialise_distributed()
    os.kill(os.getpid(), signal.SIGTERM)
    primary, process = is_primary(), jax.process_index()
    layout = make_layout(ParallelConfig(0, 4))
    start = layout.place(init())
    state, reported = run_steps(layout, start, tokens())
    storage.save(folder / "saved", state, {"by": "both"})
    other = make_layout(ParallelConfig(1, 8))
    restored = storage.restore(folder / "saved", other.abstract(jax.eval_shape(init))).tree
    params = layout.whole(state.params)
    assert all(
        isinstance(x.sharding, jax.sharding.SingleDeviceSharding) for x in jax.tree.leaves(params)
    )
    barrier("before messages")
    # Parameters that differ between the processes are refused, by both of them.
    other_start = init()._replace(step=jax.numpy.asarray(process))
    try:
        layout.place(other_start)
        refused = ""
    except SdslError as error:
        refused = str(error)
    return {
        "devices": [jax.device_count(), jax.local_device_count()],
        "mesh": list(layout.mesh.devices.shape),
        "reported": reported,
        "share": share(state),
        "stays": stays(layout, state) and stays(other, restored),
        "digests": [storage.digest(params), storage.digest(other.whole(restored.params))],
        "evaluated": np.asarray(window_losses(params, tokens()[0], model=MODEL)).tolist(),
        "refused": refused,
        "signals": signals,
        "primary": primary,
        "agreed": broadcast_from_primary(10 + process),
        "any_process": [any_process(process == 1), any_process(False)],
    }


def read_on_one_device(folder: Path) -> str:
    """The digest of the parameters that several processes saved."""
    like = jax.eval_shape(init)
    assert jax.tree.structure(like.params) == jax.tree.structure(abstract_params(MODEL))
    return storage.digest(storage.restore(folder / "saved", like).tree.params)


if __name__ == "__main__":
    what, out = {"one": one_process, "several": one_of_several}[sys.argv[1]], Path(sys.argv[2])
    answer = what(out)
    (out / f"{sys.argv[1]}-{jax.process_index()}.json").write_text(json.dumps(answer))
