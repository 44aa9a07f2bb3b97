"""The machine that a number was measured on."""

from __future__ import annotations

import os

import jax


def device_name() -> str:
    """Number and kind of the devices, for CPUs with their cores: "1 x cpu, 2 cores"."""
    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else ""
    return f"{len(jax.devices())} x {device.device_kind}{cores}"
