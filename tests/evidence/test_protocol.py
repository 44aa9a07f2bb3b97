"""What a protocol found, from invented records."""

import math

import numpy as np
import pytest

from sdsl_jax.config import load_protocol
from sdsl_jax.evidence.protocol import ProtocolSummary, summarise
from sdsl_jax.measurement.protocol import ProtocolResult
from sdsl_jax.records import AcceptanceRecord, ModelRecord, write_table
from sdsl_jax.records.documents import from_json, to_json
from sdsl_jax.report.protocol import write_protocol

PLANE = (-0.04, 0.02, 0.8)


def test_a_plane_is_recovered_and_written(tmp_path):
    config = load_protocol("experiments/paper-protocol.toml")
    targets = [m.folder for m in config.targets[:3]]
    drafts = [m.folder for m in config.drafts if m.folder not in targets][:4]
    perplexity = {name: 8.0 + i**1.5 for i, name in enumerate([*targets, *drafts])}
    models = [
        ModelRecord(name, "draft", 10**8, 10**8, 10**9, 0, math.log(x), x)
        for name, x in perplexity.items()
    ]
    pairs = [(draft, target) for draft in drafts for target in targets]
    acceptance = []
    for draft, target in pairs:
        alpha = float(np.dot(PLANE, (perplexity[draft], perplexity[target], 1)))
        for estimator, lookahead in (("teacher_forced_samples", 0), ("decoded_tar", 4)):
            acceptance.append(
                AcceptanceRecord(draft, target, estimator, lookahead, 1.0, "text", alpha)
            )
    write_table(tmp_path, "models", models)
    write_table(tmp_path, "acceptance", acceptance)
    summary, points = summarise(config, ProtocolResult(pairs, ["nowhere"], {}), tmp_path)
    assert pytest.approx(PLANE) == (summary.plane.A, summary.plane.B, summary.plane.C)
    assert summary.plane.pairs == len(summary.pairs) == len(points) == 12
    assert summary.targets[0].optimum.draft_params > 1e6
    written = to_json(summary)
    assert to_json(from_json(ProtocolSummary, written, "protocol.json")) == written
    text = write_protocol(summary, points, tmp_path)
    assert text == (tmp_path / "protocol.md").read_text()
    assert "Not there: nowhere." in text
    assert (tmp_path / "plane.png").exists()
