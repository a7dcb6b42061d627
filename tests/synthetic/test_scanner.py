from dataclasses import replace

import numpy as np
import pytest

from ich_kaggle.common.labels import LABELS
from ich_kaggle.synthetic import fields as f
from ich_kaggle.synthetic import hemorrhages, scanner
from ich_kaggle.synthetic.anatomy import Head
from ich_kaggle.synthetic.canvas import Canvas
from ich_kaggle.synthetic.gantry import Gantry
from ich_kaggle.synthetic.variety import Variety

STILL = Gantry((128, 128), 1.9, 5.0, 0.0, np.eye(3), (0.0, 0.0), 0.0, 0.3, 0.0)
DEPTHS = range(-40, 70, 10)


def head(kinds=(), seed=3):
    rng = np.random.default_rng(seed)
    drawn = Head(rng)
    hemorrhages.bleed(rng, drawn, list(kinds))
    return drawn


def scan(drawn, depths=DEPTHS, gantry=STILL, seed=0):
    rng = np.random.default_rng(seed)
    return [scanner.scan(drawn, gantry, z, rng) for z in depths]


def test_tissues_have_the_hu_of_their_kind():
    drawn = head()
    hu = scan(drawn, [20.0])[0][0]
    fields = f.Fields(drawn, STILL, 20.0)
    brain, bone = fields.cavity.max(0) < -12, (fields.vault.max(0) < -2) & (fields.inside.min(0) > 2)
    assert 25 < np.median(hu[brain]) < 42
    assert np.median(hu[bone]) > 500
    assert (hu[f.tract(fields, drawn).max(0) < -2] < 20).mean() > 0.5
    assert abs(np.median(hu[fields.vault.min(0) > 20]) + 1000) < 20


@pytest.mark.parametrize("kind", LABELS[:5])
def test_blood_of_every_kind_is_marked_and_brighter_than_what_was_there(kind):
    n_marked, brighter = 0, []
    for seed in range(3):
        drawn = head([kind], seed)
        bloody = scan(drawn)
        drawn.bleeds = []
        for (hu, blood), (before, _) in zip(bloody, scan(drawn), strict=True):
            marked = blood == 1 << LABELS.index(kind)
            assert (blood[~marked] == 0).all()
            n_marked += marked.sum()
            brighter += [hu[marked] - before[marked]]
    assert n_marked > 100
    assert np.median(np.concatenate(brighter)) > 8


@pytest.mark.parametrize("z", [-70.0, -56.0, -36.0])
def test_ears_nose_and_neck_are_not_cut_off(z, monkeypatch):
    gantry = replace(STILL, motion=0, streaks=0)
    for seed in range(6):
        drawn = Head(np.random.default_rng(seed), Variety())
        drawn.metal = []
        skin = scan(drawn, [z], gantry)[0][0] > -800
        with monkeypatch.context() as patch:
            patch.setattr(f, "MARGIN", 99.0)
            whole = scan(drawn, [z], gantry)[0][0] > -800
        assert np.array_equal(skin, whole)


def test_all_that_is_painted_is_of_single_precision(monkeypatch):
    fine, kinds = Canvas._fine, set()

    def seen(self, coarse, box):
        kinds.add(coarse.dtype)
        return fine(self, coarse, box)

    monkeypatch.setattr(Canvas, "_fine", seen)
    widest = Variety(operated=1, metal=1, fillings=1, neck=1, infarcts=1, edema=1, levels=1)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        drawn = Head(rng, widest)
        hemorrhages.bleed(rng, drawn, list(LABELS[:5]), widest)
        scan(drawn, range(-140, 80, 20), STILL)
    assert kinds == {np.dtype(np.float32)}


def test_blood_lies_inside_the_skull_and_spans_several_slices():
    drawn = head(["subdural", "intraparenchymal"], 5)
    counts = [np.count_nonzero(blood) for _, blood in scan(drawn)]
    assert np.count_nonzero(counts) >= 3
    z = DEPTHS[int(np.argmax(counts))]
    blood = scan(drawn, [z])[0][1] > 0
    assert (f.Fields(drawn, STILL, z).vault.min(0)[blood] < 0).all()


def test_a_smaller_pixel_shows_the_same_head():
    fine = Gantry((256, 256), 0.95, 5.0, 0.0, np.eye(3), (0.0, 0.0), 0.0, 0.3, 0.0)
    drawn = head(["intraventricular", "intraparenchymal"])
    (small, _), (large, _) = scan(drawn, [10.0])[0], scan(drawn, [10.0], fine)[0]
    shrunk = large.reshape(128, 2, 128, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.98


def test_noise_has_the_strength_that_was_asked_for():
    noisy = Gantry((256, 256), 0.9, 5.0, 0.0, np.eye(3), (0.0, 0.0), 4.0, 0.8, 0.0)
    hu = scan(head(), [200.0], noisy)[0][0]
    assert 3 < hu.std() < 5


def test_the_same_seed_draws_the_same_slice():
    assert all((a == b).all() for a, b in zip(scan(head(), [0.0])[0], scan(head(), [0.0])[0], strict=True))


def test_hardening_brightens_the_brain_at_the_skull_and_the_offset_all_of_it():
    drawn = head()
    fields = f.Fields(drawn, STILL, 20.0)
    inside = fields.inside.max(0)
    rim, middle = (np.kron(part, np.ones((STILL.zoom,) * 2, bool)) for part in (abs(inside + 5) < 1, inside < -30))
    plain, hard, moved = (
        scan(drawn, [20.0], replace(STILL, **change))[0][0]
        for change in ({"hardening": 0}, {"hardening": 20, "reach": 5}, {"hardening": 0, "offset": 3})
    )
    assert (hard - plain)[rim].mean() == pytest.approx(20 / np.e, rel=0.2)
    assert abs((hard - plain)[middle]).max() < 0.1
    assert (moved - plain)[middle] == pytest.approx(3, abs=0.01)
