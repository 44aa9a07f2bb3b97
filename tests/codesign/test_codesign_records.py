import json

import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.records import write_json
from sdsl_jax.records.codesign import (
    CodesignEntry,
    CodesignLandscape,
    GradientRun,
    OptimumInterval,
    ReferenceOptimum,
    RelativeDifference,
    TrainedDraft,
    read_codesign,
    read_landscapes,
)
from sdsl_jax.records.documents import schema_of

TRAINED = TrainedDraft("d", 584, 7936, 3, 2.2, 1.5, 1.4, 1.6)
ENTRY = CodesignEntry(
    target_id="t",
    acceptance_law="logit_gap",
    cost_model="flops",
    draft_params=194.5,
    lookahead=3.5,
    lookahead_integer=4,
    speculate=True,
    acceptance=0.7,
    cost=0.04,
    verify_cost=1.0,
    speedup=1.85,
    speedup_integer=1.84,
    interior=False,
    indifference_1pct=(194.5, 300.0),
    reference=ReferenceOptimum("closed form", 194.5, 3.5, 1.85),
    relative_difference=RelativeDifference(0.0, None),
    gradient=GradientRun("adam", 0.1, 800, 4, 1.0, 0.0, 1.85),
    interval=OptimumInterval((190.0, 400.0), (3.0, 4.0), None),
    interval_percent=95,
    interval_basis="draws",
    share_of_draws_that_speculate=1.0,
    share_of_draws_without_optimum=0.0,
    target_params=5016,
    draft_tokens=15872,
    trained=[TRAINED],
    nearest_trained=None,
    warnings=[],
)


def test_an_entry_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "codesign.json", [ENTRY])
    assert read_codesign(tmp_path) == [ENTRY]
    (values,) = json.loads((tmp_path / "codesign.json").read_text())
    # The key of the interval names its confidence.
    assert values["interval_95"]["lookahead"] == [3.0, 4.0]
    assert not {"interval", "interval_percent"} & set(values)
    del values["interval_95"]
    write_json(tmp_path / "codesign.json", [values])
    with pytest.raises(SdslError, match="lacks the interval"):
        read_codesign(tmp_path)


def test_a_curve_may_have_holes(tmp_path):
    values = {
        "target_id": "t",
        "acceptance_law": "logit_gap",
        "cost_model": "flops",
        "curve": {key: [1.0] for key in ("draft_params", "acceptance", "cost", "lookahead")}
        | {"speedup": [None]},
        "map": {"draft_params": [1.0], "lookahead": [2.0], "speedup": [[1.5]]},
        "path": {"draft_params": [1.0], "lookahead": [2.0], "speedup": [1.5]},
    }
    write_json(tmp_path / "landscapes.json", [values])
    (landscape,) = read_landscapes(tmp_path)
    assert landscape.map.speedup == [[1.5]]
    assert landscape.curve.speedup[0] != landscape.curve.speedup[0]
    write_json(tmp_path / "landscapes.json", [landscape])
    assert json.loads((tmp_path / "landscapes.json").read_text()) == [values]


@pytest.mark.parametrize("document", [CodesignEntry, CodesignLandscape])
def test_every_key_has_a_meaning(document):
    def check(schema):
        for name, entry in schema.items():
            assert entry["description"], name
            check(entry.get("keys", {}))

    check(schema_of(document))
