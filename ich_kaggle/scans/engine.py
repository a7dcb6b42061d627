"""Loading of one packed model, slice model or second level, for `scan` and `infer`."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ich_kaggle.learning import slice_model
from ich_kaggle.second_level import fit as second_level_fit
from ich_kaggle.second_level import sequence_models

Model = slice_model.SliceModel | second_level_fit.Fitted


def load(packed: dict, opened: Callable[[str], Path | BinaryIO], device, remedy: str, run: str, k: int) -> Model:
    """Return the model of fold `k` of `run`, on `device`; `opened` gives a packed file by its name.

    Raises ValueError naming a damaged file, or, with the `remedy`, a network that was fitted on other models.
    """
    options, entry = packed["options"][run], next(entry for entry in packed["models"][run] if entry["fold"] == k)
    if "on" not in options:
        return slice_model.load(opened(entry["file"]), device)
    networks = []  # of a smoothing
    if "file" in entry:
        networks = sequence_models.load(opened(entry["file"]), entry["reads"], device, remedy)
    return second_level_fit.Fitted(np.array(entry["widths"]), networks, options.get("batch_size", 1), device)
