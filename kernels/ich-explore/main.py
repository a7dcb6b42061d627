# %% [markdown]
# # Hemorrhage in head CT: windows, one study, its predictions
# The pixels that a model of `ich_kaggle` gets of a slice, and its predictions for every slice of a study.
# Attach the competition and the dataset `ich-models`.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from ich_kaggle.common import paths, tables, windows
from ich_kaggle.common.labels import LABELS
from ich_kaggle.common.project import Project
from ich_kaggle.dicom import picture_cache, pixels, slice_image, slice_table
from ich_kaggle.learning import devices, inference, slice_model, tasks
from ich_kaggle.scans import passes, test_set

DATASET, SIZE = "ich-models", 512  # px
work = Path(tempfile.gettempdir()) / "explore"
data = paths.find_data()
table = test_set.test_table(data, work, workers=4)
study = table[table.study_id == table.study_id.iloc[0]]
print(f"{len(table)} test slices of {table.patient_id.nunique()} patients; study {study.study_id.iloc[0]}")

# %% [markdown]
# ## One slice in Hounsfield units
# Air is -1000 HU, water 0, gray matter about 37, fresh blood 50 to 80, bone beyond 300.

# %%
middle = study.iloc[len(study) // 2]
hu = pixels.read_hu(data.root / middle.path)
plt.figure(figsize=(8, 3))
plt.hist(hu[hu > -200].ravel(), bins=200, range=(-200, 400))
plt.xlabel("HU")
plt.ylabel("pixels")
plt.show()

# %% [markdown]
# ## The same slice through three windows
# A window maps a small range of HU to the whole gray scale. The three are the channels of the model's input.

# %%
image = windows.apply(hu, windows.CACHED)
figure, axes = plt.subplots(1, len(windows.CACHED), figsize=(12, 4.5))
for axis, channel, (center, width) in zip(axes, np.moveaxis(image, 2, 0), windows.CACHED, strict=True):
    axis.imshow(channel, cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"center {center} HU, width {width} HU")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The study, from its lowest slice to its highest

# %%
images = [slice_image.picture((data.root / path).read_bytes(), path, SIZE).image for path in study.path]
figure, axes = plt.subplots(-(-len(images) // 8), 8, figsize=(14, 1.8 * -(-len(images) // 8)), squeeze=False)
for axis in axes.flat:
    axis.axis("off")
for axis, picture, position in zip(axes.flat, images, study.position, strict=False):
    axis.imshow(picture[..., 0], cmap="gray")
    axis.set_title(f"{position:.0f} mm", fontsize=8)
plt.show()

# %% [markdown]
# ## Predictions of the dataset's first model, per slice

# %%
dataset = paths.dataset(DATASET)
first = passes.plan(test_set.read_models(dataset), dataset)[0]
device = devices.pick_device("auto")
model = slice_model.load(first.path, device)
tables.write_slices(work / "study", study, {"data_dir": str(data.root)})
slice_table.write_defects(work / "study", slice_table.read_defects(work))
folder = picture_cache.ensure(Project(None, work / "study", 4), model.config.cache_size, model.config.crop)
loader = tasks.slice_loader(study, folder, model.config, batch_size=32, workers=0)
probability = expit(inference.predict(model, loader, device))

# %%
plt.figure(figsize=(12, 4))
for label, values in zip(LABELS, probability.T, strict=True):
    plt.plot(study.position, values, marker=".", label=label)
plt.xlabel("position along the slice normal (mm)")
plt.ylabel("probability")
plt.title(f"{first.run}, fold {first.fold}")
plt.legend()
plt.show()
