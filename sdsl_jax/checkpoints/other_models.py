"""Models of other folders, to be measured beside a study's own."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.data import Dataset
from sdsl_jax.data.tokenizer import fingerprint
from sdsl_jax.decoding import Model
from sdsl_jax.errors import require
from sdsl_jax.records import ModelRecord, read_table


def load_other_models(
    folder: Path, setting: str, prefix: str, dataset: Dataset, study: Path, role: str | None = None
) -> tuple[list[ModelRecord], dict[str, Model]]:
    """Records of a folder's models, under names of their own, and the models by those names.

    Args:
      folder: that a ladder was trained in.
      setting: that named it, for messages.
      prefix: of the names.
      dataset: the study's corpus, whose tokenizer the models must share.
      study: the study's folder, from which the records name the checkpoints.
      role: "draft" or "target"; both if None.

    Raises:
      SdslError: a model is missing or damaged, or has another tokenizer or a shorter context.
    """
    records, models = [], {}
    for record in read_table(folder / "records", "models"):
        if role not in (None, record.role):
            continue
        require(
            bool(record.checkpoint),
            f"the records in {folder} name no checkpoint of {record.model_id}; its weights are not known.",
        )
        loaded = load_model_folder(folder / record.checkpoint)
        require(
            loaded.record.params_digest == record.params_digest,
            f"the model in {loaded.folder} is not the {record.model_id} of the records in {folder}: its digest differs.",
        )
        require(
            fingerprint(loaded.tokenizer) == fingerprint(dataset.tokenizer),
            f"the {record.role} {record.model_id} of {setting} ({folder}) has another tokenizer ({loaded.tokenizer.kind}, "
            f"{loaded.tokenizer.vocab_size} entries) than the study ({dataset.tokenizer.kind}, "
            f"{dataset.tokenizer.vocab_size} entries); they must share one.",
        )
        require(
            loaded.longest >= dataset.sequence_length,
            f"the {record.role} {record.model_id} of {setting} ({folder}) was trained on sequences of "
            f"{loaded.longest} tokens; it must be at least data.sequence_length ({dataset.sequence_length}).",
        )
        checkpoint = os.path.relpath(folder / record.checkpoint, study)
        records.append(
            dataclasses.replace(record, model_id=prefix + record.model_id, checkpoint=checkpoint)
        )
        models[prefix + record.model_id] = Model(loaded.config, loaded.params)
    return records, models
