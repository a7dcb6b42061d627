from small_series import CORONAL, LOCALIZER, MR, SR, chosen, of_pile, write_series

from ich_kaggle.scans import series_choice, slices


def test_a_brain_kernel_is_preferred_to_a_bone_kernel_even_at_another_spacing(tmp_path):
    write_series(tmp_path, 12, "2.25.30", ConvolutionKernel=["H70h", "3"])
    write_series(tmp_path, 40, "2.25.31", 1.0, ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.32")
    less_fit = "2.25.31 is preferred: this one has a kernel less fit for the brain"
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": less_fit, "2.25.32": less_fit})


def test_the_spacing_of_the_training_is_preferred(tmp_path):
    write_series(tmp_path, 60, "2.25.30", 0.625)
    write_series(tmp_path, 24, "2.25.31", 5.0)
    write_series(tmp_path, 30, "2.25.32", 2.5)
    first, others = chosen(tmp_path)
    assert first == "2.25.31"
    assert set(others.values()) == {"2.25.31 is preferred: this one has slices less like the training's in distance"}
    assert chosen(tmp_path, step=0.7)[0] == "2.25.30"


def test_originals_are_preferred_to_what_is_derived(tmp_path):
    write_series(tmp_path, 20, "2.25.30", ImageType=["DERIVED", "PRIMARY", "AXIAL"], ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.31", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ConvolutionKernel="H60s")
    assert chosen(tmp_path) == (
        "2.25.31",
        {"2.25.30": "2.25.31 is preferred: this one is derived from other images"},
    )


def test_enough_slices_come_before_everything(tmp_path):
    write_series(tmp_path, 4, "2.25.30", ConvolutionKernel="H31s")
    write_series(tmp_path, 12, "2.25.31", ConvolutionKernel="H70h")
    assert chosen(tmp_path) == ("2.25.31", {"2.25.30": "2.25.31 is preferred: this one has fewer than 10 positions"})


def test_of_series_alike_the_longer_is_read_then_the_first_by_id(tmp_path):
    write_series(tmp_path, 12, "2.25.30")
    write_series(tmp_path, 14, "2.25.31")
    write_series(tmp_path, 14, "2.25.32")
    assert chosen(tmp_path) == (
        "2.25.31",
        {
            "2.25.30": "2.25.31 is preferred: this one has fewer positions",
            "2.25.32": "2.25.31 is preferred: this one comes later by its id",
        },
    )


def test_a_mixed_pile_ends_in_the_brain_series_with_a_reason_for_each_other(tmp_path):
    write_series(tmp_path / "brain", 12, "2.25.30", ConvolutionKernel="STANDARD")
    write_series(tmp_path / "bone", 12, "2.25.31", ConvolutionKernel="BONEPLUS")
    write_series(tmp_path / "scout", 2, "2.25.32", **LOCALIZER)
    write_series(tmp_path / "dose", 1, "2.25.33", **SR)
    write_series(tmp_path / "mr", 5, "2.25.34", **MR)
    write_series(tmp_path / "coronal", 12, "2.25.35", ImageOrientationPatient=CORONAL)
    (tmp_path / "read me.txt").write_text("hello")
    series = of_pile(tmp_path)
    assert chosen(tmp_path)[0] == "2.25.30"
    assert [one.series for one in series_choice.rank(series, 5.0)] == ["2.25.30", "2.25.31"]
    assert {one.series: one.reason for one in series if one.reason} == {
        "2.25.32": "ImageType says LOCALIZER: not a CT slice (2 of 2 files)",
        "2.25.33": "Modality is SR, not CT: not a CT slice (1 of 1 files)",
        "2.25.34": "Modality is MR, not CT: not a CT slice (5 of 5 files)",
        "2.25.35": "not axial: 90 degrees from the patient's axis (12 of 12 files)",
    }


def test_studies_are_told_apart(tmp_path):
    write_series(tmp_path / "a", 2, "2.25.30", StudyInstanceUID="2.25.200")
    write_series(tmp_path / "b", 2, "2.25.31", StudyInstanceUID="2.25.201")
    assert list(series_choice.studies(slices.read(tmp_path))) == ["2.25.200", "2.25.201"]
