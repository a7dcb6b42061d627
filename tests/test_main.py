"""The overview of `python -m ich_kaggle`, and the commands it starts."""

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ich_kaggle import __main__ as overview
from ich_kaggle import __version__
from ich_kaggle.common import paths
from ich_kaggle.kaggle_api import submission_log

ROOT = Path(overview.__file__).parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "ich_kaggle").glob("*.py") if not path.stem.startswith("__"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """An empty current folder, without data in any default place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICH_DATA_DIR", raising=False)
    monkeypatch.setattr(paths, "MOUNTS", ())
    return tmp_path


def shown(capsys, *flags: str) -> list[str]:
    overview.main(list(flags))
    return capsys.readouterr().out.splitlines()


def state(capsys, *flags: str) -> dict[str, list[str]]:
    """Return the lines on the work folder, by their names."""
    lines, out, name = shown(capsys, *flags), {}, ""
    for line in lines[lines.index("work:") + 1 : lines.index("", lines.index("work:"))]:
        name = line[2:14].strip() or name
        out.setdefault(name, []).append(line[14:])
    return out


def next_of(capsys, *flags: str) -> str:
    return shown(capsys, *flags)[-1].removeprefix("Next: ")


def fold_of(run: str, k: int, *files: str, **settings) -> None:
    """Write a fold of a run with empty `files`."""
    folder = Path("work/runs") / run / f"fold{k}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "run.json").write_text(json.dumps({"settings": settings}))
    for name in files:
        (folder / name).write_text("{}")


def test_every_command_is_listed_once_with_its_first_sentence(capsys):
    lines = shown(capsys)
    lines = lines[: lines.index("work:")]
    assert sorted([*overview.PIPELINE, *overview.BESIDE]) == COMMANDS
    for name in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name:11} ")]
        assert len(line) > 40 and not line.endswith(".")
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed[: len(overview.PIPELINE)] == list(overview.PIPELINE)


def test_an_empty_folder_has_nothing_and_begins_with_the_download(capsys):
    assert state(capsys) == dict.fromkeys(("slices", "folds", "caches", "runs", "ensembles", "submissions"), ["none"])
    assert next_of(capsys) == "python -m ich_kaggle.download --all"


def test_a_run_without_its_settings_is_told_and_mended_first(prepared, capsys):
    shutil.copytree(prepared, "work")
    fold_of("a", 0, "model.pt")
    fold_of("b", 0, "model.pt")
    Path("work/runs/a/run.json").unlink()
    with pytest.raises(SystemExit, match=r"work/runs/a/run\.json is missing: remove work/runs/a and make"):
        overview.main([])
    lines = capsys.readouterr().out
    assert "a: run.json is missing: remove work/runs/a" in lines and "b: finished folds 0 of 3" in lines


def test_the_state_of_a_work_folder_is_told(prepared, capsys):
    shutil.copytree(prepared, "work")
    (Path("work") / "cache" / "512").mkdir()
    (Path("work") / "cache" / "512" / "cache.json").write_text('{"image_size": 512}')
    fold_of("a", 0, "model.pt", "predict.json")
    fold_of("a", 1, "model.pt")
    fold_of("a", 2, "state.pt")
    fold_of("A-smooth", 0, "predict.json", on=["a"])
    ensemble = Path("work/ensemble/both/weights.json")
    ensemble.parent.mkdir(parents=True)
    ensemble.write_text('{"nested_log_loss": 0.06543, "single": {"a": 0.07, "A-smooth": 0.066}}')
    row = submission_log.new_row("why", name="both", oof="0.0654") | {"status": "COMPLETE", "private": "0.0501"}
    submission_log.record(Path("submissions/history.csv"), row)
    found = state(capsys)
    n = json.loads((prepared / "cache" / "64" / "cache.json").read_text())["n_slices"]
    assert found["slices"] == [str(n)]
    assert found["folds"] == ["3, of 9 patients"]
    assert found["caches"] == ["512: incomplete", f"64: complete, {n} slices"]
    assert found["runs"] == [
        "a: finished folds 0, 1 of 3, begun 2; OOF of 0",
        "A-smooth: finished folds 0 of 3; OOF of 0",
    ]
    assert found["ensembles"] == ["both: 2 runs, nested log loss 0.0654"]
    assert found["submissions"] == [f"{row['time']} both, oof 0.0654, private 0.0501, COMPLETE"]


def test_the_next_command_leads_from_the_data_to_the_report(prepared, capsys):
    Path("input", paths.SLUG).mkdir(parents=True)
    assert next_of(capsys) == "python -m ich_kaggle.folds"
    shutil.copytree(prepared, "work")
    assert next_of(capsys) == "python -m ich_kaggle.train --fold 0"
    fold_of("a", 0, "state.pt")
    assert next_of(capsys) == "python -m ich_kaggle.train --run a --fold 0"
    fold_of("a", 0, "model.pt", "predict.json")
    assert next_of(capsys) == "python -m ich_kaggle.submit"
    Path("submissions").mkdir()
    csv = Path("submissions/history.csv")
    csv.touch()
    for k in (1, 2):
        assert next_of(capsys) == f"python -m ich_kaggle.train --run a --fold {k}"
        fold_of("a", k, "model.pt", "predict.json")
    csv.touch()
    assert next_of(capsys) == "python -m ich_kaggle.report"


def test_a_submission_older_than_the_predictions_is_made_again(prepared, capsys):
    shutil.copytree(prepared, "work")
    Path("submissions").mkdir()
    Path("submissions/history.csv").touch()
    for k in range(3):
        fold_of("a", k, "model.pt", "predict.json")
    later = Path("work/runs/a/fold2/predict.json")
    os.utime(later, (later.stat().st_mtime + 10,) * 2)
    assert next_of(capsys) == "python -m ich_kaggle.submit"


def test_another_work_folder_is_named_in_the_next_command(prepared, capsys):
    assert next_of(capsys, "--work-dir", str(prepared)) == f"python -m ich_kaggle.train --work-dir {prepared} --fold 0"


@pytest.mark.parametrize("part, name", [("slices", "slices.parquet"), ("caches", "cache/64/cache.json")])
def test_a_damaged_file_is_told_and_hides_nothing_else(prepared, capsys, part, name):
    shutil.copytree(prepared, "work")
    (Path("work") / name).write_bytes(b"\xff{")
    found = state(capsys)
    assert found[part][0].startswith("error: ") and found["folds"] == ["3, of 9 patients"]


def test_damaged_folds_are_told_and_leave_no_next_command(prepared, capsys):
    shutil.copytree(prepared, "work")
    Path("work/folds.csv").write_text("patient_id\na\n")
    with pytest.raises(SystemExit) as stop:
        overview.main([])
    told = f"error: {Path('work/folds.csv')}: damaged: run python -m ich_kaggle.folds --overwrite"
    assert stop.value.code == told and f"  folds       {told}\n" in capsys.readouterr().out


def test_the_first_word_names_a_command(place, capsys):
    with pytest.raises(SystemExit) as stop:
        overview.main(["folds", "--work-dir", str(place / "gone")])
    assert "no competition data in" in stop.value.code


@pytest.mark.parametrize(
    "word, hint",
    [
        ("trian", "did you mean train or pretrain?"),
        ("slice", "did you mean slices?"),
        ("xyz", "the commands are download, slices,"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest_names(word, hint):
    with pytest.raises(SystemExit) as stop:
        overview.main([word])
    assert stop.value.code.startswith(f"error: no command '{word}': {hint}")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        overview.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"ich_kaggle {__version__}\n")


@pytest.mark.parametrize(
    "argv, usage",
    [
        (["--help"], "ich-kaggle [-h]"),
        (["folds", "--help"], "ich-kaggle folds [-h]"),
    ],
)
def test_the_console_script_is_named_in_the_usage_line(monkeypatch, capsys, argv, usage):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "ich-kaggle = ich_kaggle.__main__:main" in setup["options.entry_points"]["console_scripts"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ich-kaggle", *argv])
    with pytest.raises(SystemExit):
        overview.main()
    assert capsys.readouterr().out.startswith(f"usage: {usage}")


def test_the_overview_needs_no_torch_and_a_command_is_named_as_a_module(prepared):
    code = (
        "import sys; from ich_kaggle import __main__ as overview; overview.main(['--work-dir', sys.argv[1]]); "
        "assert not {'torch', 'timm', 'cv2', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(prepared)], check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "ich_kaggle", "cache", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m ich_kaggle.cache [-h]")
