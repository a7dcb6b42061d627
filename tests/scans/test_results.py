import csv
import json

import numpy as np
import pytest

from ich_kaggle.common.labels import LABELS
from ich_kaggle.scans import model_bundle, output, page, results, slices, test_set

RULES = {"f1": 0.5, "recall_0.95": 0.1}
PACKED = {
    "thresholds": {level: dict.fromkeys(LABELS, RULES) for level in ("slices", "studies_max")},
    "aggregate": [[1.0, 0.0, 0.0]] * 6,
}
P = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [np.nan] * 6, [0.6, 0.1, 0.1, 0.1, 0.1, 0.6]], np.float32)
ROWS = [
    results.Row("2.25.1", "a.dcm", -5.0, ""),
    results.Row("2.25.2", "=b", 0.0, "truncated"),
    results.Row("-2", "c,d", 5.0, ""),
]
READ = results.Reading(
    "=study", "2.25.3", [{"series": "2.25.3", "reason": "", "notes": ["1 doubt"], "n_left_aside": 2}], ROWS, P
)
REFUSED = results.Reading(
    "s2", "", [{"series": "2.25.9", "reason": "an MR", "notes": []}], [], np.empty((0, 6), np.float32)
)


@pytest.fixture
def out(tmp_path):
    results.write(tmp_path / "out", [READ, REFUSED], {"intended_use": "none"}, PACKED, "f1")
    return tmp_path / "out"


def read(path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_slice_is_a_row_with_probabilities_and_flags(out):
    first, unread, last = read(out / "slices.csv")
    assert (first["study"], first["series"], first["slice"], first["file"]) == ("'=study", "2.25.3", "2.25.1", "a.dcm")
    assert first["position_mm"] == "-5.0"
    assert [first[label] for label in LABELS] == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    assert [first[f"{label}_flag"] for label in LABELS] == ["0", "0", "0", "0", "1", "1"]
    assert last["file"] == "c,d"


def test_a_slice_that_was_not_read_has_neither_and_says_why(out):
    unread = read(out / "slices.csv")[1]
    assert {unread[name] for label in LABELS for name in (label, f"{label}_flag")} == {""}
    assert unread["note"] == "truncated"


def test_a_study_is_a_row_with_the_largest_the_aggregate_and_flags(out):
    study, refused = read(out / "studies.csv")
    assert (study["n_slices"], study["n_unread"]) == ("3", "1")
    assert [study[f"{label}_max"] for label in LABELS] == ["0.6", "0.2", "0.3", "0.4", "0.5", "0.6"]
    np.testing.assert_allclose([float(study[f"{label}_aggregate"]) for label in LABELS], [0.6, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [study[f"{label}_flag"] for label in LABELS] == ["1", "0", "0", "0", "1", "1"]
    assert study["note"] == "1 doubt; 2 files of the series left aside"
    assert (refused["study"], refused["any_max"], refused["note"]) == ("s2", "", "2.25.9: an MR")


def test_the_json_file_has_all_of_it_as_it_was(out):
    content = json.loads((out / "predictions.json").read_text())
    assert content["intended_use"] == "none"
    assert content["thresholds"]["rule"] == "f1"
    study, refused = content["studies"]
    assert (study["study"], study["read"], refused["read"]) == ("=study", "2.25.3", None)
    assert study["slices"][0]["probability"] == dict(zip(LABELS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    assert "probability" not in study["slices"][1]
    assert study["flags"]["epidural"] == 1
    assert study["max"]["epidural"] == 0.6
    assert refused["series"][0]["reason"] == "an MR"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "＝1", "＋1", "－1", "＠x", "'=1"])
def test_a_cell_is_never_a_formula_and_the_text_can_be_told_back(text):
    assert results.cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text, safe", [("a;=1+1", "a;'=1+1"), ("a, @x", "a, '@x"), ("b|-2", "b|'-2"), ("  =1", "  '=1"), ("a=1;b", "a=1;b")]
)
def test_no_part_of_a_cell_is_a_formula_where_a_spreadsheet_takes_another_separator(text, safe):
    assert results.cell(text) == safe


@pytest.mark.parametrize("text", ["", "2.25.1", "ID_1", "a=b", "a-b"])
def test_other_text_stays_as_it_is(text):
    assert results.cell(text) == text


def test_another_rule_gives_other_flags(tmp_path):
    results.write(tmp_path, [READ], {}, PACKED, "recall_0.95")
    assert [read(tmp_path / "slices.csv")[0][f"{label}_flag"] for label in LABELS] == ["1"] * 6


def test_a_rule_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"--threshold-rule f9: the models come with f1, recall_0\.95"):
        results.write(tmp_path / "out", [READ], {}, PACKED, "f9")
    assert not (tmp_path / "out").exists()


def test_interrupted_it_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    results.write(tmp_path, [READ], {}, PACKED, "f1")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "study_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, [READ], {}, PACKED, "f1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slices.csv", "studies.csv"]


def test_paths_may_be_text(tmp_path):
    results.write(str(tmp_path / "out"), [READ], {}, PACKED, "f1")
    assert (tmp_path / "out" / results.DONE).exists()
    output.check(str(tmp_path / "new"), overwrite=False, report=True)
    assert page.index(str(tmp_path)) == tmp_path / "report" / "index.html"
    for read in (slices.read, model_bundle.read, test_set.read_models):
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "gone")):
            read(str(tmp_path / "gone"))
