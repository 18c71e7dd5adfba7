"MobileNetV2-U-Net in TensorFlow against PyTorch's and against keras.applications: names, counts, scores, gradients."
import math
import os

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from fingerprint import image, uniform  # noqa: E402
from twins import as_graph, assert_same_gradients, gap, paired  # noqa: E402

from semseg_course.models import mobilenet_unet as pytorch  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.models.mobilenet_unet import (  # noqa: E402
    FORMS,
    MobileNetV2,
    MobileNetV2UNet,
    copy_application,
    divisible,
    pyramid,
)
from semseg_course.tf.weights import copy_weights, keras_slots, to_nchw, to_nhwc, torch_slots  # noqa: E402

WIDTH = 0.1
DEPTHS = [f"block_{i}_expand_relu" for i in (1, 3, 6, 13)] + ["block_16_project"]


def numbers(variables): return sum(math.prod(v.shape) for v in variables)


@pytest.fixture(scope="module", params=FORMS)
def twins(request):
    "A network of each framework with the same weights."
    return paired(*(kind(3, WIDTH, request.param) for kind in (pytorch.MobileNetV2UNet, MobileNetV2UNet)))


@pytest.fixture(scope="module")
def application():
    "Keras' own encoder, with statistics that are not the start's."
    whole = keras.applications.MobileNetV2(input_shape=(96, 64, 3), include_top=False, weights=None, alpha=0.35)
    for i, layer in enumerate(whole.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([1 + 0.4 * uniform(f"{i} {k}", w.shape) for k, w in enumerate(layer.weights)])
    return whole


def test_every_tensor_has_its_twin_in_order(twins):
    ours, theirs = keras_slots(twins[0]), torch_slots(twins[1])
    assert set(ours) == set(theirs) and all(ours[name].shape == theirs[name].shape for name in ours)
    assert [n for n in ours if n.startswith("features")] == [n for n in theirs if n.startswith("features")]


def test_scores_equal_pytorch_at_any_size(twins):
    ours, theirs = twins
    graph = as_graph(ours)
    for batch, *size in ((2, 47, 66), (1, 33, 1), (1, 64, 96), (1, 31, 32), (1, 1, 2)):
        x = image(size, batch=batch).float()
        with torch.no_grad(): assert gap(graph(to_nhwc(x)), theirs(x)) < 1e-4


def test_skips_equal_pytorch(twins):
    ours, theirs = twins
    x = image((45, 70)).float()
    with torch.no_grad(): maps = pytorch.pyramid(theirs.features, x)
    for a, b in zip(pyramid(ours.features, to_nhwc(x), training=False), maps): assert gap(a, b) < 1e-4


def test_gradients_equal_pytorch(twins):
    ours, theirs = twins
    x, target = image((45, 50), batch=2).float(), torch.arange(2 * 45 * 50).reshape(2, 45, 50) % 3
    theirs.zero_grad()
    torch.nn.functional.cross_entropy(theirs(x), target).backward()
    loss = lambda: PixelCrossEntropy()(target.numpy(), ours(to_nhwc(x), training=False))
    assert_same_gradients(ours, theirs, loss, of_own=1e-4, of_largest=1e-7)


def test_classifier_equals_pytorch():
    ours, theirs = paired(pytorch.MobileNetV2(7, WIDTH), MobileNetV2(7, WIDTH))
    x = image((70, 65)).float()
    with torch.no_grad(): expected = theirs(x).numpy()
    np.testing.assert_allclose(ours(to_nhwc(x)), expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("classes, count, trained", [(12, 6_517_196, 4_673_292), (3, 6_504_227, 4_660_323)])
def test_counts_of_the_tutorial(classes, count, trained):
    network = MobileNetV2UNet(classes, form="keras").freeze()
    assert network.count_params() == count and numbers(network.trainable_weights) == trained


def test_the_tutorials_encoder_counts_as_ours():
    whole = keras.applications.MobileNetV2(input_shape=(64, 64, 3), include_top=False, weights=None)
    down = keras.Model(whole.input, [whole.get_layer(name).output for name in DEPTHS])
    theirs = pytorch.MobileNetV2UNet(12).state_dict()
    ours = sum(t.numel() for name, t in theirs.items() if name.startswith("features") and "num_batches" not in name)
    assert down.count_params() == ours == 6_517_196 - 4_673_292 - 2 * (512 + 256 + 128 + 64)


def test_keras_own_network_gives_the_same_five_maps(application):
    down = keras.Model(application.input, [application.get_layer(name).output for name in DEPTHS])
    ours, theirs = (kind(4, 0.35, "keras") for kind in (MobileNetV2UNet, pytorch.MobileNetV2UNet))
    assert copy_application(application, ours) == 2 * 52 - 3  # convolutions and norms; three are left out
    copy_weights(ours, theirs)
    x = uniform("input", (1, 96, 64, 3)).astype("float32")
    with torch.no_grad(): there = pytorch.pyramid(theirs.eval().features, to_nchw(x))
    for a, b, c in zip(down(x), pyramid(ours.features, x, training=False), there):
        assert np.abs(a - b).max() < 1e-4 * np.std(a) and gap(a, c) < 1e-4


def test_the_whole_encoder_is_copied_into_the_classifier(application):
    ours = MobileNetV2(4, 0.35, "keras")
    assert copy_application(application, ours) == 2 * 52
    x = uniform("input", (1, 96, 64, 3)).astype("float32")
    a, b = application(x, training=False), ours.features(x, training=False)
    assert np.abs(a - b).max() < 1e-4 * np.std(a)


def test_another_form_or_width_is_refused(application):
    with pytest.raises(ValueError, match="form 'keras'.*got 'torchvision'"):
        copy_application(application, MobileNetV2UNet(4, 0.35))
    with pytest.raises(ValueError, match="shape"): copy_application(application, MobileNetV2UNet(4, 0.5, "keras"))


def test_frozen_means_no_gradient_and_no_moving_means():
    keras.utils.set_random_seed(0)
    network = MobileNetV2UNet(3, WIDTH).freeze()
    before = {v.path: v.numpy().copy() for v in network.weights}
    network.compile(keras.optimizers.SGD(0.1), PixelCrossEntropy())
    x, target = uniform("input", (2, 32, 64, 3)).astype("float32"), np.arange(2 * 32 * 64).reshape(2, 32, 64) % 3
    network.fit(x, target, batch_size=2, epochs=1, verbose=0)
    changed = {v.path for v in network.weights if not np.array_equal(v, before[v.path])}
    assert len(changed) == 4 * 5 + 2 and not any("features" in path for path in changed)
    assert network.freeze(False).features.trainable_weights


def test_saved_network_is_the_same(twins, tmp_path):
    twins[0].save(tmp_path / "unet.keras")
    loaded, x = keras.models.load_model(tmp_path / "unet.keras"), np.ones((1, 50, 43, 3), "float32")
    assert loaded.get_config() == twins[0].get_config()
    np.testing.assert_array_equal(loaded(x), twins[0](x))


def test_same_seed_same_weights():
    kernels = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        kernels.append([w.numpy() for w in MobileNetV2UNet(2, WIDTH).weights])
    assert all(map(np.array_equal, kernels[0], kernels[1])) and not all(map(np.array_equal, kernels[0], kernels[2]))


def test_bad_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="torchvision, keras; got 'tf'"): MobileNetV2UNet(3, form="tf")
    with pytest.raises(ValueError, match="width must be a positive factor"): MobileNetV2(3, 0)
    widths = (0.1, 0.35, 0.5, 1.3)
    assert [divisible(96, w) for w in widths] == [pytorch.divisible(96, w) for w in widths]


def test_every_public_name_has_its_twin():
    import semseg_course.tf.models.mobilenet_unet as here
    assert set(pytorch.__all__) - {"LateConv2d"} <= set(here.__all__)  # Keras pads that way by itself
