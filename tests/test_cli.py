import pytest

from ich_kaggle import cli


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
        ("learning_rate = 1", "unknown key learning_rate"),
        ('lr = "fast"', "lr = 'fast' is not what --lr takes"),
        ("overwrite = 1", "overwrite = 1 is not what --overwrite takes"),
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


@pytest.mark.parametrize("argv, fold", [([], "all"), (["--fold", "all"], "all"), (["--fold", "3"], 3)])
def test_a_fold_is_a_number_or_all(parser, argv, fold):
    assert cli.parse(parser, argv).fold == fold


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


def test_a_bug_is_not_dressed_up_as_a_user_error(parser):
    def fail(**_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(fail, parser, [])


def test_help_keeps_the_lines_of_the_docstring_and_shows_defaults(parser):
    text = parser.format_help()
    assert "Do it.\n\nReads: nothing" in text
    assert "(default: 0.0002)" in text and "None" not in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--epochs", "0"], "argument --epochs: 0 is not 1 or more"),
        (["--batch-size", "0"], "argument --batch-size: 0 is not 1 or more"),
        (["--folds", "1"], "argument --folds: 1 is not 2 or more"),
        (["--image-size", "-3"], "argument --image-size: -3 is not 8 to 4096"),
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_those_that_can(capsys, flags, told):
    parser = cli.command("What it does.", "--epochs", "--batch-size", "--folds", "--image-size")
    with pytest.raises(SystemExit) as stop:
        cli.parse(parser, flags)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
