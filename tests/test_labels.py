"""Class tables, palettes, overlays: what the chapter does not try."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semseg_course.data.labels import CAMVID, VOID, ClassTable, colorize, legend, overlay, show

plt = pytest.importorskip("matplotlib.pyplot")


def camvid_root():
    root = Path(os.environ.get("SEMSEG_DATA", "")) / "camvid"
    if not (root / "classes.json").is_file(): pytest.skip("CamVid's pack is not here: SEMSEG_DATA names no folder of it")
    return root


def test_camvid_table_is_the_packs():
    import json
    known = json.loads((camvid_root() / "classes.json").read_text())
    assert list(CAMVID.names) == known["names"]
    assert [list(colour) for colour in CAMVID.palette] == known["palette"]


def test_a_table_is_fixed_and_hashable():
    assert len(CAMVID) == 11 and len(set(CAMVID.palette)) == 11
    assert {CAMVID: 1}[ClassTable(CAMVID.names, CAMVID.palette)] == 1
    with pytest.raises(AttributeError): CAMVID.names = ()


def test_a_table_of_255_classes_is_refused():
    ClassTable(tuple(map(str, range(254))), ((0, 0, 0),) * 254)
    with pytest.raises(ValueError, match="Merge classes"): ClassTable(tuple(map(str, range(255))), ((0, 0, 0),) * 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_colorize_equals_a_loop(dtype):
    label = np.random.default_rng(0).choice([*range(11), VOID], (7, 9)).astype(dtype)
    colours = colorize(label, CAMVID)
    for (row, column), number in np.ndenumerate(label):
        assert tuple(colours[row, column]) == ((0, 0, 0) if number == VOID else CAMVID.palette[number])


@pytest.mark.parametrize("label, words", [
    (np.zeros((2, 2)), "whole numbers; got float64"),
    (np.zeros((2, 2), bool), "whole numbers; got bool"),
    (np.zeros((2, 2, 3), np.uint8), r"got shape \(2, 2, 3\)"),
    (np.full((2, 2), 11, np.uint8), r"got \[11\]"),
    (np.full((2, 2), -1), r"got \[-1\]"),
    (np.full((2, 2), 256), r"got \[256\]"),
])
def test_bad_labels_are_named(label, words):
    with pytest.raises(ValueError, match=words): colorize(label, CAMVID)


def test_overlay_keeps_void_and_mixes_the_rest():
    image = np.full((2, 2, 3), 200, np.uint8)
    mixed = overlay(image, np.array([[0, VOID], [3, 3]], np.uint8), CAMVID, opacity=0.25)
    assert mixed.dtype == np.uint8
    assert tuple(mixed[0, 1]) == (200, 200, 200)
    assert tuple(mixed[0, 0]) == (182, 182, 182)  # 0.75 * 200 + 0.25 * 128


@pytest.mark.parametrize("opacity, expected", [(0, "image"), (1, "colours")])
def test_overlay_at_its_ends(opacity, expected):
    image, label = np.full((4, 4, 3), 7, np.uint8), np.full((4, 4), 8, np.uint8)
    assert (overlay(image, label, CAMVID, opacity) == (image if expected == "image" else colorize(label, CAMVID))).all()


@pytest.mark.parametrize("image", [np.zeros((3, 4, 3), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_overlay_refuses_other_images(image):
    with pytest.raises(ValueError, match="image must be uint8"): overlay(image, np.zeros((4, 4), np.uint8), CAMVID)


def test_show_makes_a_grid_with_one_legend():
    label = np.array([[0, 3], [VOID, 3]], np.uint8)
    figure = show([np.zeros((2, 2, 3), np.uint8), label, np.random.rand(2, 2)], ["a", "b", "c"], columns=2)
    assert len(figure.axes) == 4 and [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Sky", "Road", "void"]
    assert not plt.fignum_exists(figure.number)  # closed: a notebook shows it once


def test_show_without_labels_has_no_legend():
    assert not show([np.zeros((2, 2, 3), np.uint8)]).legends


def test_legend_lists_all_classes_by_default():
    figure, axis = plt.subplots()
    assert [text.get_text() for text in legend(CAMVID, axis).get_texts()] == list(CAMVID.names)
    plt.close(figure)


def test_a_whole_camvid_label_can_be_shown():
    stored = np.array(Image.open(sorted((camvid_root() / "val" / "labels").glob("*"))[0]))
    with pytest.raises(ValueError, match=r"got \[11\]"): colorize(stored, CAMVID)
    assert colorize(np.where(stored == 11, VOID, stored), CAMVID).shape == stored.shape + (3,)


def test_import_loads_neither_torch_nor_matplotlib():
    code = ("import sys, semseg_course.data.labels; "
            "print([m for m in ('torch', 'matplotlib', 'tensorflow') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
