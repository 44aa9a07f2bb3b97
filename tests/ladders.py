"""Small ladders that several processes train, and how two folders of them are compared."""

import json
import random

from conftest import tiny

from sdsl_jax.config import to_toml
from sdsl_jax.records import ModelRecord, read_table

# Columns that tell of time, not of what was trained.
TIMES = ("train_seconds", "compile_seconds", "data_wait_share")


def write_study(folder, tokens=8_192, checkpoint_every_steps=3, **sections):
    """Writes the TOML of two rungs on text that is read in no time, and returns its path."""
    rng = random.Random(0)
    words = ["the", "people", "of", "union", "state", "congress", "and", "peace"]
    (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(20_000)))
    config = tiny(
        data={"source": [str(folder / "text.txt")]},
        ladder={
            "draft_params": [600],
            "draft_tokens": [tokens // 2, tokens],
            "target_params": [900],
            "target_tokens": [tokens],
            **sections.pop("ladder", {}),
        },
        training={
            "evaluation_windows": 8,
            "checkpoint_every_steps": checkpoint_every_steps,
            "warmup_tokens": 512,
        },
        **sections,
    )
    (folder / "study.toml").write_text(to_toml(config))
    return folder / "study.toml"


def rows(folder):
    def row(record: ModelRecord):
        return {k: v for k, v in vars(record).items() if k not in TIMES}

    return [row(r) for r in read_table(folder / "records", "models")]


def metrics(folder):
    return {
        str(f.relative_to(folder)): [json.loads(x) for x in f.read_text().splitlines()]
        for f in folder.rglob("metrics.jsonl")
    }


def assert_equal(folder, whole):
    assert rows(folder) == rows(whole)
    assert metrics(folder) == metrics(whole)
    for lines in metrics(folder).values():
        steps = [line["step"] for line in lines]
        assert steps == list(range(steps[0], steps[-1] + 1))
    assert not [p for p in folder.rglob(".*") if "launch" not in p.parts]
    assert not list(folder.rglob("claim"))
