"""Predict the test slices with the models of the dataset ich-models, and write submission.csv."""

import json
import tempfile
from pathlib import Path

from ich_kaggle import infer
from ich_kaggle.common import paths

DATASET = "ich-models"
SETTINGS = '{"hours": 8.0}'

if __name__ == "__main__":
    scratch = Path(tempfile.gettempdir()) / "work"  # on a larger disk than the output, and not kept
    hours = json.loads(SETTINGS)["hours"]
    infer.main(["--models", str(paths.dataset(DATASET)), "--hours", str(hours), "--work-dir", str(scratch)])
