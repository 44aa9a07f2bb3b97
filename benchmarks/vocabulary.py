"""`python -m benchmarks.vocabulary TARGET DRAFT… [--json FILE]`: a draft that proposes only the K most frequent ids.

Its head computes K logits instead of all, so a step gets cheaper, and α is at most p(K), the target's probability of them.
Nothing is trained or timed: α, p(K), the FLOPs of a step and the best S over γ are exact, on the target's own samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Model, autoregress
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.models import count, forward

SIZES = (16, 24, 32, 48, 64, 96, 128, 256)
PROMPT, NEW, LARGEST, CONFIDENCE = 32, 96, 24, 0.9


def main() -> None:
    """Prints a line for each draft and K."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("drafts", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    loaded = load_model(arguments.target)
    if loaded.data is None:
        parser.error(f"the target in {arguments.target} does not name the text it was trained on")
    dataset, target = load_dataset(loaded.data), loaded.model
    train = dataset.text("train").windows(4096)
    frequency = np.bincount(train.ravel(), minlength=target.config.ids)
    order = np.argsort(-frequency, kind="stable")
    prompts = dataset.text("test").windows(arguments.samples)[:, :PROMPT]
    samples = np.asarray(autoregress(target, prompts, new_tokens=NEW, seed=0).tokens)
    run = jax.jit(forward, static_argnums=0)
    probs = np.concatenate(
        [
            np.asarray(jax.nn.softmax(run(target.config, target.params, jnp.asarray(rows))[0]))[
                :, PROMPT - 1 : -1
            ]
            for rows in np.array_split(samples, max(1, len(samples) // 32))
        ]
    )
    step = count(target.config, 64).flops_per_token
    found = []
    for path in arguments.drafts:
        draft = load_model(path)
        for size in SIZES:
            ids = tuple(sorted(int(i) for i in order[:size])) if size < len(order) else ()
            config = dataclasses.replace(draft.config, readout_ids=ids)
            scored = pairwise_overlap(
                {"draft": Model(config, draft.params)},
                {"target": target},
                samples[:, :-1],
                first=PROMPT - 1,
                following=samples[:, PROMPT:],
            )
            alpha = scored.pairs["draft", "target"].mean(CONFIDENCE)
            drawn = scored.drawn_acceptance("draft", "target")
            rounds = expected_rounds(drawn, LARGEST, lengths=NEW - LARGEST + 1)
            cost = count(config, 64).flops_per_token / step
            speedups = [
                r.tokens_per_round.estimate / (1 + g * cost) for g, r in enumerate(rounds, 1)
            ]
            row: dict[str, Any] = {
                "draft": draft.record.model_id,
                "ids": size,
                "bound": float(probs[..., list(ids)].sum(axis=-1).mean()) if ids else 1.0,
                "alpha": alpha.estimate,
                "alpha_low": alpha.low,
                "alpha_high": alpha.high,
                "cost": cost,
                "lookahead": int(np.argmax(speedups)) + 1,
                "speedup": max(speedups),
            }
            found.append(row)
            print(
                f"{row['draft']:28s} K = {size:3d}  p(K) {row['bound']:.4f}  α {row['alpha']:.4f}  c {cost:.5f}  "
                f"γ = {row['lookahead']:2d}  S {row['speedup']:.3f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
