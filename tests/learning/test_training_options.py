import argparse
import re

import pytest

from ich_kaggle import train
from ich_kaggle.learning import augment, fit, tasks, training_options

OUT_OF_RANGE = ["--clip -1", "--ema 1.5", "--flip 2", "--accumulate 0", "--stride 0", "--freeze -1", "--layer-decay 2"]
OUT_OF_RANGE += ["--rotate inf", "--lr inf", "--lr nan", "--random-crop 0", "--seed -1", f"--seed {2**64}"]


@pytest.mark.parametrize("wrong", OUT_OF_RANGE)
def test_a_setting_out_of_its_range_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        train.build_parser().parse_args(wrong.split())
    assert stop.value.code == 2
    assert f"argument {wrong.split()[0]}: {wrong.split()[1]} is not" in capsys.readouterr().err


def test_the_flags_of_training_default_to_its_own_defaults():
    parser = argparse.ArgumentParser()
    training_options.add(parser)
    settings = vars(parser.parse_args([]))
    assert all(settings[name] == unused for name, (unused, _, _) in training_options.USES.items())
    for kind in (fit.FitSettings, augment.Augment, tasks.Task):
        assert training_options.take(kind, settings) == kind()
    assert tasks.slice_config(**settings | {"arch": "resnet18"}) == tasks.slice_config("resnet18")


@pytest.mark.parametrize("name", training_options.USES)
def test_a_setting_that_would_do_nothing_is_refused_and_taken_where_it_does_something(name):
    _, other, values = training_options.USES[name]
    changed = {name: "brain" if name == "window" else 3}
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} .* does nothing without --{other} {values[0]}"):
        training_options.check(changed)
    for value in values:
        training_options.check(changed | {other: value})
    training_options.check({})


def test_all_that_would_do_nothing_is_named_at_once_with_what_takes_it_back():
    expected = "--side-weight 0.2 does nothing without --context slices or both, "
    expected += "--swap 0.5 does nothing without --context slices or both: give that, or --side-weight 0.0 --swap 0.0"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        training_options.check({"context": "windows", "side_weight": 0.2, "swap": 0.5})


def test_the_help_of_train_is_a_page_in_groups():
    page = train.build_parser().format_help()
    groups = ["model", "input", "augmentation", "optimisation", "loss", "run"]
    titles = re.findall(r"^([a-z]+):$", page.partition("options:")[2], re.MULTILINE)
    assert titles == groups
    for title in groups:
        for flag in training_options.FLAGS.get(title, {}):
            assert re.search(rf"^  {flag}\b", page.partition(f"\n{title}:\n")[2].partition("\n\n")[0], re.MULTILINE)


def test_a_backbone_that_is_never_trained_is_told_and_so_is_a_random_one(caplog):
    training_options.check({"epochs": 4, "freeze": 3})
    assert not caplog.text
    training_options.check({"epochs": 2, "freeze": 3, "weights": "none", "init": "other"})
    assert "--freeze 3 of --epochs 2: the head alone is trained\n" in caplog.text
    training_options.check({"epochs": 2, "freeze": 3, "weights": "none"})
    assert "the head alone is trained, on a backbone of random weights: give --freeze 0" in caplog.text
