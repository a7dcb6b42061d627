# %% [markdown]
# # Hemorrhage in head CT: a first submission, in the browser alone
# 1. Copy this notebook, and accept the rules of the competition *RSNA Intracranial Hemorrhage Detection*.
# 2. In the settings on the right choose the accelerator GPU T4 x2, and switch the internet on.
# 3. *Save Version*, *Save & Run All*: Kaggle runs it, and you can close the browser.
#
# It splits the patients into five folds, trains a small network on four of them, scores it on the fifth, and writes
# `submission.csv`. A session lasts 12 hours at most: training stops after `HOURS`, at a checkpoint.

# %%
import shutil
import tempfile
import time
from pathlib import Path

from ich_kaggle import folds, predict, submit, train
from ich_kaggle.learning import fit

ARCH, WEIGHTS, SIZE = "resnet18.a1_in1k", "imagenet", 128  # px
HOURS = 6.0
work = Path(tempfile.gettempdir()) / "work"  # on a larger disk than the output, and not kept
shared = ["--work-dir", str(work)]

# %% [markdown]
# ## The folds
# The header of every slice is read, and the patients are split so that each label is as frequent in every fold.

# %%
folds.main(shared)

# %% [markdown]
# ## The network
# Every slice is cached as a picture of three CT windows. One epoch, on a few slices of each study.

# %%
began = time.monotonic()
small = ["--arch", ARCH, "--weights", WEIGHTS, "--image-size", str(SIZE), "--cache-size", str(SIZE), "--epochs", "1"]
try:
    train.main([*shared, "--run", "start", "--fold", "0", "--sampler", "study", *small, "--hours", str(HOURS)])
except SystemExit as stop:
    if stop.code != fit.TO_BE_RESUMED:
        raise
    raise SystemExit(f"not trained after {HOURS} h: raise HOURS, or lower SIZE") from None
print(f"trained in {(time.monotonic() - began) / 3600:.1f} h")

# %% [markdown]
# ## The submission
# It is verified: every slice has six probabilities, in the order of the sample.

# %%
predict.main([*shared, "--run", "start", "--fold", "0"])
made = Path(tempfile.mkdtemp())
submit.main([*shared, "--run", "start", "--dry-run", "--submissions-dir", str(made)])
shutil.copyfile(next(made.glob("*.csv")), "submission.csv")
shutil.copytree(work / "runs", "runs", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
print("Next: open the Output tab of this version, and press Submit beside submission.csv.")
print("Better: python -m ich_kaggle.kernel train --recipe resnet50 --fold all --user YOU, from any computer.")
