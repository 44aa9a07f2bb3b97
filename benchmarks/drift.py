"""`python -m benchmarks.drift BEFORE AFTER DRAFT…`: what an update of the target costs the acceptance of its drafts.

BEFORE and AFTER are folders of the target before and after an update. Every draft is measured with both, exactly, on their own
samples: after prompts from the test text of the target, and from the validation text of the update. The shared blocks of an early
exit, and the features of a head, are those of the target that it meets, as on a server that was updated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.config import EXIT_KINDS
from sdsl_jax.data import load_dataset
from sdsl_jax.decoding import Model, autoregress
from sdsl_jax.decoding.exit_drafter import shared_blocks
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.overlap import pairwise_overlap

PROMPT, NEW, CONFIDENCE = 32, 64, 0.9


def on_new_target(draft: LoadedModel, before: Model, after: Model) -> Model:
    """An early exit whose shared blocks are those of the updated target."""
    shared = shared_blocks(draft.model, before)
    values, new = (nnx.to_pure_dict(params) for params in (draft.params, after.params))
    for name in ("embedding", "positions"):
        if shared and name in values:
            values[name] = new[name]
    for number in range(shared):
        values["blocks"][number] = new["blocks"][number]
    structure = jax.tree.structure(draft.params)
    return Model(draft.config, jax.tree.unflatten(structure, jax.tree.leaves(values)))


def acceptance(draft: Any, target: Model, samples: np.ndarray) -> tuple[float, float]:
    """α on samples and the half-width of its interval, samples as clusters."""
    if isinstance(draft, Model):
        scored = pairwise_overlap(
            {"draft": draft}, {"target": target}, samples[:, :-1], first=PROMPT - 1
        )
        found = scored.pairs["draft", "target"].mean(CONFIDENCE)
    else:
        compared = head_overlap(draft, target, samples[:, :-1], first=PROMPT - 1, drafts=1)
        found = compared.drafts[0].mean(CONFIDENCE)
    return found.estimate, (found.high - found.low) / 2


def main() -> None:
    """Prints α of every draft with both targets, by text of the prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("drafts", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    before, after = load_model(arguments.before), load_model(arguments.after)
    assert before.data is not None
    assert after.data is not None
    texts = {
        "text of the target": load_dataset(before.data).text("test"),
        "text of the update": load_dataset(after.data).text("validation"),
    }
    targets = {"before": before.model, "after": after.model}
    samples = {
        (text, when): np.asarray(
            autoregress(
                target, source.windows(arguments.samples)[:, :PROMPT], new_tokens=NEW, seed=0
            ).tokens
        )
        for text, source in texts.items()
        for when, target in targets.items()
    }
    rows = []
    for path in arguments.drafts:
        draft = load_model(path)
        row: dict[str, Any] = {"draft": draft.record.model_id, "loss_nats": draft.record.loss_nats}
        for (text, when), tokens in samples.items():
            proposes: Any = draft.draft
            if draft.record.kind in EXIT_KINDS and when == "after":
                proposes = on_new_target(draft, before.model, after.model)
            row[f"{text}, {when}"] = acceptance(proposes, targets[when], tokens)
        rows.append(row)
        shown = "  ".join(
            f"{key}: {value[0]:.4f} ± {value[1]:.4f}"
            for key, value in row.items()
            if isinstance(value, tuple)
        )
        print(f"{row['draft']:45s} {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
