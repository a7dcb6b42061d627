"""Loading of one packed model, slice model or second level, for `scan` and `infer`."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ich_kaggle.learning import slice_model
from ich_kaggle.scans.bounds import PX
from ich_kaggle.second_level import fit as second_level_fit
from ich_kaggle.second_level import sequence_models

MOST_OFFSETS = 15  # slices that a network sees at a time
Model = slice_model.SliceModel | second_level_fit.Fitted


def load(packed: dict, opened: Callable[[str], Path | BinaryIO], device, remedy: str, run: str, k: int) -> Model:
    """Return the model of fold `k` of `run`, on `device`; `opened` gives a packed file by its name.

    Raises ValueError naming a damaged file, or, with the `remedy`, a network that was fitted on other models.
    """
    options, entry = packed["options"][run], next(entry for entry in packed["models"][run] if entry["fold"] == k)
    if "on" not in options:
        model, (low, high) = slice_model.load(opened(entry["file"]), device), PX
        if not low <= model.config.image_size <= high or len(model.config.offsets) > MOST_OFFSETS:
            raise ValueError(f"{entry['file']}: pictures of {model.config.image_size} px: {remedy}")
        return model
    networks = []  # of a smoothing
    if "file" in entry:
        networks = sequence_models.load(opened(entry["file"]), entry["reads"], device, remedy)
    return second_level_fit.Fitted(np.array(entry["widths"]), networks, options.get("batch_size", 1), device)
