"""A bundle of one slice model that belongs to no ensemble."""

from pathlib import Path

import numpy as np

from ich_kaggle.common import provenance, runs, storage
from ich_kaggle.learning import predictions
from ich_kaggle.scans import model_bundle
from ich_kaggle.scoring import blending, evaluation, nested_choice, study_level

SPACING = 5.0  # mm: usual between slices of a head
FITTED_ON = "The model was fitted on phantoms and scored on phantoms; nothing is known of it on patients."


def export(path: Path, model: Path, options: dict, held_out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Write the bundle of the one slice model in the file `model`, with `options` as of run.json, to `path`.

    `held_out` are slices that it was not fitted on: target (n, 6), probability (n, 6) and the study's number, (n,).
    Their predictions choose the thresholds.
    """
    target, probability, study = held_out
    probability, name = blending.raise_any(probability.copy()), path.stem
    data = nested_choice.prepare(target, [probability], np.zeros(len(study), int), study)
    of_studies = study_level.of_studies(study, target, probability)
    asked, each = evaluation.Asked(), np.arange(len(of_studies[0]))
    entry = {"fold": 0, "file": f"{name}.fold0.pt", "hash": storage.file_hash(model)}
    packed = model_bundle.head(FITTED_ON)
    packed |= {"ensemble": name, "runs": {name: 1.0}, "models": {name: [entry]}, "options": {name: options}}
    packed |= {"pictures": {name: {"size": options["cache_size"], "crop": "none"}}, "views": {name: predictions.VIEWS}}
    packed |= {
        "made_with": {name: {"versions": runs.versions(), "commit": provenance.git_commit()}},
        "spacing": SPACING,
    }
    packed |= {"pipeline": nested_choice.to_json("equal", data.fit("equal"), [name])}
    packed |= {"mean": probability.mean(axis=0).tolist(), "aggregate": study_level.fit(*of_studies).tolist()}
    packed["thresholds"] = {
        "slices": evaluation.choose_thresholds(target, probability, np.unique(study, return_inverse=True)[1], asked),
        "studies_max": evaluation.choose_thresholds(*of_studies[:2], each, asked),
    }
    model_bundle.write_zip(path, packed, {entry["file"]: model})
