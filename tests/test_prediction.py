"What the chapter on prediction cannot show: every size of image and tile, modules' modes, and folders with faults in them."
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from semseg_course.data.labels import CAMVID, ClassTable
from semseg_course.prediction import (
    find_images,
    inference,
    output_names,
    predict,
    predict_folder,
    read_image,
    tile_starts,
    tile_trust,
)


@pytest.fixture
def pointwise():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 11, 1))


def picture(h=40, w=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (5, 70), (64, 64), (65, 130), (100, 37)])
@pytest.mark.parametrize("tile, overlap", [((64, 64), 16), ((32, 48), 31), ((7, 9), 0), ((8, 8), 7), ((200, 200), 60)])
@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"multiple": 32}])
def test_tiles_equal_the_whole_on_a_pointwise_network(pointwise, size, tile, overlap, settings):
    image = picture(*size)
    whole, tiles = predict(pointwise, image), predict(pointwise, image, tile=tile, overlap=overlap, **settings)
    torch.testing.assert_close(tiles.probabilities, whole.probabilities, rtol=1e-5, atol=1e-6)
    assert tiles.label.shape == size and tiles.label.dtype == np.uint8
    top = whole.probabilities.sort(0).values[-2:]
    clear = ((top[1] - top[0]) > 1e-5).numpy()  # a tie may fall either way
    assert (tiles.label == whole.label)[clear].all()


@pytest.mark.parametrize("length, tile, overlap", [
    (10, 4, 2), (11, 4, 1), (4, 4, 3), (1000, 97, 96), (100, 99, 0), (7, 3, 0)])
def test_tiles_cover_evenly(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == length - tile
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))


def test_trust_never_vanishes():
    assert (tile_trust(2000, 2000, 999) > 0).all()


def test_context_is_right_where_overlap_is_large():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 11, 5, padding=2))
    whole = predict(network, picture(80, 80)).probabilities
    away = [float((predict(network, picture(80, 80), tile=(40, 40), overlap=o).probabilities - whole).abs().mean())
            for o in (0, 8, 24)]
    assert away[0] > 3 * away[1] > 9 * away[2]


def test_flip_average_treats_left_and_right_alike():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 11, 3, padding=1)
    image = picture()
    straight = predict(network, image, flip=True).probabilities
    mirrored = predict(network, np.ascontiguousarray(image[:, ::-1]), flip=True).probabilities
    torch.testing.assert_close(straight, mirrored.flip(-1))
    assert not torch.allclose(straight, predict(network, image).probabilities, atol=1e-3)


def test_arrays_with_odd_strides_and_tensors(pointwise):
    image = picture()
    for view in (image[::-1], image[::2, ::2], np.asfortranarray(image), torch.from_numpy(image)):
        assert predict(pointwise, view).label.shape == tuple(view.shape[:2])
    image.flags.writeable = False
    predict(pointwise, image)


def test_every_module_keeps_its_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 11, 1))
    network[1].eval()
    before = [m.training for m in network.modules()], network[1].running_mean.clone()
    image = picture()
    first, second = predict(network, image), predict(network, image)
    assert torch.equal(first.probabilities, second.probabilities)
    assert [m.training for m in network.modules()] == before[0] and torch.equal(network[1].running_mean, before[1])
    with pytest.raises(RuntimeError), inference(network):
        raise RuntimeError("on the way")
    assert [m.training for m in network.modules()] == before[0]


def test_half_precision_network(pointwise):
    expected = predict(pointwise, picture()).probabilities
    found = predict(pointwise.bfloat16(), picture()).probabilities
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8),
                                   np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), torch.zeros(1, 3, 4, 4)])
def test_wrong_images(pointwise, image):
    with pytest.raises(ValueError, match=r"image must be uint8 \(h, w, 3\)"):
        predict(pointwise, image)


@pytest.mark.parametrize("settings, words", [
    ({"tile": (8, 8), "overlap": 8}, "tile must be"), ({"tile": (8, 0), "overlap": 0}, "tile must be"),
    ({"multiple": 0}, "multiple must be"), ({"overlap": -1}, "overlap at least 0")])
def test_wrong_settings(pointwise, settings, words):
    with pytest.raises(ValueError, match=words):
        predict(pointwise, picture(), **settings)


def test_wrong_networks():
    with pytest.raises(ValueError, match="Upsample the scores"):
        predict(nn.Conv2d(3, 11, 3, stride=2, padding=1), picture())
    network = nn.Conv2d(3, 11, 1)
    nn.init.constant_(network.weight, float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        predict(network, picture())


@pytest.fixture
def folders(tmp_path):
    for name in ("a/street.png", "a/street.jpg", "a/other.bmp", "b/Street.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture()).save(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("not an image")
    return tmp_path


def test_folder_writes_each_image_once(pointwise, folders):
    out = folders / "out"
    masks = predict_folder(pointwise, CAMVID, [folders / "a", folders / "b", folders / "a/street.png"], out,
                           probabilities=True, progress=False)
    assert [m.name for m in masks] == ["other.png", "street.png", "street_2.png", "Street_3.png"]
    for mask in masks:
        picture_of_mask = Image.open(mask)
        probabilities = np.load(out / "probabilities" / (mask.stem + ".npy"))
        assert picture_of_mask.mode == "P" and probabilities.dtype == np.float16 and probabilities.shape == (11, 40, 50)
        label = np.array(picture_of_mask)
        assert (np.array(picture_of_mask.convert("RGB")) == np.array(CAMVID.palette)[label]).all()
        best = np.take_along_axis(probabilities, label[None].astype(int), 0)[0]
        assert (best >= probabilities.max(0) - 1e-3).all()
        assert read_image(out / "overlays" / (mask.stem + ".jpg")).shape == (40, 50, 3)
    png = np.array(Image.open(out / "masks/street_2.png"))  # street.jpg came first
    assert (predict(pointwise, picture()).label == png).all()


def test_folder_without_probabilities_makes_no_such_folder(pointwise, folders):
    predict_folder(pointwise, CAMVID, str(folders / "b"), str(folders / "out"), progress=False)
    assert sorted(p.name for p in (folders / "out").iterdir()) == ["masks", "overlays"]


def test_unreadable_images_do_not_lose_the_rest(pointwise, folders):
    whole = (folders / "a/street.jpg").read_bytes()
    (folders / "a/cut.jpg").write_bytes(whole[:len(whole) // 2])
    (folders / "a/empty.png").write_bytes(b"")
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(folders / "a/deep.png")
    with pytest.raises(ValueError) as error:
        predict_folder(pointwise, CAMVID, folders / "a", folders / "out", progress=False)
    for word in ("3 of 6 images", "cut.jpg", "empty.png", "deep.png", "more than 8 bits", str(folders / "out")):
        assert word in str(error.value)
    assert len(list((folders / "out/masks").iterdir())) == 3


def test_missing_paths_and_empty_folders(pointwise, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predict_folder(pointwise, CAMVID, [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="has no images"):
        find_images(tmp_path)
    assert not (tmp_path / "out").exists()


def test_input_is_never_overwritten(pointwise, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture()).save(tmp_path / "masks/street.png")
    before = (tmp_path / "masks/street.png").read_bytes()
    with pytest.raises(ValueError, match="overwrite the images themselves"):
        predict_folder(pointwise, CAMVID, tmp_path / "masks", tmp_path, progress=False)
    assert (tmp_path / "masks/street.png").read_bytes() == before


def test_classes_must_fit_the_network(pointwise, folders):
    two = ClassTable(("a", "b"), ((0, 0, 0), (255, 255, 255)))
    with pytest.raises(ValueError, match="classes must name the network's 11 classes; got 2"):
        predict_folder(pointwise, two, folders / "b", folders / "out", progress=False)


def test_camera_orientation_grey_and_transparency(tmp_path):
    image = Image.fromarray(picture(10, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.tif"
        image.convert(mode).save(path)
        assert read_image(path).shape == (10, 20, 3)


def test_names_are_all_different():
    from pathlib import Path
    files = [Path(p) for p in ("a/x.png", "b/x.png", "c/X.jpg", "d/x_2.png", "e/y.png")]
    names = output_names(files)
    assert len({name.lower() for name in names}) == len(files)
