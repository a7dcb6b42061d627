"""Predict the test slices with the models of the dataset ich-models, and write submission.csv."""

import tempfile
from pathlib import Path

from ich_kaggle import infer
from ich_kaggle.common import paths

DATASET = "ich-models"
HOURS = 8.0  # Kaggle ends a session after 12

if __name__ == "__main__":
    scratch = Path(tempfile.gettempdir()) / "work"  # on a larger disk than the output, and not kept
    infer.main(["--models", str(paths.dataset(DATASET)), "--hours", str(HOURS), "--work-dir", str(scratch)])
