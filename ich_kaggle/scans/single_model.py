"""A bundle of one slice model that belongs to no ensemble, and a smoothing of its predictions."""

from pathlib import Path

import numpy as np

from ich_kaggle.common import provenance, runs, storage
from ich_kaggle.learning import predictions, slice_model
from ich_kaggle.scans import model_bundle
from ich_kaggle.scoring import blending, evaluation, nested_choice, study_level
from ich_kaggle.second_level import smoothing

SPACING = 5.0  # mm: usual between slices of a head
PHANTOMS = "The model was fitted on phantoms and scored on phantoms; nothing is known of it on patients."
FURTHER = "The model was fitted on patients, or may have been, then on phantoms, and scored on phantoms alone."


def export(path: Path, model: Path, options: dict, held_out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Write the bundle of the one slice model in the file `model`, with `options` as of run.json, to `path`.

    `held_out` are slices that it was not fitted on: target (n, 6), probability (n, 6), and place (n, 2), the number of
    the study and the position in mm, in order. They choose the thresholds and the widths of the smoothing along z.
    Returns the smoothed probabilities, (n, 6).
    """
    target, probability, place = held_out
    study, position = place.T.astype(float)
    widths = smoothing.fit_widths(target, probability, position, study)
    smoothed = blending.raise_any(smoothing.smooth_labels(probability, position, study, widths))
    data = nested_choice.prepare(target, [smoothed], np.zeros(len(study), int), study)
    of_studies = study_level.of_studies(study, target, smoothed)
    seen = slice_model.patients(model)
    fitted_on = PHANTOMS if seen is not None and len(seen) == 0 else FURTHER
    name, asked = path.stem, evaluation.Asked()
    level, made_with = f"smooth-{name}", {"versions": runs.versions(), "commit": provenance.git_commit()}
    entry = {"fold": 0, "file": f"{name}.fold0.pt", "hash": storage.file_hash(model)}
    packed = model_bundle.head(fitted_on) | {"ensemble": name, "runs": {level: 1.0}, "spacing": SPACING}
    packed["models"] = {name: [entry], level: [{"fold": 0, "widths": widths.tolist(), "reads": {}}]}
    packed["options"] = {name: options, level: {"model": "smooth", "on": [name], "features": "oof"}}
    packed["pictures"] = {name: {"size": options["cache_size"], "crop": "none"}}
    packed |= {"views": {name: predictions.VIEWS}, "made_with": {name: made_with, level: made_with}}
    packed["pipeline"] = nested_choice.to_json("equal", data.fit("equal"), [level])
    packed |= {"mean": smoothed.mean(axis=0).tolist(), "aggregate": study_level.fit(*of_studies).tolist()}
    each = np.unique(study, return_inverse=True)[1], np.arange(len(of_studies[0]))
    packed["thresholds"] = {
        "slices": evaluation.choose_thresholds(target, smoothed, each[0], asked),
        "studies_max": evaluation.choose_thresholds(*of_studies[:2], each[1], asked),
    }
    model_bundle.write_zip(path, packed, {entry["file"]: model})
    return smoothed
