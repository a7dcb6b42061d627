"""The bundle of one slice model: its smoothing is that of the phantoms that it was given."""

import numpy as np
import torch

from ich_kaggle.learning import slice_model
from ich_kaggle.scans import model_bundle, single_model
from ich_kaggle.scoring import blending
from ich_kaggle.second_level import smoothing


def test_the_bundle_smooths_by_widths_that_lower_the_loss_of_the_given_slices(tmp_path):
    rng, n, study = np.random.default_rng(0), 20, np.repeat(np.arange(12), 20)
    position = np.tile(5.0 * np.arange(n), 12)
    bleeds = (position > 20) & (position < 70) & (study % 2 == 0)
    target = np.repeat(bleeds[:, None], 6, axis=1).astype(np.float32)
    probability = np.clip(0.2 + 0.6 * target + rng.normal(0, 0.25, target.shape), 0.02, 0.98)
    model = slice_model.SliceModel(slice_model.SliceConfig("test_resnet", image_size=32, cache_size=32))
    slice_model.save(tmp_path / "model.pt", model, np.array([], np.int64))
    held_out = (target, probability, np.c_[study, position].astype(np.float32))
    smoothed = single_model.export(tmp_path / "p.zip", tmp_path / "model.pt", {"cache_size": 32}, held_out)
    packed = model_bundle.read(tmp_path / "p.zip").packed
    (level,) = packed["models"]["smooth-p"]
    expected = smoothing.smooth_labels(probability, position, study, np.array(level["widths"]))
    assert min(level["widths"]) > 0 and np.allclose(smoothed, blending.raise_any(expected))
    assert torch.load(tmp_path / "model.pt", weights_only=True) and packed["runs"] == {"smooth-p": 1.0}
    assert packed["intended_use"].endswith(single_model.PHANTOMS)
    slice_model.save(tmp_path / "model.pt", model, slice_model.patient_hashes(["one"]))  # started from such a model
    single_model.export(tmp_path / "q.zip", tmp_path / "model.pt", {"cache_size": 32}, held_out)
    assert model_bundle.read(tmp_path / "q.zip").packed["intended_use"].endswith(single_model.FURTHER)
