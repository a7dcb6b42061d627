"""Train one fold of a run, predict with it, and write runs/<run>/, to be copied into work/ at home.

The initial weights are a file of the dataset ich-models: `kernel weights --extra <arch>.safetensors`.
"""

import shutil
import tempfile
from pathlib import Path

from ich_kaggle import predict, train
from ich_kaggle.common import paths

DATASET = "ich-models"
RUN, ARCH, FOLD = "kaggle", "tf_efficientnetv2_s", 0
SETTINGS = ["--image-size", "256", "--cache-size", "256", "--epochs", "2", "--batch-size", "64"]

if __name__ == "__main__":
    scratch = Path(tempfile.gettempdir()) / "work"  # on a larger disk than the output, and not kept
    shared = ["--work-dir", str(scratch), "--run", RUN, "--fold", str(FOLD)]
    weights = ["--weights", str(paths.dataset(DATASET) / f"{ARCH}.safetensors")]
    train.main([*shared, *weights, "--arch", ARCH, *SETTINGS])
    predict.main(shared)
    folder = paths.run(scratch, RUN)
    shutil.copytree(folder, folder.relative_to(scratch), dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
