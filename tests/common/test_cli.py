import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich_kaggle.common import cli


@pytest.fixture
def parser():
    parser = cli.command("Do it.\n\nReads: nothing", "--run", "--recipe", "--arch", "--lr", "--fold", "--overwrite")
    parser.add_argument("--views", nargs="+", choices=["identity", "hflip"], default=["identity"])
    return parser


def recipe(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_recipe_sets_defaults_and_the_run_name_and_a_flag_wins_over_it(parser, tmp_path):
    path = recipe(tmp_path, 'arch = "resnet18"\nlr = 1e-3\noverwrite = true\n')
    options = cli.parse(parser, ["--recipe", path, "--lr", "0.5"])
    assert (options.arch, options.lr, options.overwrite, options.run) == ("resnet18", 0.5, True, "mine")
    assert cli.parse(parser, ["--recipe", path, "--run", "other"]).run == "other"


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rate = 1", "mine.toml: unrecognized arguments: --learning_rate=1"),
        ('lr = "fast"', "mine.toml: argument --lr: 'fast' is no number"),
        ("overwrite = 1", "mine.toml: argument --overwrite: ignored explicit argument '1'"),
        ("debug = true", "mine.toml: a recipe cannot set debug = True"),
        ("lr = ", "not a TOML recipe"),
    ],
)
def test_a_recipe_that_says_what_no_flag_takes_is_refused_by_name(parser, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        cli.parse(parser, ["--recipe", recipe(tmp_path, text)])


def test_a_recipe_may_name_its_run(parser, tmp_path):
    (tmp_path / "mine.toml").write_text('run = "ours"\n')
    assert cli.parse(parser, ["--recipe", str(tmp_path / "mine.toml")]).run == "ours"


def test_an_unknown_recipe_names_those_that_there_are(parser):
    with pytest.raises(FileNotFoundError, match="no recipe cpuu: .*cpu"):
        cli.parse(parser, ["--recipe", "cpuu"])


def test_flags_are_not_guessed_from_their_beginning(parser, capsys):
    with pytest.raises(SystemExit) as error:
        cli.parse(parser, ["--over"])
    assert error.value.code == 2


@pytest.mark.parametrize(
    "argv, folds",
    [([], None), (["--fold", "all"], None), (["--fold", "3"], [3]), (["--fold", "2", "0"], [0, 2])],
)
def test_folds_are_one_several_or_all(parser, argv, folds):
    assert cli.parse(parser, argv).fold == folds


@pytest.mark.parametrize("words", [["x"], ["0", "all"], ["1.5"]])
def test_words_that_name_no_fold_are_refused(parser, capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.parse(parser, ["--fold", *words])
    assert stop.value.code == 2
    assert f"argument --fold: expected `all` or numbers of folds, not {' '.join(words)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a.csv: row 2\n is odd"), "error: a.csv: row 2 is odd"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "error: a.csv: No such file or directory"),
        (RuntimeError(), "error: RuntimeError"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_and_exit_code_1(parser, error, line):
    def fail(**_):
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(fail, parser, [])
    assert stop.value.code == line


def test_commands_in_an_error_line_can_be_pasted_for_the_work_folder_of_the_command():
    said = "run python -m ich_kaggle.folds --seed 1, or python -m ich_kaggle.download (python -m ich_kaggle.scan)"
    told = said.replace("folds", "folds --work-dir 'my work'")
    assert cli.for_work_dir(said, Path("my work")) == cli.for_work_dir(told, Path("my work")) == told
    assert cli.for_work_dir(said, Path("work")) == cli.for_work_dir(said, Path("a"), default=Path("a")) == said


@pytest.mark.parametrize("stage", ["parse", "function"])
def test_an_error_of_a_command_names_its_work_folder(stage):
    def refuse(*_):
        raise ValueError("run python -m ich_kaggle.folds")

    parser = cli.command("Do it.", "--work-dir")
    recorded = [refuse] if stage == "parse" else []
    with pytest.raises(SystemExit, match="^error: run python -m ich_kaggle.folds --work-dir other$"):
        cli.run(lambda work_dir: refuse(), parser, ["--work-dir", "other"], *recorded)


@pytest.mark.parametrize("module", sorted(path.stem for path in Path(cli.__file__).parents[1].glob("[a-z]*.py")))
def test_the_work_folder_is_added_to_the_commands_that_take_it(module):
    has = "--work-dir" in importlib.import_module(f"ich_kaggle.{module}").build_parser().format_help()
    added = cli.for_work_dir(f"python -m ich_kaggle.{module} -x", Path("o")) != f"python -m ich_kaggle.{module} -x"
    assert added == (has and module not in ("kernel", "infer"))


def test_a_bug_is_not_dressed_up_as_a_user_error(parser):
    def fail(**_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(fail, parser, [])


def test_help_keeps_the_lines_of_the_docstring_and_shows_defaults(parser):
    text = parser.format_help()
    assert "Do it.\n\nReads: nothing" in text
    assert "(default: 0.0002)" in text and "None" not in text


def test_a_switch_has_no_default_in_the_help():
    parser = cli.command("Do it.")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="draw nothing")
    assert "draw nothing\n" in parser.format_help() and "True" not in parser.format_help()


@pytest.mark.parametrize("module", ["ich_kaggle.slices", "ich_kaggle.report"])
def test_the_usage_line_can_be_typed(module):
    done = subprocess.run([sys.executable, "-m", module, "--nonsense"], capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"usage: python -m {module} [-h] ")
    assert f"python -m {module}: error: unrecognized arguments: --nonsense" in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--epochs", "0"], "argument --epochs: 0 is not 1 or more"),
        (["--batch-size", "0"], "argument --batch-size: 0 is not 1 or more"),
        (["--folds", "1"], "argument --folds: 1 is not 2 or more"),
        (["--image-size", "-3"], "argument --image-size: -3 is not 8 to 4096"),
        (["--epochs", "x"], "argument --epochs: 'x' is no whole number"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_those_that_can(capsys, flags, told):
    parser = cli.command("What it does.", "--epochs", "--batch-size", "--folds", "--image-size")
    with pytest.raises(SystemExit) as stop:
        cli.parse(parser, flags)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def fail(**_):
    raise ValueError("a.csv: row 2 is odd") from KeyError("the cause")


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.setenv("ICH_DEBUG", "")


@pytest.mark.parametrize(("argv", "env"), [(["--debug"], ""), ([], "1"), ([], "0"), ([], "")])
def test_debug_shows_the_traceback_behind_an_error_line(parser, capsys, monkeypatch, argv, env):
    monkeypatch.setenv("ICH_DEBUG", env)
    with pytest.raises(SystemExit) as stop:
        cli.run(fail, parser, argv)
    assert stop.value.code == "error: a.csv: row 2 is odd"
    shown = capsys.readouterr().err
    if argv or env == "1":
        assert "in fail\n" in shown and "KeyError: 'the cause'" in shown
    else:
        assert shown == ""


def test_debug_shows_the_traceback_of_a_recipe_that_is_refused_too(parser, capsys):
    with pytest.raises(SystemExit):
        cli.run(fail, parser, ["--recipe", "cpuu", "--debug"])
    assert "in path_of" in capsys.readouterr().err


def test_debug_of_a_command_is_that_of_the_commands_it_starts(parser, capsys):
    with pytest.raises(SystemExit):
        cli.run(lambda **_: cli.run(fail, parser, []), parser, ["--debug"])
    assert "in fail\n" in capsys.readouterr().err


def test_debug_is_in_every_help_and_reaches_no_command(parser):
    given = {}
    cli.run(lambda **options: given.update(options), parser, ["--debug"])
    assert "--debug" in parser.format_help()
    assert "lr" in given and "debug" not in given


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "interrupted: run the same command to resume\n"),
        (
            ["--overwrite"],
            "interrupted: files that --overwrite replaces may be gone already: "
            "run the command without --overwrite to resume, or with it to start over\n",
        ),
    ],
)
def test_an_interruption_names_the_command_that_resumes(parser, capsys, argv, message):
    def interrupt(**_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(interrupt, parser, argv)
    assert stop.value.code == 130
    assert capsys.readouterr().err == message


def test_an_interruption_of_the_imports_is_one_line(tmp_path):
    """The command imports numpy before anything else of ours can catch Ctrl-C."""
    heard = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "numpy.py").write_text(heard + "os.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "ich_kaggle.submit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "interrupted\n")


def lines_of(setup: str) -> list[str]:
    """Return the lines that a command in a pipe shows of two steps, after `setup`."""
    code = (
        f"from ich_kaggle.common import cli; {setup}\n"
        "cli.run(lambda: list(cli.progress(range(2), 4, 'zip', ' files', initial=2)), cli.command('It zips.'), [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [line.split(",")[0] for line in done.stderr.splitlines()]


def test_progress_in_a_pipe_is_lines_on_stderr_and_none_for_short_work_or_other_processes():
    at_once = "cli.FIRST_LINE = cli.NEXT_LINE = 0"
    assert {"zip: 3 of 4 files (75%)", "zip: 4 of 4 files (100%)"} <= set(lines_of(at_once))
    assert lines_of("") == lines_of(f"{at_once}; cli.IS_FIRST = False") == []


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(cli.progress(range(3), 3, "cache 512")) == [0, 1, 2]
    assert "cache 512: 100%|" in capsys.readouterr().err


@pytest.mark.parametrize("cores, ranks, found", [(2, None, 2), (96, None, 16), (96, "8", 12), (4, "8", 1)])
def test_workers_are_the_cores_of_this_process_shared_by_the_ranks_and_at_most_16(cores, ranks, found, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks or "1")
    parser = cli.command("", "--workers")
    assert cli.parse(parser, []).workers == found
    assert cli.parse(parser, ["--workers", "3"]).workers == 3


SAY = "from ich_kaggle.common import cli; [cli.say(f'läuft \u2713 {i}') for i in range(3)]; open('done', 'w').close()"


def test_a_rank_without_torchrun_silences_nothing(tmp_path):
    for more, n_lines in (
        ({"RANK": "3"}, 3),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 3),
    ):
        known = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK")}
        done = subprocess.run(
            [sys.executable, "-c", SAY], env=known | more, cwd=tmp_path, capture_output=True, text=True
        )
        assert len(done.stdout.splitlines()) == n_lines and done.returncode == 0


def test_a_console_that_lacks_a_letter_shows_the_rest(tmp_path):
    console = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", SAY], env=console, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("latin-1").splitlines() == [f"läuft ? {i}" for i in range(3)]


def test_a_reader_that_leaves_stops_no_work(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SAY], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head` does
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert (tmp_path / "done").exists()
    process.stderr.close()
