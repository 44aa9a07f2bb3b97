"""What a measurement of large models costs, by our own cost model: the table of docs/scale.md.

    python -m benchmarks.scale --hardware h100 --price 2.5

Nothing is measured here. Times follow from `theory.pass_time` on a device, sizes from architectures.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from sdsl_jax.hardware import load_hardware
from sdsl_jax.theory import tokens_per_round
from sdsl_jax.theory.hardware import Load, Shape, pass_time, round_time

# Architectures of Llama-2-7B, Llama-3.1-70B and Llama-3.1-405B; drafts of about a hundredth.
TARGETS = {
    "7B": Shape(6.48e9, 32, 4096, 4096, 4096, 32_000.0, 2),
    "70B": Shape(68.5e9, 80, 8192, 8192, 1024, 128_256.0, 2),
    "405B": Shape(401.6e9, 126, 16_384, 16_384, 1024, 128_256.0, 2),
}
DRAFTS = {
    "7B": Shape(60e6, 8, 768, 768, 768, 32_000.0, 1),
    "70B": Shape(970e6, 16, 2048, 2048, 512, 128_256.0, 1),
    "405B": Shape(3.9e9, 32, 3072, 3072, 1024, 128_256.0, 1),
}
# As experiments/paper-protocol.toml measures.
PROMPTS, PROMPT, NEW, BATCH, LOOKAHEADS, ALPHA = 64, 128, 96, 32, (1, 2, 4, 8), 0.75
# Bytes that a disk reads in a second; bytes of an event in events.parquet, as measured in a small study.
_SHARE_FOR_WEIGHTS, _DISK, _EVENT_BYTES = 0.7, 2e9, 3.0


class Cost(NamedTuple):
    """What the pairs of one size of target cost.

    Attributes:
      devices: devices that share the target
      load_seconds: to read the target from a disk of 2 GB/s
      target_seconds: once for every target: its samples, and its scores of text
      pair_seconds: once for every pair: reading the draft, decoding at every lookahead, and scoring
      memory: bytes on each device
      weights: bytes of the target on disk
      events: bytes of the events of a pair
    """

    devices: int
    load_seconds: float
    target_seconds: float
    pair_seconds: float
    memory: float
    weights: float
    events: float


def cost(name: str, device: str) -> Cost:
    """The costs of one size of target."""
    file = load_hardware(device)
    hardware, precision = file.hardware, file.precision
    target, draft = TARGETS[name], DRAFTS[name]
    weight, cached = float(precision.weight_bytes), float(precision.cache_bytes)
    weights = float(target.total_params) * weight
    needed = weights / (_SHARE_FOR_WEIGHTS * float(hardware.memory_bytes))
    devices = 2 ** math.ceil(math.log2(max(1.0, needed)))
    batches, context = -(-PROMPTS // BATCH), PROMPT + NEW / 2

    def seconds(shape: Shape, tokens: float, shared: int) -> float:
        return float(pass_time(hardware, shape, precision, Load(tokens, BATCH, context, shared)))

    # The target's scores of its samples are part of every pair.
    samples = NEW * seconds(target, 1, devices)
    scores = seconds(target, PROMPT + NEW, devices) + seconds(draft, PROMPT + NEW, 1)
    decoded = events = 0.0
    for lookahead in LOOKAHEADS:
        rounds = NEW / float(tokens_per_round(ALPHA, lookahead))
        at = (hardware, draft, target, lookahead, BATCH, context, precision, precision)
        decoded += rounds * float(round_time(*at, devices=devices).seconds)
        events += _EVENT_BYTES * PROMPTS * rounds
    cache = 2 * BATCH * (PROMPT + NEW) * float(target.layers * target.kv_width) * cached
    logits = 4 * BATCH * (max(LOOKAHEADS) + 1) * float(target.vocab_size)
    own = float(draft.total_params) * weight
    return Cost(
        devices,
        weights / _DISK,
        batches * samples,
        own / _DISK + batches * (decoded + 2 * scores),
        (weights + cache + logits) / devices + own,
        weights,
        events,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.5 else f"{value:.2g}"


def main() -> None:
    """Prints a row for every size of target and number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--price", type=float, default=2.5, help="of one device for an hour")
    given = parser.parse_args()
    columns = (
        *("target", "devices", "memory on each", "targets × drafts", "hours in one task"),
        *("device-hours", "price", "weights on disk", "events"),
    )
    print(f"| {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) - 1)}")
    for name in TARGETS:
        c = cost(name, given.hardware)
        for targets, drafts in ((5, 20), (20, 50), (50, 200)):
            pairs = targets * drafts
            seconds = targets * (c.load_seconds + c.target_seconds) + pairs * c.pair_seconds
            hours = seconds / 3600
            cells = (
                *(name, f"{c.devices}", f"{c.memory / 1e9:.0f} GB", f"{targets} × {drafts}"),
                *map(_short, (hours, hours * c.devices, hours * c.devices * given.price)),
                *(
                    f"{_short(targets * c.weights / 1e12)} TB",
                    f"{_short(pairs * c.events / 1e6)} MB",
                ),
            )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
