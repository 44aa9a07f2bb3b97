"""Predictions of held-out models, published before any of them is trained."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sdsl_jax.config import to_dict
from sdsl_jax.evidence import forecast
from sdsl_jax.records import read_json
from sdsl_jax.study.stages import Study

# Stages of the smaller study, which makes what the laws are fitted to.
_SEEN_STAGES = ("train", "measure", "fit")
# Part of what predictions are made from: those of another version are made anew.
_FORECAST_VERSION = 3


def publish_predictions(study: Study, run: Callable[[Study, Sequence[str]], None]) -> None:
    """Trains, measures and fits what is not held out, then writes `records/predictions.json`.

    The smaller study lives in `seen/`. Its models are those of the whole study, and are not trained
    twice.

    Args:
      study: The whole study.
      run: Runs some stages of a study.

    Raises:
      SdslError: A stage fails.
    """
    study.progress.note("holdout: what is not held out comes first, and is fitted, in seen/")
    seen = Study(study.config.seen, study.folder / "seen", study.progress, models_folder=study.home)
    run(seen, _SEEN_STAGES)
    path = study.records_folder / "predictions.json"
    settings = to_dict(study.config)
    names = ("seed", "data", "family", "ladder", "fit", "holdout")
    parts = json.dumps([_FORECAST_VERSION, *(settings[n] for n in names)], sort_keys=True).encode()
    fits = (seen.records_folder / "fits.json").read_bytes()
    made_from = hashlib.sha256(parts + fits).hexdigest()
    if path.exists() and read_json(path).get("made_from") == made_from:
        return
    records = seen.records
    predictions = forecast(study.config, records.models, records.fits)
    # Whoever changes something and predicts again has seen the answers, and the file says so.
    models = study.records.models if (study.records_folder / "models.csv").exists() else []
    known = {(m.role, m.params_nonembedding) for m in models}
    measured = sorted({(row.role, row.params) for row in predictions.losses} & known)
    study.write(
        "predictions",
        replace(
            predictions,
            made_from=made_from,
            published=time.strftime("%Y-%m-%d %H:%M:%S"),
            already_measured=[f"the {role} of {params:,} parameters" for role, params in measured],
        ),
    )
    study.progress.note(
        f"holdout: {len(predictions.losses)} losses and their pairs are predicted in {path}"
    )
