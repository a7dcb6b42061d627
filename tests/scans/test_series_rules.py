import pytest
from small_series import write_series

from ich_kaggle.scans import series_rules, slices

# Names of reconstruction kernels, with where they stand: the vendors' DICOM conformance statements and protocol
# books, and ConvolutionKernel in public collections (The Cancer Imaging Archive).
SOFT = {
    "GE": ["STANDARD", "SOFT", "Standard", "STND", "STANDARD SS40"],
    "Siemens": [
        "H10s",
        "H20f",
        "H30s",
        "H31s",
        "H37s",
        "H40s",
        "J30s",
        "J40s",
        "Hr36",
        "Hr40d 3",
        "Br36",
        "Hc40s",
        "Qr40",
    ],
    "Philips": ["UA", "UB", "UC", "A", "B", "C", "Brain Standard", "BrainSmooth"],
    "Toshiba, Canon": ["FC01", "FC13-H", "FC20", "FC21", "FC26", "FC64", "FC68"],
    "United Imaging": ["H_SOFT_B", "H_SMOOTH_A", "B_SOFT_B"],
    "Neusoft, Samsung": ["Brain", "Head", "Soft Tissue"],
}
SHARP = {
    "GE": ["BONE", "BONEPLUS", "BONE+", "EDGE", "LUNG", "ULTRA", "BONE SS50"],
    "Siemens": ["H60s", "H70h", "B60s", "B70f", "Hr59", "Hr68h", "Br64d 3", "U90u", "Ur77u", "I70f 3"],
    "Philips": ["D", "E", "L", "YA", "YB", "YC", "YD", "Bone Sharp"],
    "Toshiba, Canon": ["FC30", "FC35", "FC51", "FC52", "FC80", "FC81", "FC86"],
    "United Imaging": [
        "B_SHARP_B",
        "B_SHARP_C",
        "B_VSHARP_B",
        "B_VSHARP_C",
        "H_USHARP_B",
        "B_ULTRASHARP_A",
        "B_BONE_B",
    ],
    "Neusoft, Samsung": ["Bone", "Sharp", "Lung 2", "High Resolution"],
}


def named(vendors: dict[str, list[str]]) -> list[str]:
    return [kernel for kernels in vendors.values() for kernel in kernels]


@pytest.mark.parametrize("kernel", named(SOFT))
def test_kernels_for_the_brain_are_soft(kernel):
    assert series_rules.sharpness(kernel) == series_rules.SOFT


@pytest.mark.parametrize("kernel", named(SHARP))
def test_kernels_for_bone_and_lung_are_sharp(kernel):
    assert series_rules.sharpness(kernel) == series_rules.SHARP


@pytest.mark.parametrize("kernel", ["", "DETAIL", "7", "something else"])
def test_of_the_others_nothing_is_said_and_they_stand_between(kernel):
    assert series_rules.SOFT < series_rules.sharpness(kernel) == series_rules.UNKNOWN < series_rules.SHARP


def test_without_a_known_kernel_the_description_tells_of_bone():
    assert series_rules.sharpness("", "HEAD BONE 1MM") == series_rules.SHARP
    assert series_rules.sharpness("", "HEAD 5MM C") == series_rules.UNKNOWN
    assert series_rules.sharpness("H31s", "BONE") == series_rules.SOFT


@pytest.mark.parametrize(
    "text",
    ["Head C+", "HEAD+C", "CTA HEAD", "CT ANGIO", "CT HEAD W CONTRAST", "HEAD_W_CONTRAST", "AX 5MM W", "W/WO", "WWO"]
    + ["HEAD W AND WO IV CON", "Schädel mit KM", "Kopf mit Kontrastmittel", "TC CRANIO CON MDC", "CRANE AVEC INJECTION"]
    + [
        "HEAD PERFUSION",
        "4D HEAD",
        "4cc/sec",
        "5.0ml/s",
        "BOLUS TRACKING",
        "Monitoring",
        "VENOUS",
        "POST CON",
        "头部增强",
    ]
    + ["CIRCLE OF WILLIS", "CT HEAD ENHANCED", "DELAYED", "КОНТРАСТ", "造影"],
)
def test_contrast_medium_is_told_by_a_description(text):
    assert series_rules.contrast("", {"SeriesDescription": text}) == f"SeriesDescription is {text}"


@pytest.mark.parametrize(
    "text",
    ["HEAD W/O", "CT HEAD WITHOUT CONTRAST", "CT HEAD WO IV CONTRAST", "NON CONTRAST", "NONCON", "NO IV CONTRAST", "C-"]
    + ["UNENHANCED", "NON-ENHANCED", "PRE CONTRAST", "Nativ", "ohne KM", "SANS INJECTION", "SIN CONTRASTE", "SENZA MDC"]
    + ["头部平扫", "БЕЗ КОНТРАСТА", "HEAD 5MM", "BRAIN W80 L40", "C-SPINE", "HELICAL", "VENTRICLES", ""],
)
def test_what_says_that_there_is_none_or_nothing_is_not(text):
    assert series_rules.contrast("", {"SeriesDescription": text}) == ""


def test_the_nearest_description_decides_and_the_agent_before_all():
    texts = {"SeriesDescription": "HEAD W/O", "StudyDescription": "CTA HEAD"}
    assert series_rules.contrast("", texts) == ""
    assert series_rules.contrast("", {"StudyDescription": "CTA HEAD"}) == "StudyDescription is CTA HEAD"
    assert series_rules.contrast("ULTRAVIST 370", texts) == "ContrastBolusAgent is ULTRAVIST 370"


@pytest.mark.parametrize(
    "description, image_type, reason",
    [
        ("CTA HEAD", "DERIVED PRIMARY NON_CONTRAST", "SeriesDescription is CTA HEAD"),
        ("HEAD 5MM", "DERIVED PRIMARY POST_CONTRAST", "ImageType is DERIVED PRIMARY POST_CONTRAST"),
        ("HEAD 5MM", "DERIVED PRIMARY NON_CONTRAST", ""),
    ],
)
def test_the_image_type_only_adds_a_reason(tmp_path, description, image_type, reason):
    write_series(tmp_path, 1, SeriesDescription=description, ImageType=image_type.split())
    assert [one.contrast for one in slices.read(tmp_path).slices] == [reason]


@pytest.mark.parametrize("agent", ["", "NONE", "no", "N/A", "Without", "NO CONTRAST", "-", "0", "KEINES"])
def test_an_agent_that_is_none_is_none(agent):
    assert series_rules.contrast(agent, {}) == ""


@pytest.mark.parametrize(
    "part",
    ["HEAD", "BRAIN", "HEADNECK", "KOPF", "SCHAEDEL", "SCHÄDEL", "CRANEO", "CRÁNEO", "CRANIO", "TETE", "TÊTE", "CABEZA"]
    + [
        "CABEÇA",
        "HOOFD",
        "HUVUD",
        "HJERNE",
        "GŁOWA",
        "MÓZG",
        "HLAVA",
        "KOPONYA",
        "BEYIN",
        "ГОЛОВА",
        "頭部",
        "头",
        "두부",
    ],
)
def test_heads_are_known_in_many_languages(part):
    assert series_rules.body_part(part, {"SeriesDescription": "CHEST"}) == (True, "")


@pytest.mark.parametrize("part", ["CHEST", "KNEE", "C_SPINE", "CSPINE", "NECK", "BECKEN", "胸部", "ГРУДЬ", "SINUS"])
def test_other_parts_are_refused(part):
    assert series_rules.body_part(part, {"SeriesDescription": "HEAD"}) == (
        False,
        f"BodyPartExamined is {part}: not a head",
    )


@pytest.mark.parametrize("part", ["", "UNKNOWN", "OTHER", "CTA", "TRAUMA", "NONE", "CT"])
def test_a_vague_part_is_settled_by_the_nearest_description_that_tells(part):
    def settled(*texts: str) -> tuple[bool, str]:
        return series_rules.body_part(part, dict(zip(series_rules.DESCRIPTIONS, texts, strict=False)))

    assert settled() == settled("5MM", "", "CT HEAD AND NECK") == (False, "")
    assert settled("5MM", "Routine Head", "CT CHEST") == (True, "")
    assert settled("HELICAL CHEST 5MM", "HEAD") == (False, "SeriesDescription is HELICAL CHEST 5MM: not a head")


@pytest.mark.parametrize(
    "text",
    ["Computertomographie", "Computerised Tomography", "Notfallabteilung", "INCIDENTAL FINDING", "Fall, betrunken"],
)
def test_words_that_hold_the_name_of_an_organ_say_nothing(text):
    assert series_rules.body_part("", {"StudyDescription": text}) == (False, "")
    assert series_rules.sharpness("", text) == series_rules.UNKNOWN


@pytest.mark.parametrize("text", ["CT UTERUS", "LUNGE nativ", "Thorax Lunge", "CT DENTAL", "OVARIAN", "CT NIERE"])
def test_organs_are_still_no_heads(text):
    assert series_rules.body_part("", {"StudyDescription": text}) == (False, f"StudyDescription is {text}: not a head")


@pytest.mark.parametrize(
    "text, is_told", [("CT HEAD PERFORMED AT OSH", False), ("CT PERF HEAD", True), ("PERFUSIE", True)]
)
def test_perfusion_is_contrast_and_performed_is_not(text, is_told):
    assert bool(series_rules.contrast("", {"StudyDescription": text})) == is_told
