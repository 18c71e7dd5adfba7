"""What the readers of real data promise: both layouts, void, class order, and an error for every fault."""
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semseg_course.data.datasets import (
    CamVid,
    ImageLabelFolder,
    camvid_splits,
    check_dataset,
    colours_to_ids,
    convert_colour_labels,
    find_camvid,
    mini_camvid,
    read_label,
)
from semseg_course.data.labels import CAMVID, VOID, ClassTable
from semseg_course.data.statistics import (
    ClassStatistics,
    class_statistics,
    enet_weights,
    median_frequency_weights,
    plot_statistics,
    read_statistics,
)

PACK = find_camvid() or Path(__file__).parents[2] / "shared/data/camvid"
needs_camvid = pytest.mark.skipif(not (PACK / "classes.json").is_file(),
                                  reason="no packed CamVid here (SEMSEG_DATA names the folder that holds camvid)")
TWO = ClassTable(names=("ground", "thing"), palette=((10, 20, 30), (200, 100, 0)))


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return mini_camvid(tmp_path_factory.mktemp("mini"), counts=(3, 2, 2))


def save(array, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    "Two good pairs of two classes; tests spoil the first, `a`."
    generator = np.random.default_rng(0)
    for name in "ab":
        save(generator.integers(0, 256, (24, 32, 3)), tmp_path / "images" / f"{name}.png")
        save(generator.integers(0, 2, (24, 32)), tmp_path / "labels" / f"{name}.png")
    return tmp_path


def folder(pair, **settings): return ImageLabelFolder(pair / "images", pair / "labels", TWO, **settings)


# The two layouts


def as_pack(mini: Path, root: Path) -> Path:
    "The same pictures as images/ and labels/ folders, JPEG images and palette labels, with bare names in the lists."
    for split in ("train", "val"):
        names = sorted(path.stem for path in (mini / split).glob("*.png"))
        for name in names:
            (root / split / "images").mkdir(parents=True, exist_ok=True)
            Image.open(mini / split / f"{name}.png").save(root / split / "images" / f"{name}.jpg", quality=95)
            label = Image.open(mini / f"{split}annot" / f"{name}.png")
            label.putpalette(CAMVID.colours().ravel().tolist())
            (root / split / "labels").mkdir(parents=True, exist_ok=True)
            label.save(root / split / "labels" / f"{name}.png")
        (root / f"{split}.txt").write_text("\n".join(reversed(names)) + "\n")
    return root


def test_both_layouts_give_the_same_labels(mini, tmp_path):
    segnet, pack = CamVid(mini, "train"), CamVid(as_pack(mini, tmp_path), "train")
    assert pack.names == segnet.names[::-1]  # the list decides the order
    for index in range(len(segnet)):
        np.testing.assert_array_equal(segnet[index][1], pack[len(pack) - 1 - index][1])


def test_camvid_lies_in_root_or_in_its_folder_camvid(mini, tmp_path):
    (tmp_path / "CamVid").symlink_to(mini)
    assert CamVid(tmp_path, "val").names == CamVid(mini, "val").names
    assert list(camvid_splits(tmp_path)) == ["train", "val", "test"]


def test_void_is_255_and_ids_are_kept(mini):
    dataset = CamVid(mini, "train")
    stored, (image, label) = np.array(Image.open(dataset.labels[0])), dataset[0]
    assert image.dtype == label.dtype == np.uint8 and image.shape == (*label.shape, 3)
    np.testing.assert_array_equal(label, np.where(stored == 11, VOID, stored))


def test_the_mini_tree_has_its_classes_in_the_right_order(mini):
    label = CamVid(mini, "train")[0][1]
    row = {name: np.nonzero(label == i)[0].mean() for i, name in enumerate(CAMVID.names) if (label == i).any()}
    assert row["Sky"] < row["Building"] < row["Road"]


@needs_camvid
def test_known_pixels_of_camvid():
    "(row, column) and what the photograph shows there."
    train, val = CamVid(PACK, "train"), CamVid(PACK, "val")
    assert (len(train), len(val)) == (367, 101) and set(train.sizes) == {(360, 480)}
    _, label = val[val.names.index("0016E5_07959")]
    seen = {(40, 260): "Sky", (100, 40): "Building", (170, 343): "Pole", (330, 240): "Road", (290, 60): "Pavement",
            (60, 400): "Tree", (160, 440): "Fence", (225, 380): "Car", (195, 464): "Pedestrian",
            (180, 245): "Bicyclist"}
    assert {place: CAMVID.name(int(label[place])) for place in seen} == seen


@needs_camvid
def test_the_statistics_of_camvid_are_those_of_the_pack():
    known = json.loads((PACK / "classes.json").read_text())["splits"]
    for split, statistics in read_statistics().items():
        pack = known[split]
        assert list(statistics.pixels) == pack["pixels"]
        assert list(statistics.images) == pack["images_with_class"]
        assert statistics.void == pack["void_pixels"]
        np.testing.assert_allclose(median_frequency_weights(statistics), pack["median_frequency_weights"], atol=1e-4)
        np.testing.assert_allclose(enet_weights(statistics), pack["enet_weights_1_over_ln_1.02_plus_share"], atol=1e-4)


def test_shipped_statistics_have_the_published_sizes():
    train = read_statistics()["train"]
    assert train.count == 367 and sum(train.pixels) + train.void == 367 * 360 * 480
    assert median_frequency_weights(train)[CAMVID.names.index("Pavement")] == 1  # the class in the middle


# Faults that show when the data set is made


def spoil(pair, array, name="labels/a.png"): save(array, pair / name)


AT_ONCE = {
    "missing label": (FileNotFoundError, lambda p: (p / "labels/a.png").unlink(),
                      "lacks the label of 1 of 2 names.*Add them"),
    "missing image": (FileNotFoundError, lambda p: (p / "images/a.png").unlink(),
                      "lacks the image of 1 of 2 names.*Add them"),
    "empty image": (ValueError, lambda p: (p / "images/a.png").write_bytes(b""), "a.png is empty.*download it again"),
    "empty label": (ValueError, lambda p: (p / "labels/a.png").write_bytes(b""), "a.png is empty.*download it again"),
    "no picture": (ValueError, lambda p: (p / "labels/a.png").write_text("<html>"), "a.png is no readable picture"),
    "size": (ValueError, lambda p: spoil(p, np.ones((12, 16))), "a.png has the wrong size; expected 24x32.*got 12x16"),
    "turned": (ValueError, lambda p: spoil(p, np.ones((32, 24))), "One is the other turned"),
    "16 bits": (ValueError, lambda p: Image.fromarray(np.full((24, 32), 700, np.uint16)).save(p / "labels/a.png"),
                "got 16 or 32 bits with values up to 700.*save as 8-bit"),
    "16-bit image": (ValueError, lambda p: Image.fromarray(np.full((24, 32), 700, np.uint16)).save(p / "images/a.png"),
                     "images.a.png is no 8-bit image"),
    "class colours": (ValueError, lambda p: spoil(p, np.full((24, 32, 3), (200, 100, 0))), "Use convert_colour_labels"),
    "other colours": (ValueError, lambda p: spoil(p, np.full((24, 32, 3), 9)),
                      r"\(9, 9, 9\) 768 times.*Add these colours"),
    "many colours": (ValueError, lambda p: spoil(p, np.random.default_rng(0).integers(0, 256, (24, 32, 3))),
                     "damaged by JPEG"),
    "grey with alpha": (ValueError, lambda p: Image.new("LA", (32, 24)).save(p / "labels/a.png"),
                        "a.png is no label of ids"),
    "jpeg": (ValueError, lambda p: (spoil(p, np.ones((24, 32)), "labels/a.jpg"), (p / "labels/a.png").unlink()),
             "a.jpg is no label of ids.*got a JPEG"),
    "two of a stem": (ValueError, lambda p: spoil(p, np.ones((24, 32, 3)), "images/a.bmp"), "share a stem"),
    "no pairs": (ValueError, lambda p: [path.unlink() for path in p.rglob("*.png")], "empty split"),
    "no folder": (FileNotFoundError, lambda p: (p / "labels").rename(p / "elsewhere"), "is no folder"),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_faults_in_the_heads_stop_at_once(pair, name):
    error, damage, message = AT_ONCE[name]
    assert len(folder(pair)) == 2
    damage(pair)
    with pytest.raises(error, match=f"(?s){message}"): folder(pair)


def test_camvid_says_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainannot.*semseg-course prepare camvid"): CamVid(tmp_path, "train")
    with pytest.raises(ValueError, match="train, val, test; got 'dev'"): CamVid(tmp_path, "dev")


def test_an_empty_list_is_an_empty_split(mini, tmp_path):
    root = as_pack(mini, tmp_path)
    (root / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty split"): CamVid(root, "train")


def test_a_name_in_the_list_without_files_is_reported(mini, tmp_path):
    root = as_pack(mini, tmp_path)
    with (root / "train.txt").open("a") as file: file.write("ghost\n")
    with pytest.raises(FileNotFoundError, match="1 of 4 names.*ghost"): CamVid(root, "train")


# Faults in the pixels


IN_PIXELS = {
    "torn": (lambda p: (p / "images/a.png").write_bytes((p / "images/a.png").read_bytes()[:900]), "a.png is damaged"),
    "stray id": (lambda p: spoil(p, np.full((24, 32), 7)),
                 r"ids 0 to 1 or void \(255\), got 7 \(768 pixels\).*Add the missing class"),
    "few strays": (lambda p: spoil(p, 3 * (np.arange(768).reshape(24, 32) == 5)), "JPEG or bilinear damage"),
}


@pytest.mark.parametrize("name", IN_PIXELS)
def test_faults_in_the_pixels_are_found_by_the_check(pair, name):
    damage, message = IN_PIXELS[name]
    damage(pair)
    with pytest.raises(ValueError, match=f"(?s)1 of 2 pairs.*{message}"): check_dataset(folder(pair), progress=False)


def test_the_check_reports_all_faults_at_once(pair):
    for name in "ab": spoil(pair, np.full((24, 32), 9), f"labels/{name}.png")
    with pytest.raises(ValueError) as error: check_dataset(folder(pair), progress=False)
    for words in ("2 of 2 pairs", "a.png has stray ids", "b.png has stray ids"): assert words in str(error.value)


def test_a_black_and_white_mask_is_not_taken_for_void(pair):
    for name in "ab": spoil(pair, 255 * np.eye(24, 32), f"labels/{name}.png")
    with pytest.raises(ValueError, match="divided by 255"): check_dataset(folder(pair), progress=False)


def test_good_files_pass(pair):
    assert check_dataset(folder(pair), progress=False) == 2


# What is accepted, and conversions


def test_palette_bilevel_and_grey_images_are_read(pair):
    ids = np.arange(24 * 32).reshape(24, 32) % 2
    indexed = Image.fromarray(ids.astype(np.uint8))
    indexed.putpalette([9, 9, 9, 250, 0, 0])
    indexed.save(pair / "labels/a.png")
    Image.fromarray(ids.astype(bool)).save(pair / "labels/b.png")
    Image.new("L", (32, 24), 77).save(pair / "images/a.png")
    dataset = folder(pair)
    for index in range(2): np.testing.assert_array_equal(dataset[index][1], ids)
    assert (dataset[0][0] == 77).all()


def test_void_may_be_any_id(tmp_path):
    path = save([[0, 1], [2, 255]], tmp_path / "label.png")
    np.testing.assert_array_equal(read_label(path, 3, void=0), [[VOID, 1], [2, VOID]])
    np.testing.assert_array_equal(read_label(path, 2, void=2), [[0, 1], [VOID, VOID]])


def test_names_choose_and_order(pair):
    assert folder(pair, names=["b", "a"]).names == ["b", "a"]
    assert len(folder(pair, names=["b"])) == 1


def test_colours_become_ids_and_back(tmp_path):
    ids = np.array([[0, 3, VOID], [10, 5, 1]], np.uint8)
    colours = CAMVID.colours()[ids]
    np.testing.assert_array_equal(colours_to_ids(colours, CAMVID), ids)
    save(colours, tmp_path / "in/a.png")
    assert convert_colour_labels(tmp_path / "in", tmp_path / "out", CAMVID) == 1
    np.testing.assert_array_equal(read_label(tmp_path / "out/a.png", 11), ids)
    save(np.full((2, 2, 3), 1), tmp_path / "in/b.png")
    with pytest.raises(ValueError, match="b.png.*class table"):
        convert_colour_labels(tmp_path / "in", tmp_path / "out", CAMVID)


def test_data_sets_travel_to_spawned_workers(mini):
    code = ("import pickle, sys; d = pickle.load(sys.stdin.buffer); image, label = d[1]; "
            "print(len(d), image.shape, 'torch' in sys.modules, 'matplotlib' in sys.modules)")
    sent = pickle.dumps(CamVid(mini, "train"))
    out = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert out.stdout.decode().split(maxsplit=1)[0] == "3" and out.stdout.decode().strip().endswith("False False")


def test_find_camvid_follows_the_environment(mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMSEG_DATA", raising=False)
    assert find_camvid() is None
    os.symlink(mini, tmp_path / "camvid")
    monkeypatch.setenv("SEMSEG_DATA", str(tmp_path))
    assert find_camvid() == tmp_path / "camvid"


# Statistics


def test_statistics_against_a_slow_count(mini):
    dataset = CamVid(mini, "train")
    labels = [dataset[index][1] for index in range(len(dataset))]
    statistics = class_statistics(dataset, progress=False)
    for i, label_pixels in enumerate(statistics.pixels):
        having = [label for label in labels if (label == i).any()]
        assert label_pixels == sum((label == i).sum() for label in labels)
        assert statistics.images[i] == len(having) and statistics.image_pixels[i] == sum(label.size for label in having)
    assert statistics.void == sum((label == VOID).sum() for label in labels)


def test_weights_by_hand_and_absent_classes():
    s = ClassStatistics(pixels=(60, 20, 5, 0), images=(2, 2, 1, 0), image_pixels=(100, 100, 50, 0), void=15, count=2)
    np.testing.assert_allclose(median_frequency_weights(s), [0.2 / 0.6, 1, 2, 0])
    np.testing.assert_allclose(enet_weights(s), [1 / np.log(1.02 + n / 85) for n in (60, 20, 5, 0)])


def test_median_weights_give_the_classes_equal_frequency():
    s = read_statistics()["train"]
    np.testing.assert_allclose(np.ptp(median_frequency_weights(s) * s.frequency), 0, atol=1e-12)


def test_statistics_name_stray_ids_and_empty_sets():
    with pytest.raises(ValueError, match=r"ids 0 to 1 or 255 for void; got \[2\]"):
        class_statistics([(None, np.full((2, 2), 2, np.uint8))], num_classes=2, progress=False)
    with pytest.raises(ValueError, match="empty"): class_statistics([], num_classes=2)


def test_the_plot_names_every_class_and_split():
    figure = plot_statistics(read_statistics())
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(CAMVID.names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train, 367 images", "val, 101 images"]
    assert len(list(itertools.chain(*(axis.patches for axis in figure.axes)))) == 2 * 2 * 11
