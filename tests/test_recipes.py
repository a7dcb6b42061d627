import re

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from ich_kaggle import ensemble, folds, train
from ich_kaggle.common import cli, recipes, storage
from ich_kaggle.common.labels import LABELS
from ich_kaggle.learning import slice_model, tasks

NAMES = [path.stem for path in recipes.files()]
SEED = ["vgg16", "resnet50", "inception_v3", "dilated_resnet50"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_page_whose_header_has_command_source_memory_time_and_score(name):
    path = recipes.RECIPES / f"{name}.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 120
    assert lines[0] == f"# python -m ich_kaggle.train --recipe {name}"
    assert all(recipes.header(path).get(word) for word in ("Source", "Memory", "Time", "Score"))


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_of_a_recipe_says_whether_it_was_measured(name):
    about = recipes.header(recipes.RECIPES / f"{name}.toml")
    assert re.search(r"no GPU|measured", about["Memory"])
    assert re.search(r"estimated|measured|as `", about["Time"])
    assert re.search(r"estimated|place|for the demo", about["Score"])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_parses_and_names_an_architecture_that_timm_has_weights_for(name):
    options = cli.parse(train.build_parser(), ["--recipe", name])
    assert options.run == name
    assert options.image_size <= options.cache_size
    assert options.weights == "none" or timm.get_pretrained_cfg(options.arch).has_weights


def printed(capsys, *argv) -> list[str]:
    with pytest.raises(SystemExit) as end:
        train.main(argv)
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_the_list_of_recipes_names_each_with_its_source(capsys):
    lines = printed(capsys, "--recipes")
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split(maxsplit=2)) == 3 for line in lines)


def test_the_table_of_recipes_has_a_row_for_each_with_six_full_cells(capsys):
    lines = printed(capsys, "--recipes", "--markdown")
    assert "\n".join(lines) == recipes.markdown()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0].strip("`") for row in rows[2:]] == NAMES
    assert all(len(row) == 6 and all(row) for row in rows)


def test_the_list_of_recipes_takes_no_other_flag(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--recipes", "--html"])
    assert end.value.code == 2
    assert "--markdown" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, offsets, n_windows, n_targets",
    [
        ("seresnext50_windows", (0,), 3, 1),
        ("seresnext50_slices", (-1, 0, 1), 1, 3),
        ("efficientnet_b5_slices", (-1, 0, 1), 1, 1),
        ("convnext_small_both", (-1, 0, 1), 3, 3),
        ("cpu_both", (-1, 0, 1), 3, 1),
    ],
)
def test_a_recipes_context_is_what_its_name_says(name, offsets, n_windows, n_targets):
    found = vars(cli.parse(train.build_parser(), ["--recipe", name]))
    asked = ("arch", "image_size", "cache_size", "context", "stride", "window", "side_weight")
    config = tasks.slice_config(**{key: found[key] for key in asked})
    assert (config.offsets, len(config.windows), config.n_targets) == (offsets, n_windows, n_targets)


@pytest.mark.slow
def test_the_four_systems_of_the_seed_train_predict_and_enter_an_ensemble(work):
    common = ["--work-dir", str(work), "--workers", "1"]
    folds.main([*common, "--folds", "2", "--overwrite"])
    for name in SEED:
        size = "75" if name == "inception_v3" else "32"
        tiny = ["--image-size", size, "--cache-size", "64", "--epochs", "1", "--sampler", "study", "--per-study", "1"]
        train.main(["--recipe", name, "--weights", "none", *common, *tiny])
    ensemble.main([*common, "--runs", *SEED, "--name", "seed"])
    assert set(storage.read_json(work / "ensemble" / "seed" / "weights.json")["runs"]) == set(SEED)
    test = pd.read_parquet(work / "ensemble" / "seed" / "test.parquet")
    assert np.isfinite(test[list(LABELS)].to_numpy()).all()
    assert slice_model.load(work / "runs" / "dilated_resnet50" / "fold0" / "model.pt").config.output_stride == 8
