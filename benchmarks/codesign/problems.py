"""The programs that are solved: a 70B target on four devices, with numbers of the size of an H100's."""

from __future__ import annotations

import numpy as np

from sdsl_jax.codesign import Program, ProgramInputs
from sdsl_jax.theory import BESIROGLU, LogitGap, ShapeRule
from sdsl_jax.theory.hardware import Hardware
from sdsl_jax.theory.serving import Design, Serving

DEVICE = Hardware(
    pass_seconds=40e-6,
    layer_seconds=8e-6,
    token_seconds=1e-6,
    bytes_per_second=3e12,
    flops_per_second=8e14,
    round_seconds=100e-6,
    link_bytes_per_second=450e9,
    link_seconds=3e-6,
    memory_bytes=80e9,
    price_per_hour=3.0,
)
FAMILY = ShapeRule(
    aspect_ratio=128.0, vocab_size=128e3, context=0.0, kv_share=0.125, embedding_tables=2.0
)

PROGRAMS = {
    "size and lookahead, no constraint": Program(),
    "size, lookahead and batch; latency and memory": Program(
        variables=("draft_params", "lookahead", "batch"),
        constraints=("latency_seconds", "memory_bytes"),
    ),
    "five variables, total cost; latency": Program(
        variables=("draft_params", "lookahead", "batch", "draft_tokens", "aspect_ratio"),
        objective=("total_cost",),
        constraints=("latency_seconds",),
    ),
}
_LIMITS = {"latency_seconds": 7.0, "memory_bytes": 60e9}


def inputs(program: Program, context: float = 4096.0) -> ProgramInputs:
    """One problem of a program; contexts make a sweep."""
    serving = Serving(
        hardware=DEVICE,
        loss_law=BESIROGLU,
        acceptance_law=LogitGap(2.0, 3.5),
        draft_family=FAMILY,
        target_family=FAMILY,
        target_tokens=15e12,
        context=context,
        prompt_tokens=2048.0,
        new_tokens=512.0,
        devices=4.0,
        aspect_penalty=0.01,
    )
    fixed = Design(1e9, 4.0, 2e12, 128.0, 8.0, 70e9)
    return ProgramInputs(
        serving,
        fixed,
        lower=fixed._replace(
            draft_params=1e7, lookahead=1.0, batch=1.0, draft_tokens=1e9, aspect_ratio=16.0
        ),
        upper=fixed._replace(
            draft_params=20e9, lookahead=32.0, batch=512.0, draft_tokens=2e13, aspect_ratio=512.0
        ),
        limits=np.array([_LIMITS[name] for name in program.constraints]),
    )
