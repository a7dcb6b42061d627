from dataclasses import replace

import numpy as np
import pytest

from ich_kaggle.common.labels import ANY, LABELS
from ich_kaggle.synthetic import fields, scanner, studies
from ich_kaggle.synthetic.variety import PLAIN, Variety, chance


def head_of(seed=0, first=None, **changes):
    return studies.draw_head(np.random.default_rng(seed), first, replace(PLAIN, **changes))


def still(head, **changes):
    """Return a gantry without noise and a head that lies straight, at 2 mm."""
    plain = replace(PLAIN, noise=(0, 0), position=0, turn=0, motion=0, tilt=0)
    gantry = studies.draw_gantry(np.random.default_rng(0), (128, 128), 3.0, 0.0, plain)
    return replace(gantry, holder=0, pixel=1.9, noise=0, **changes)


def scans(head, gantry, depths):
    return np.stack([scanner.scan(head, gantry, z, np.random.default_rng(0))[0] for z in depths])


@pytest.mark.parametrize("variety", [PLAIN, Variety()])
def test_a_seed_is_one_patient_and_another_seed_another(variety):
    first, again, other = (list(studies.draw(k, size=48, slices=5, variety=variety)) for k in (4, 4, 5))
    assert all(
        np.array_equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert not np.array_equal(first[2][0], other[2][0])


def test_slices_are_hu_of_the_size_that_was_asked_for_with_six_labels():
    found = [slice_ for seed in range(6) for slice_ in studies.draw(seed, size=64, slices=6, prevalence=1)]
    hu, labels, _ = (np.stack(part) for part in zip(*found, strict=True))
    assert hu.dtype == np.float32 and hu.shape[1:] == (64, 64) and np.isfinite(hu).all()
    assert labels.dtype == np.int8 and (labels[:, ANY] == labels[:, :ANY].max(axis=1)).all()
    assert labels[:, ANY].any() and not labels[:, ANY].all()


def test_nobody_bleeds_at_prevalence_0():
    drawn = [studies.draw(seed, size=32, slices=4, prevalence=0, variety=Variety()) for seed in range(4)]
    assert not any(one.labels.any() for study in drawn for one in study)


@pytest.mark.parametrize("seed", range(12))
def test_any_draw_of_the_widest_variety_is_a_scan(seed):
    first = LABELS[seed % ANY]
    always = dict.fromkeys(
        ("metal", "operated", "drains", "air", "levels", "edema", "infarcts", "motion", "neck", "fillings"), 1.0
    )
    variety = Variety(**always, hydrocephalus=seed % 2, contrast=seed % 2)
    rng = np.random.default_rng(seed)
    head = studies.draw_head(rng, first, variety)
    gantry, positions = studies.prescribe(rng, head, (96, 96), 6, variety)
    for z in positions:
        hu, blood = scanner.scan(head, gantry, z, rng)
        assert np.isfinite(hu).all() and hu.min() > -3000 and hu.max() < 20_000 and blood.max() < 32


def test_the_scanner_stays_in_its_ranges():
    variety = Variety(thickness=(0.6, 10), field=(190, 290), noise=(1, 6), kernel=(0.3, 0.9))
    rng = np.random.default_rng(0)
    found = [studies.prescribe(rng, head_of(), (100, 100), 30, variety)[0] for _ in range(60)]
    for low, high, values in (
        (0.6, 10, [g.thickness for g in found]),
        (1.9, 2.9, [g.pixel for g in found]),
        (1, 6, [g.noise for g in found]),
        (0.3, 0.9, [g.kernel for g in found]),
    ):
        assert low <= min(values) < low + 0.3 * (high - low) and high - 0.5 * (high - low) < max(values) <= high


def test_what_is_switched_off_is_in_no_patient_and_what_is_on_in_all():
    for seed in range(8):
        off, on = head_of(seed), head_of(seed, metal=1, operated=1, drains=1, air=1, contrast=1)
        assert off.metal == [] and off.operation is None and off.sinus < 63
        assert len(on.metal) == 1 and on.operation.drain is not None and on.operation.air > 0 and on.sinus >= 90


def test_metal_is_denser_than_bone_and_streaks_through_the_brain():
    head = head_of(2, metal=1)
    gantry, z = still(head), float(head.metal[0][2])
    with_metal = scans(head, gantry, [z])[0]
    head.metal = []
    without = scans(head, gantry, [z])[0]
    brain = fields.Fields(head, gantry, z).cavity.max(0) < -8
    brain = np.kron(brain, np.ones((gantry.zoom,) * 2, bool))[:128, :128]
    assert with_metal.max() > 2500 > without.max() and (with_metal - without)[brain].std() > 3


def pixel_at(gantry, x, y):
    """Return the row and column of a point, in mm from the middle of a head that lies straight."""
    return tuple(round(mm / gantry.pixel + (n - 1) / 2) for mm, n in zip((y, x), gantry.shape, strict=True))


def test_a_neck_has_a_cord_in_a_canal_of_bone_an_airway_and_no_brain():
    head = head_of(4, "subdural", neck=1)
    head.half[0] = 71  # the places below are those of the average head
    gantry = still(head)
    hu, blood = scanner.scan(head, gantry, -135.0, np.random.default_rng(0))  # the middle of a vertebra
    assert 20 < hu[pixel_at(gantry, 0, 27)] < 45 and not blood.any()
    bone = [hu[pixel_at(gantry, x, y)] for x, y in ((0, 7), (0, 39), (11, 27), (21, 17), (0, 50))]
    assert min(bone) > 120  # body, arch behind and beside the canal, side, spine
    assert hu[pixel_at(gantry, 0, -18)] < -300 and -150 < hu[pixel_at(gantry, 40, 30)] < 80
    before = scans(head_of(4, "subdural"), gantry, [-135.0])[0]
    assert before[pixel_at(gantry, 40, 30)] < -500  # the head alone does not reach as far down
    assert scans(head, gantry, [-150.0])[0][pixel_at(gantry, 0, 66)] > -200


def test_jaw_and_teeth_lie_before_the_airway():
    head = head_of(4, neck=1)
    head.half[0] = 71
    jaw, teeth = scans(head, still(head), [-104.0, -86.0])
    row, column = pixel_at(still(head), 0, -32)
    assert jaw[: row - 20, column].max() > 900 and teeth[: row - 15, column].max() > 900
    assert jaw[row + 20 :, column + 17 :].max() < 300  # open to the back, beside the spine


def test_the_window_of_a_slice_holds_all_of_its_neck():
    head = head_of(4, neck=1)
    gantry = replace(still(head), pixel=2.2)  # wide enough for all of it
    inside = np.sign(scans(head, gantry, [-150.0])[0] + 500)
    whole = fields.Fields(head, gantry, -150.0).neck.max(0) < -3
    whole = np.kron(whole, np.ones((gantry.zoom,) * 2, bool))[:128, :128]
    assert whole.sum() > 500 and (inside[whole] < 0).mean() < 0.1  # but for the airway


def test_the_share_of_scans_that_begin_at_the_neck():
    def starts(share):
        variety, rng = replace(PLAIN, neck=share), np.random.default_rng(0)
        return np.array([studies.prescribe(rng, head_of(), (64, 64), 30, variety)[1][0] for _ in range(40)])

    assert starts(1).max() <= -75 and starts(0).min() > -75 and 0.2 < (starts(0.5) <= -75).mean() < 0.8


def test_fillings_are_metal_in_the_teeth():
    head = head_of(0, neck=1, fillings=1)
    x, y, z = head.metal[0]
    gantry = still(head)
    assert scans(head, gantry, [z])[0].max() > 2700
    assert np.hypot(x, (y + 32 * head.half[0] / 71) / 1.25) == pytest.approx(36 * head.half[0] / 71)
    head.metal = []
    assert scans(head, gantry, [z])[0].max() < 2600
    assert head_of(0, fillings=1).metal == []  # no teeth without a neck


def test_streaks_of_the_base_grow_with_their_strength():
    head = head_of(0)
    smooth, plain, strong = (scans(head, still(head, streaks=s), [-38.0])[0] for s in (0, 3, 12))
    window = (slice(56, 72), slice(48, 80))
    assert (strong - smooth)[window].std() == pytest.approx(4 * (plain - smooth)[window].std(), rel=1e-3)
    assert (strong - smooth)[window].std() > 5


def test_the_band_between_the_petrous_bones_darkens_with_the_streaks():
    head, seeds = head_of(0), range(16)
    row, column = pixel_at(still(head), 0, 12)

    def band(streaks):
        gantry = still(head, streaks=streaks)
        found = [scanner.scan(head, gantry, -38.0, np.random.default_rng(seed))[0] for seed in seeds]
        return np.mean(found, axis=0)[row - 2 : row + 3, column - 12 : column + 12].mean()

    assert band(0) - band(12) > 15


def test_dense_calcifications_are_three_times_as_bright():
    plain, dense = ([hu for *_, hu in head_of(2, dense=share).spots] for share in (0, 1))
    assert len(plain) > 1 and np.allclose(dense, 3 * np.array(plain))


def test_blood_in_a_swollen_scalp_has_no_label_and_stays_there():
    seed = next(seed for seed in range(40) if head_of(seed, "epidural").lump is not None)
    head = head_of(seed, "epidural", bruised=1)
    gantry, z = still(head), float(head.lump[2])
    hu, blood = scanner.scan(head, gantry, z, np.random.default_rng(0))
    head.bruise = 0
    before, marked = scanner.scan(head, gantry, z, np.random.default_rng(0))
    brighter = hu - before > 15
    found = fields.Fields(head, gantry, z)
    far = np.sqrt(sum((v[0] - c) ** 2 for v, c in zip(found.p, head.lump, strict=True)))
    outside, near = (
        np.kron(part, np.ones((gantry.zoom,) * 2, bool))[:128, :128] for part in (found.vault.min(0) > -4, far < 45)
    )
    assert brighter.sum() > 20 and outside[brighter].all() and near[brighter].all() and (blood == marked).all()


def test_air_of_an_operation_lies_at_the_front_of_a_patient_on_the_back():
    head = head_of(1, operated=1, drains=0, air=0)
    gantry = still(head)
    before = scans(head, gantry, [25.0])[0]
    head.operation = head.operation._replace(air=15)
    after = scans(head, gantry, [25.0])[0]
    rows = np.flatnonzero(((after < -500) & (before > -500)).any(axis=1))
    assert len(rows) and rows.max() < 64


def test_a_missing_flap_opens_the_skull():
    head = head_of(3, operated=1, drains=0, air=0)
    gantry, z = still(head), float(head.operation.center[2])
    head.operation = head.operation._replace(width=0, radius=30.0)
    opened = scans(head, gantry, [z])[0]
    head.operation = None
    assert ((scans(head, gantry, [z])[0] > 500) & (opened < 300)).sum() > 20


def test_a_level_is_brighter_below_and_old_blood_is_darker_than_the_brain():
    for seed in range(20):
        [bleed] = head_of(seed, "intraventricular").bleeds[:1]
        assert 56 <= bleed.hu <= 80
    old = [b for s in range(20) for b in head_of(s, "subdural", old=1, density=(14, 20), levels=1).bleeds]
    assert all(14 <= b.hu <= 20 for b in old if b.kind == "subdural") and any(b.level is not None for b in old)


def test_a_sharp_kernel_overshoots_at_the_skull():
    head = head_of(0)
    soft, sharp = (scans(head, still(head, sharpness=s), [40.0])[0] for s in (0, 1.5))
    assert sharp.max() > soft.max() + 100 and sharp.min() < soft.min() - 50


def test_what_does_not_vary_draws_no_number():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert studies._shade(rng, PLAIN) == {"hardening": 5, "reach": 7, "streaks": 3, "offset": 0}
    assert rng.bit_generator.state == before
    assert not chance(rng, 0) and rng.bit_generator.state == before and chance(rng, 1)
    found = [studies._shade(rng, Variety()) for _ in range(200)]
    for name, low, high in (("hardening", 0, 30), ("reach", 2, 10), ("streaks", 1, 12)):
        values = [one[name] for one in found]
        assert low <= min(values) < low + (high - low) / 10 and high >= max(values) > high - (high - low) / 10
    assert np.std([one["offset"] for one in found]) == pytest.approx(3, rel=0.2)
