"What the TensorFlow twin of training cannot show: pipelines of many kinds, compilers, saved models, broken runs."
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
tf = pytest.importorskip("tensorflow", reason="the TensorFlow twins need the extra: pip install semseg-course[tf]")
import keras  # noqa: E402
from keras import layers  # noqa: E402
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: E402

import semseg_course.training as pytorch  # noqa: E402
from semseg_course import metrics  # noqa: E402
from semseg_course.data import batches  # noqa: E402
from semseg_course.data.batches import TrainingSet  # noqa: E402
from semseg_course.data.labels import CAMVID, VOID  # noqa: E402
from semseg_course.data.toy_streets import ToyStreets  # noqa: E402
from semseg_course.tf.losses import PixelCrossEntropy  # noqa: E402
from semseg_course.tf.training import (  # noqa: E402
    BATCH_NORM,
    ConfusionMatrix,
    ScheduledRate,
    adamw,
    evaluate,
    fit,
    image_scores,
    training_batches,
)

STREETS = ToyStreets((32, 40), 8, 0)


def network(num_classes=len(CAMVID)):
    return keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, padding="same", use_bias=False),
                             layers.BatchNormalization(**BATCH_NORM), layers.ReLU(), layers.Conv2D(num_classes, 1)])


@pytest.mark.parametrize("settings", [dict(), dict(size=(20, 28)), dict(crop=(16, 16), scale=(0.5, 2.0), look=0.3)],
                         ids=["whole", "resized", "cropped"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_pytorchs_to_the_last_bit(settings, workers):
    training_set = TrainingSet(STREETS, seed=5, **settings)
    ours = list(training_batches(training_set, 3, epoch=4, epochs=2, workers=workers))
    theirs = [batch for epoch in (4, 5) for batch in batches.training_batches(training_set, 3, epoch)]
    assert len(ours) == len(theirs) == 4
    for (x, target), (x_there, target_there) in zip(ours, theirs):
        assert x.dtype == tf.float32 and target.dtype == tf.int64
        np.testing.assert_array_equal(x, x_there.permute(0, 2, 3, 1))
        np.testing.assert_array_equal(target, target_there)


def test_the_pipeline_knows_its_shapes():
    x, target = training_batches(TrainingSet(STREETS, crop=(16, 20)), 4).element_spec
    assert x.shape == (4, 16, 20, 3) and target.shape == (4, 16, 20)


@pytest.mark.parametrize("name", pytorch.SCHEDULES)
def test_rates_are_the_functions_at_every_step_also_when_saved(name):
    epochs, steps = 3, 7
    rate = ScheduledRate(0.02, name, epochs, steps)
    again = ScheduledRate.from_config(rate.get_config())
    for epoch in range(epochs):
        for step in range(steps):
            wanted = 0.02 * pytorch.SCHEDULES[name]((epoch + step / steps) / epochs)
            for r in (rate, again): np.testing.assert_allclose(r(epoch * steps + step), wanted, rtol=1e-6)


def random_pair(seed, num_classes=5, void=0.3):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes - 1, (2, 6, 7))  # the last class is in the predictions alone
    target = np.where(rng.random(target.shape) < void, VOID, target)
    return rng.normal(0, 1, (*target.shape, num_classes)).astype(np.float32), target


@pytest.mark.parametrize("jit", [None, False, True], ids=["eager", "graph", "xla"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_metric_equals_the_course_metrics(jit, dtype):
    metric, expected = ConfusionMatrix(5), np.zeros((5, 5), np.int64)
    update = metric.update_state if jit is None else tf.function(metric.update_state, jit_compile=jit)
    for seed in range(3):
        scores, target = random_pair(seed)
        update(tf.constant(target.astype(dtype)), tf.constant(scores))
        expected += metrics.confusion_matrix(scores.argmax(-1), target, 5)
    np.testing.assert_array_equal(metric.matrix, expected)
    result = metric.result()
    for name, function in dict(miou=metrics.mean_iou, pixel_accuracy=metrics.pixel_accuracy,
                               mean_accuracy=metrics.mean_accuracy).items():
        np.testing.assert_allclose(result[name], function(expected), rtol=1e-12)


def test_metric_of_nothing_is_nan_and_absent_classes_are_out():
    metric = ConfusionMatrix(5)
    assert all(np.isnan(value) for value in metric.result().values())
    metric.update_state(np.zeros((1, 2, 2), int), np.eye(5, dtype=np.float32)[np.zeros((1, 2, 2), int)])
    assert metric.result()["miou"] == 1
    metric.update_state(np.full((1, 2, 2), VOID), np.ones((1, 2, 2, 5), np.float32))
    assert metric.result()["miou"] == 1 and metric.matrix.sum() == 4


def test_metric_counts_beyond_the_whole_numbers_of_float32():
    metric = ConfusionMatrix(2)
    metric.counts.assign(np.full((2, 2), 2**53 + 1, np.int64))
    metric.update_state(np.zeros((1, 1, 1), int), np.float32([[[[1, 0]]]]))
    assert metric.matrix[0, 0] == 2**53 + 2


def test_decay_leaves_out_what_has_one_dimension():
    net = network()
    before = [v.numpy() for v in net.trainable_variables]
    adamw(net, 0.1, 0.5).apply([tf.zeros(v.shape) for v in net.trainable_variables], net.trainable_variables)
    for v, old in zip(net.trainable_variables, before):
        np.testing.assert_allclose(v, old * (0.95 if old.ndim > 1 else 1), rtol=1e-6)


def test_decay_leaves_out_slopes_of_prelus():
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 1), layers.PReLU("ones", shared_axes=(1, 2))])
    adamw(net, 0.1, 0.5).apply([tf.zeros(v.shape) for v in net.trainable_variables], net.trainable_variables)
    assert net.layers[-1].alpha.shape == (1, 1, 4) and np.all(net.layers[-1].alpha == 1)


@pytest.mark.parametrize("size", [None, (16, 20), (64, 80), (33, 30)])
def test_evaluation_equals_pytorchs_at_any_size(size):
    there = torch.nn.Conv2d(3, len(CAMVID), 1)
    here = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(len(CAMVID), 1)])
    here.set_weights([there.weight.detach().permute(2, 3, 1, 0).numpy(), there.bias.detach().numpy()])
    few = ToyStreets((32, 40), 3, 1)
    with torch.no_grad(): scores = pytorch.image_scores(there, few[0][0], size)
    np.testing.assert_allclose(image_scores(here, few[0][0], size), scores.movedim(1, -1), atol=1e-4)
    ours, theirs = evaluate(here, few, size), pytorch.evaluate(there, few, size)
    assert list(ours) == list(theirs)
    for key in ("loss", "miou", "pixel_accuracy", "mean_accuracy", "iou"):
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-3 if size else 1e-4)


def test_steps_compiled_by_xla_give_the_same_losses():
    histories = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        net = network()
        net.compile(adamw(net, 0.01), PixelCrossEntropy(), metrics=[ConfusionMatrix(len(CAMVID))], jit_compile=jit)
        steps = training_batches(TrainingSet(STREETS), 4, epochs=2)
        histories.append(net.fit(steps, epochs=2, steps_per_epoch=2, shuffle=False, verbose=0).history)
    for key, values in histories[0].items(): np.testing.assert_allclose(values, histories[1][key], rtol=1e-3, atol=1e-4)


def tags(folder):
    "Tag -> epochs and the plugin that shows it, as TensorBoard reads them."
    events = [e for path in sorted(Path(folder).rglob("events.*")) for e in EventFileLoader(str(path)).Load()]
    found = {}
    for event in events:
        for value in event.summary.value:
            found.setdefault(value.tag, (value.metadata.plugin_data.plugin_name, []))[1].append(event.step)
    return found


def test_a_run_beside_pytorchs(tmp_path):
    "PyTorch trains first: it tells TensorBoard to leave TensorFlow alone, and ours must write all the same."
    training_set = TrainingSet(STREETS, seed=1)
    there = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, len(CAMVID), 3))
    settings = dict(epochs=3, batch_size=4, validate_every=2, schedule="poly")
    theirs = pytorch.fit(there, training_set, STREETS, run=tmp_path / "pytorch", **settings)
    ours = fit(network(), training_set, STREETS, run=tmp_path / "tensorflow", **settings)
    assert [list(r) for r in ours] == [list(r) for r in theirs]
    np.testing.assert_allclose([r["learning_rate"] for r in ours], [r["learning_rate"] for r in theirs], rtol=1e-6)
    written = tags(tmp_path / "tensorflow")
    assert written == tags(tmp_path / "pytorch")
    assert {"loss", "miou", "first_filters", "image_target_prediction/1"} < set(written)
    log = [json.loads(line) for line in (tmp_path / "tensorflow/log.jsonl").read_text().splitlines()]
    assert log == ours
    best = network()
    best.load_weights(tmp_path / "tensorflow/best.weights.h5")
    assert evaluate(best, STREETS)["miou"] == pytest.approx(max(r.get("miou", 0) for r in ours), abs=1e-6)


def test_a_run_without_validation_has_a_loss_only():
    (record,) = fit(network(), TrainingSet(STREETS), epochs=1, batch_size=4)
    assert list(record) == ["epoch", "loss", "learning_rate", "seconds", "images_per_second"]


@pytest.mark.parametrize("settings, text", [
    (dict(epochs=0), "epochs must be at least 1"), (dict(epochs=1, batch_size=9), "1 to 8"),
    (dict(epochs=1, schedule="step"), "one_cycle"), (dict(epochs=1, validate_every=0), "validate_every")])
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(ValueError, match=text): fit(network(), TrainingSet(STREETS), **settings)


def test_a_loss_that_is_not_finite_stops_the_run():
    net = network()
    net.layers[0].set_weights([np.full(net.layers[0].get_weights()[0].shape, np.nan)])
    with pytest.raises(FloatingPointError, match="step 1: training diverged"): fit(net, TrainingSet(STREETS), epochs=1)


def test_a_saved_model_knows_loss_metric_and_schedule(tmp_path):
    net = network()
    steps = keras.optimizers.AdamW(ScheduledRate(0.01, "poly", 1, 2))
    net.compile(steps, PixelCrossEntropy(), metrics=[ConfusionMatrix(11)])
    net.fit(training_batches(TrainingSet(STREETS), 4), steps_per_epoch=2, shuffle=False, verbose=0)
    net.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer._learning_rate.table == net.optimizer._learning_rate.table
    x, target = next(iter(training_batches(TrainingSet(STREETS), 4)))
    ours, loaded = (m.evaluate(x, target, verbose=0, return_dict=True) for m in (net, again))
    assert loaded == pytest.approx(ours)
