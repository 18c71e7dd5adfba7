"""Load reports account for every tensor, and official files are fetched, checked and refused; all with small files."""
import hashlib
import io
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from semseg_course import pretrained
from semseg_course.backbones import VGG
from semseg_course.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OFFICIAL,
    LoadReport,
    Official,
    compare,
    imagenet_input,
    load_matching,
    load_official,
    official_weights,
    weights_folder,
)

WIDTH = 1 / 32


class Sliding(nn.Module):
    "VGG's layers as a fully convolutional network has them, with scores of its own."
    def __init__(self, width=WIDTH):
        super().__init__()
        vgg = VGG(1000, width=width)
        self.features = vgg.features
        hidden = vgg.classifier[0].out_features
        channels = vgg.classifier[0].in_features // 49
        self.classifier = nn.Sequential(nn.Conv2d(channels, hidden, 7, padding=3), nn.ReLU(), nn.Dropout(),
                                        nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Dropout())
        self.score = nn.Conv2d(hidden, 11, 1)


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return VGG(1000, width=WIDTH, **settings)


def total(network): return sum(t.numel() for t in network.state_dict().values())


def check_accounts(report, network, tensors):
    "Every name once, every number once, and the network holds what the report says."
    own, tables = network.state_dict(), (report.loaded, report.reshaped, report.missing, report.misshapen)
    assert sorted(name for table in tables for name in table) == sorted(own)
    tables = (report.loaded, report.reshaped, report.unexpected, report.misshapen)
    assert sorted(name for table in tables for name in table) == sorted(tensors)
    arrived = sum(own[name].numel() for name in [*report.loaded, *report.reshaped])
    assert report.arrived == pytest.approx(arrived / total(network))
    assert report.used == pytest.approx(arrived / sum(t.numel() for t in tensors.values()))


# Reports

def test_equal_networks_load_whole():
    network, tensors = small(0), small(1).state_dict()
    report = load_matching(network, tensors).require()
    check_accounts(report, network, tensors)
    assert report.arrived == report.used == 1
    assert all((tensor == tensors[name]).all() for name, tensor in network.state_dict().items())


def test_linear_layers_arrive_in_convolutions_with_the_same_outputs():
    vgg, network = small(1).eval(), Sliding().eval()
    report = load_matching(network, vgg.state_dict(), "vgg16.pth")
    check_accounts(report, network, vgg.state_dict())
    assert set(report.reshaped) == {"classifier.0.weight", "classifier.3.weight"}
    assert set(report.missing) == {"score.weight", "score.bias"}
    assert set(report.unexpected) == {"classifier.6.weight", "classifier.6.bias"}
    report.require(missing="score.*", unexpected=["classifier.6.*"])
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        features = vgg.features(image)
        expected = vgg.classifier[:5](features.flatten(1))
        slid = nn.functional.conv2d(features, network.classifier[0].weight, network.classifier[0].bias)
        slid = network.classifier[1:5](slid).flatten(1)
    torch.testing.assert_close(slid, expected)


def test_the_way_back_from_convolution_to_linear_layer():
    vgg, network = small(0), Sliding()
    report = load_matching(vgg, network.state_dict())
    assert set(report.reshaped) == {"classifier.0.weight", "classifier.3.weight"}
    assert (vgg.classifier[0].weight == network.classifier[0].weight.flatten(1)).all()


def test_what_is_not_loaded_keeps_its_start_values():
    network = Sliding()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_matching(network, small(1).state_dict())
    assert all((network.state_dict()[name] == before[name]).all() for name in report.missing)


def test_another_number_of_classes_is_misshapen():
    network, tensors = VGG(11, width=WIDTH), small(1).state_dict()
    report = load_matching(network, tensors, "file.pth")
    check_accounts(report, network, tensors)
    assert report.misshapen["classifier.6.weight"] == ((1000, 128), (11, 128))
    with pytest.raises(ValueError, match=r"file.pth must fit VGG.*2 misshapen \(classifier.6.weight, classifier.6.bias\)"):
        report.require(missing="*", unexpected="*")
    assert report.require(misshapen="classifier.6.*") is report


def test_only_unrolled_inputs_are_reshaped():
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(6, 4))
    for wrong in (torch.zeros(4, 54), torch.zeros(6, 35), torch.zeros(6, 9, 2, 2), torch.zeros(6 * 36), torch.zeros(6, 4, 9)):
        report = compare(network, {"0.weight": wrong})
        assert "0.weight" in report.misshapen and not report.reshaped
    assert "1.weight" in compare(network, {"1.weight": torch.zeros(6, 4)}).misshapen  # transposed, not unrolled


def test_counters_of_batch_norm_may_be_missing():
    network, tensors = small(0, norm=True), small(1, norm=True).state_dict()
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    report = load_matching(network, old).require()
    assert len(report.missing) == 13
    without = {name: tensor for name, tensor in old.items() if "running" not in name}
    with pytest.raises(ValueError, match="26 missing .*running_mean"): compare(network, without).require()


def test_nothing_that_fits_is_an_error_and_changes_nothing():
    network = small(0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prefixed = {f"module.{name}": tensor for name, tensor in small(1).state_dict().items()}
    for tensors in (prefixed, {}):
        with pytest.raises(ValueError, match="must hold tensors of VGG, such as .*features.0.weight.*prefix"):
            load_matching(network, tensors)
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())


def test_compare_loads_nothing_and_says_the_same():
    network = Sliding()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dry = compare(network, small(1).state_dict())
    assert all((tensor == before[name]).all() for name, tensor in network.state_dict().items())
    assert dry == load_matching(network, small(1).state_dict())


def test_half_precision_and_tensors_with_gradients_are_taken():
    network, other = small(0), small(1)
    load_matching(network, {name: tensor.half() for name, tensor in other.state_dict().items()}).require()
    assert network.features[0].weight.dtype == torch.float32 and network.features[0].weight.requires_grad
    load_matching(network, dict(other.named_parameters())).require()
    assert (network.features[0].weight == other.features[0].weight).all()


def test_the_text_names_counts_and_shares():
    text = str(load_matching(Sliding(), small(1).state_dict(), "vgg16.pth"))
    assert text == repr(load_matching(Sliding(), small(1).state_dict(), "vgg16.pth"))
    for part in ("vgg16.pth into Sliding", "loaded        28 tensors", "classifier.0.weight (128, 784) -> (128, 16, 7, 7)",
                 "missing        2 tensors", "score.weight, score.bias", "and 24 more", "of the network's numbers arrived"):
        assert part in text, text


def test_an_empty_report_has_no_shares_to_divide():
    assert LoadReport().arrived == LoadReport().used == 0


# Official files

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.log.append(asked)
        if server.status: return self.send_error(server.status)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked: self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.hang_up.pop(0) if server.hang_up else None])

    def log_message(self, *_): pass


def packed(thing, **settings):
    buffer = io.BytesIO()
    torch.save(thing, buffer, **settings)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    "A local server that offers small weights under the name vgg16."
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.hang_up, server.log, server.body = None, [], [], packed(small(1).state_dict())
    server.url = f"http://127.0.0.1:{server.server_port}/models/small.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    offer(monkeypatch, server)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def offer(monkeypatch, server, digits=64):
    digest = hashlib.sha256(server.body).hexdigest()[:digits]
    monkeypatch.setitem(OFFICIAL, "vgg16", Official(server.url, digest))


def get(folder): return official_weights("vgg16", folder, progress=False)


@pytest.mark.parametrize("digits", [64, 8])
def test_a_good_file_comes_once_and_arrives(server, tmp_path, monkeypatch, digits):
    offer(monkeypatch, server, digits)
    network = small(0)
    for _ in range(2):
        load_official(network, "vgg16", tmp_path / "new/folder", progress=False).require()
    assert server.log == [None]
    assert (network.features[0].weight == small(1).features[0].weight).all()
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["small.pth"]


def test_the_report_names_the_file(server, tmp_path):
    assert load_official(small(0), "vgg16", tmp_path, progress=False).source == "small.pth"


def test_files_of_the_old_format_are_read(server, tmp_path, monkeypatch):
    server.body = packed(small(1).state_dict(), _use_new_zipfile_serialization=False)
    offer(monkeypatch, server)
    assert (get(tmp_path)["features.0.weight"] == small(1).features[0].weight).all()


def test_a_broken_line_goes_on(server, tmp_path):
    server.hang_up = [700, 400]
    assert len(get(tmp_path)) == 32
    assert server.log == [None, "bytes=700-", "bytes=1100-"]


def test_a_wrong_file_is_moved_away_and_fetched_anew(server, tmp_path):
    right, server.body = server.body, server.body[:-1] + b"?"
    with pytest.raises(ValueError, match="must have SHA-256 .* got .* moved to small.pth.refused; run this again"):
        get(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth.refused"]
    server.body = right
    assert len(get(tmp_path)) == 32


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>no</html>",
                                    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]])
def test_a_file_that_changed_on_disk_is_refused_and_loads_nothing(server, tmp_path, damage):
    get(tmp_path)
    (tmp_path / "small.pth").write_bytes(damage(server.body))
    network, start = small(0), small(0)
    with pytest.raises(ValueError, match="must have SHA-256"): load_official(network, "vgg16", tmp_path, progress=False)
    assert all((a == b).all() for a, b in zip(network.state_dict().values(), start.state_dict().values()))
    assert not (tmp_path / "small.pth").exists()


class Hostile:
    def __reduce__(self): return os.mkdir, ("made_by_a_weights_file",)


@pytest.mark.parametrize("body, message", [(b"no weights at all", "has the right SHA-256 and must hold weights"),
                                           (packed([1, 2]), "must hold tensors by name; got list"),
                                           (packed({"epoch": 3}), "must hold tensors by name; got dict"),
                                           (packed(Hostile()), "must hold weights")])
def test_other_contents_are_refused_and_never_run(server, tmp_path, monkeypatch, body, message):
    server.body = body
    offer(monkeypatch, server)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message): get(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


def test_offline_says_what_to_do_and_keeps_the_part(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(OFFICIAL, "vgg16", Official(f"http://127.0.0.1:{port}/small.pth", "00000000"))
    (tmp_path / "small.pth.part").write_bytes(b"12345")
    with pytest.raises(ConnectionError, match="could not be fetched.*Offline.*copy the file to .*small.pth") as caught:
        get(tmp_path)
    assert "Toy Streets" not in str(caught.value)
    assert (tmp_path / "small.pth.part").read_bytes() == b"12345"


def test_a_refusing_server_is_named(server, tmp_path):
    server.status = 404
    with pytest.raises(ConnectionError, match="HTTP Error 404"): get(tmp_path)


def test_a_file_brought_by_hand_is_taken(server, tmp_path):
    (tmp_path / "small.pth").write_bytes(server.body)
    assert len(get(tmp_path)) == 32 and server.log == []


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of vgg16, .*, vgg19_bn, mobilenet_v2, densenet121, .*; got 'vgg11'"):
        official_weights("vgg11", tmp_path)


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMSEG_WEIGHTS", str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"
    monkeypatch.delenv("SEMSEG_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "semseg_course"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert weights_folder() == tmp_path / ".cache/semseg_course"


def test_the_default_folder_is_used(server, monkeypatch, tmp_path):
    monkeypatch.setenv("SEMSEG_WEIGHTS", str(tmp_path))
    official_weights("vgg16", progress=False)
    assert (tmp_path / "small.pth").is_file()


def test_each_official_name_carries_its_digits():
    for name, official in OFFICIAL.items():
        stem, _, digits = official.url.rpartition("/")[2].removesuffix(".pth").rpartition("-")
        assert stem == name and len(digits) == 8 and official.sha256.startswith(digits)
        assert official.url.startswith("https://download.pytorch.org/models/")


@pytest.mark.parametrize("name, count", [("vgg16", 138_357_544), ("vgg16_bn", 138_365_992),
                                         ("vgg19", 143_667_240), ("vgg19_bn", 143_678_248)])
def test_our_networks_have_the_official_numbers(name, count):
    with torch.device("meta"): network = VGG(1000, name.removesuffix("_bn"), norm=name.endswith("_bn"))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


# Old names

PARTS = ("norm1", "conv1", "norm2", "conv2")


class DenseLayer(nn.Module):
    "A layer of DenseNet with today's names."
    def __init__(self):
        super().__init__()
        for part in PARTS: self.add_module(part, nn.BatchNorm2d(4) if "norm" in part else nn.Conv2d(4, 4, 1, bias=False))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.ModuleDict({f"denselayer{i}": DenseLayer() for i in (1, 12)})
        self.features = nn.ModuleDict({"norm0": nn.BatchNorm2d(3), "denseblock1": block, "norm5": nn.BatchNorm2d(4)})
        self.classifier = nn.Linear(4, 5)


def old_names(tensors):
    "As torchvision's DenseNet files have them: the layers' parts with a dot, and no counters."
    for part in PARTS:
        tensors = {name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}."): t for name, t in tensors.items()}
    return {name: t for name, t in tensors.items() if "num_batches" not in name}


def test_old_names_of_densenet_arrive(server, tmp_path, monkeypatch):
    torch.manual_seed(1)
    source, network = Dense(), Dense()
    tensors = old_names(source.state_dict())
    assert "features.denseblock1.denselayer12.norm.1.running_mean" in tensors and "features.norm0.weight" in tensors
    server.body = packed(tensors)
    monkeypatch.setitem(OFFICIAL, "densenet121", Official(server.url, hashlib.sha256(server.body).hexdigest()))
    report = load_official(network, "densenet121", tmp_path, progress=False).require()
    assert len(report.loaded) == len(tensors) and not report.unexpected
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["features.1.norm.1.weight", "features.transition1.norm.weight", "denselayer1.norm1.weight",
                                  "denselayer1.norm.12.weight", "mydenselayer1.norm.1.weight", "features.0.1.weight",
                                  "denselayer1.relu.1.weight", "classifier.1.bias"])
def test_other_names_stay(name):
    assert [*pretrained._renamed({name: None})] == [name]


# Inputs

def test_imagenet_input_standardises_each_colour():
    image = torch.tensor(IMAGENET_MEAN)[:, None, None].expand(3, 2, 4)
    assert imagenet_input(image).abs().max() == 0
    shifted = image + torch.tensor(IMAGENET_STD)[:, None, None]
    torch.testing.assert_close(imagenet_input(shifted[None]), torch.ones(1, 3, 2, 4))


@pytest.mark.parametrize("image", [torch.full((3, 2, 2), 200.0), torch.zeros(3, 2, 2, dtype=torch.uint8),
                                   torch.zeros(2, 2, 3), -torch.ones(3, 2, 2)])
def test_other_ranges_are_refused(image):
    with pytest.raises(ValueError, match="image must be floats .*Divide bytes by 255"): imagenet_input(image)


def test_the_module_says_nothing_of_models():
    assert "semseg_course.models" not in Path(pretrained.__file__).read_text()


def test_a_network_of_another_width_is_refused_and_not_counted_as_loaded():
    "Batch norm's counters fit at any width; alone they are nothing."
    wide, thin = (VGG(classes, norm=True, width=width) for classes, width in ((5, 1 / 16), (6, 1 / 32)))
    with pytest.raises(ValueError, match="same width"): load_matching(thin, wide.state_dict())
