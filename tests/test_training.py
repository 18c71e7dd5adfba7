"What a user relies on when training: exact steps, exact resuming, equal results on one and two processes."
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from semseg_course.data.batches import TrainingSet, random_crop, random_look, resize, to_input
from semseg_course.data.labels import CAMVID, VOID
from semseg_course.losses import cross_entropy, cross_entropy_terms
from semseg_course.models.small import SKIPS, SmallNet
from semseg_course.training import SCHEDULES, evaluate, fit, load_weights, parameter_groups, set_training, train_step


class Blocks:
    "Tiny images of coloured blocks, quick to make and to learn."
    classes = CAMVID

    def __init__(self, count, size=(32, 48)):
        rng = np.random.default_rng(0)
        blocks = rng.integers(0, 11, (count, size[0] // 16, size[1] // 16)).astype(np.uint8)
        self.labels = blocks.repeat(16, 1).repeat(16, 2)
        self.labels[0, :20] = VOID

    def __len__(self): return len(self.labels)

    def __getitem__(self, i):
        label = self.labels[i]
        return (np.array([*CAMVID.palette, *[(0, 0, 0)] * 245], np.uint8)[label], label)


def train(run=None, resume=False, epochs=2, batch_size=4, **settings):
    torch.manual_seed(0)
    network = SmallNet(11, width=0.25)
    training_set = TrainingSet(Blocks(12), crop=(24, 32), scale=(0.75, 1.5), look=0.2)
    settings = dict(epochs=epochs, batch_size=batch_size, run=run, resume=resume) | settings
    return network, fit(network, training_set, Blocks(3), **settings)


def test_learns():
    network, history = train(epochs=80, learning_rate=1e-2)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["miou"] > 2 * history[0]["miou"] and history[-1]["pixel_accuracy"] > 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_between_0_and_1(schedule):
    assert all(0 <= SCHEDULES[schedule](p) <= 1 for p in np.linspace(0, 1, 101))


def test_no_decay_on_biases_and_norms():
    network = SmallNet(11, skip="gate")
    decayed, free = parameter_groups(network, 0.1)
    kinds = {id(p): type(m) for m in network.modules() for p in m.parameters(recurse=False)}
    assert {kinds[id(p)] for p in decayed["params"]} == {nn.Conv2d}
    assert all(p.ndim == 1 for p in free["params"]) and free["weight_decay"] == 0
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 3, 11)])
def test_accumulated_step_equals_large_batch(weights):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(6, 3, 16, 16, generator=generator)
    target = torch.randint(0, 11, (6, 16, 16), generator=generator)
    target[0], target[1, :9] = VOID, VOID
    after, losses = [], []
    for parts in (1, 2, 3, 6):
        torch.manual_seed(0)
        network = SmallNet(11, width=0.25).eval().double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        batches = list(zip(image.double().chunk(parts), target.chunk(parts)))
        loss = partial(cross_entropy_terms, class_weights=weights)
        losses.append(train_step(network, optimizer, batches, Accelerator(cpu=True), loss))
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    for other in after[1:]: torch.testing.assert_close(other, after[0], rtol=1e-6, atol=1e-7)
    torch.manual_seed(0)
    expected = cross_entropy(SmallNet(11, width=0.25).eval().double()(image.double()), target, weights)
    assert losses == pytest.approx([float(expected.detach())] * 4, rel=1e-5)


def test_all_void_batch_changes_nothing_without_decay():
    network = SmallNet(11, width=0.25).eval()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    batch = [(torch.randn(2, 3, 16, 16), torch.full((2, 16, 16), VOID))]
    assert train_step(network, optimizer, batch, Accelerator(cpu=True)) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_frozen_norm_keeps_running_means():
    network, _ = train(frozen_norm=True, epochs=1)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(not m.running_mean.any() and m.num_batches_tracked == 0 for m in norms)
    set_training(network)
    assert all(m.training for m in norms)


def test_resumed_after_every_epoch_gives_the_same(tmp_path):
    whole_network, whole = train(epochs=3)

    class Stop(Exception): pass

    def stop(record, network): raise Stop
    for _ in range(3):
        with pytest.raises(Stop): train(tmp_path, resume=True, epochs=3, on_epoch=stop)
    network, history = train(tmp_path, resume=True, epochs=3)
    keys = ("loss", "val_loss", "miou", "learning_rate")
    assert [[r[k] for k in keys] for r in history] == [[r[k] for k in keys] for r in whole]
    assert all(torch.equal(a, b) for a, b in zip(whole_network.state_dict().values(), network.state_dict().values()))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


CHILD = """
import sys; sys.path.insert(0, {tests!r})
from test_training import train
train({run!r}, resume=True, epochs=6, workers=0)
"""


def test_killed_at_any_moment_it_resumes_the_same(tmp_path):
    "SIGKILL at four different moments, in the middle of epochs and of files; then the run goes on to its end."
    code = CHILD.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    for delay in (0.0, 0.05, 0.21, 0.4):
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        deadline, before = time.time() + 120, len(list((tmp_path / "checkpoints").glob("*")))
        while time.time() < deadline and child.poll() is None and not list((tmp_path / "checkpoints").glob("epoch_*")):
            time.sleep(0.01)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert before >= 0
    assert list((tmp_path / "checkpoints").glob("epoch_*")), "the run was killed after its first checkpoint"
    network, history = train(tmp_path, resume=True, epochs=6)
    whole_network, whole = train(epochs=6)
    assert [r["loss"] for r in history] == [r["loss"] for r in whole]
    assert [r["miou"] for r in history] == [r["miou"] for r in whole]


ENDING = """
import atexit, os, torch
from pathlib import Path

def at_the_end():  # of Python: registered first, called last
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # none where there is no such folder
    state = [torch.distributed.is_initialized(), any("gloo" in name for name in threads)]
    Path({ending!r} + os.environ.get("RANK", "")).write_text(str(state))

atexit.register(at_the_end)
"""
PROCESS = ENDING + """
import json, sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from test_training import train
network, history = train(epochs=2, batch_size=4, frozen_norm=True, mixed_precision="no")
import os
if int(os.environ.get("RANK", 0)) == 0:
    open({out!r}, "w").write(json.dumps([[r["loss"], r["val_loss"], r["miou"]] for r in history]))
"""


def launch(folder, processes, code):
    program = folder / "program.py"
    program.write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launcher, str(program)], env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_give_what_one_gives(tmp_path):
    results = []
    for processes in (1, 2):
        out, ending = tmp_path / f"{processes}.json", tmp_path / f"ending-{processes}-"
        launch(tmp_path, processes, PROCESS.format(tests=str(Path(__file__).parent), out=str(out), ending=str(ending)))
        results.append(json.loads(out.read_text()))
        for rank in range(processes): assert Path(f"{ending}{rank}").read_text() == "[False, False]"
    assert np.allclose(results[0], results[1], rtol=1e-4), results


GROUP_OF_THE_CALLER = ENDING + """
from semseg_course.training import make_accelerator
torch.distributed.init_process_group("gloo")
assert make_accelerator().num_processes == 2
"""


def test_a_group_that_the_caller_started_is_left_to_the_caller(tmp_path):
    launch(tmp_path, 2, GROUP_OF_THE_CALLER.format(ending=str(tmp_path / "ending")))
    for rank in range(2): assert (tmp_path / f"ending{rank}").read_text().startswith("[True")


def test_batch_norm_on_two_cpu_processes_is_refused(tmp_path):
    from semseg_course.training import prepare_norms

    class Two: num_processes, device = 2, torch.device("cpu")
    with pytest.raises(ValueError, match="frozen_norm must be True"): prepare_norms(SmallNet(11), False, Two)
    assert prepare_norms(nn.Conv2d(3, 3, 1), False, Two) is not None


def test_bfloat16_comes_near_float32():
    torch.manual_seed(0)
    full, half = (train(epochs=3, learning_rate=1e-2, mixed_precision=p)[1][-1]["loss"] for p in ("no", "bf16"))
    assert half == pytest.approx(full, rel=0.1) and half != full


def test_best_weights_are_kept_and_load_back(tmp_path):
    network, history = train(tmp_path, epochs=3, learning_rate=1e-2)
    fresh = SmallNet(11, width=0.25)
    about = load_weights(fresh, tmp_path)
    best = max(history, key=lambda r: (r["miou"], r["epoch"]))
    assert about == {"epoch": best["epoch"], "miou": best["miou"]}
    assert evaluate(fresh, Blocks(3))["miou"] == pytest.approx(best["miou"], abs=1e-9)
    with pytest.raises(ValueError, match="must be"): load_weights(SmallNet(11, width=0.5), tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at"): load_weights(fresh, tmp_path / "nothing")


def test_tensorboard_has_scalars_pictures_and_filters(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(tmp_path, epochs=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "val_loss", "miou", "learning_rate"} <= set(tags["scalars"])
    assert {"image_target_prediction/0", "first_filters"} <= set(tags["images"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_evaluation_counts_at_the_labels_own_size():
    class Constant(nn.Module):
        def __init__(self): super().__init__(); self.bias = nn.Parameter(torch.arange(11.0))

        def forward(self, x): return self.bias[:, None, None].expand(len(x), 11, *x.shape[2:])
    data = Blocks(4)
    scores = evaluate(Constant(), data, size=(8, 12))
    matrix = np.array(scores["matrix"])
    assert matrix.sum() == sum((label != VOID).sum() for label in data.labels)
    assert matrix[:, :10].sum() == 0
    share = matrix[10, 10] / matrix.sum()
    assert scores["pixel_accuracy"] == pytest.approx(share)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("size", [(31, 47), (64, 96), (7, 130)])
def test_small_net_gives_scores_of_the_images_size(skip, size):
    assert SmallNet(5, width=0.25, skip=skip)(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_small_net_gradients_reach_every_parameter():
    network = SmallNet(5, width=0.25, skip="gate")
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_crops_never_invent_a_class_and_fill_with_void():
    rng, (image, label) = np.random.default_rng(0), Blocks(2)[1]
    for _ in range(50):
        a, b = random_crop(image, label, (40, 56), (0.4, 2.5), rng)
        assert a.shape == (40, 56, 3) and b.shape == (40, 56)
        assert set(np.unique(b)) <= set(np.unique(label)) | {VOID}
        colours = np.array([*CAMVID.palette], np.int64)
        inside = b[20, 28]
        if inside != VOID and (b[15:26, 23:34] == inside).all(): assert np.abs(a[20, 28] - colours[inside]).max() <= 1


def test_look_changes_colours_only_within_bounds():
    image, _ = Blocks(2)[1]
    changed = random_look(image, 0.5, np.random.default_rng(0))
    assert changed.dtype == np.uint8 and changed.shape == image.shape and (changed != image).any()


def test_resize_takes_label_values_from_the_label():
    image, label = Blocks(2)[1]
    for size in ((16, 24), (33, 50), (64, 96)):
        a, b = resize(image, label, size)
        assert a.shape[:2] == b.shape == size and set(np.unique(b)) <= set(np.unique(label))
    assert np.array_equal(resize(image, label, (64, 96))[1][::2, ::2], label)


@pytest.mark.parametrize("settings, words", [
    (dict(schedule="cosine"), "one_cycle, poly, constant"), (dict(epochs=0), "epochs must be at least 1"),
    (dict(batch_size=99), "batch_size must be 1 to 12"), (dict(accumulate=9), "accumulate must be at most 3"),
    (dict(mixed_precision="fp8x"), "no, fp16, bf16")])
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words): train(**settings)


def test_input_is_normalised_by_camvids_statistics():
    x = to_input(np.full((2, 2, 3), 128, np.uint8))
    assert x[0, 0, 0] == pytest.approx((128 / 255 - 0.4119) / 0.3071, rel=1e-4)
    assert math.isclose(x.std().item(), x.flatten().std().item())


# Resuming notices what changed, loses nothing, and starts from the very beginning when it must

@pytest.mark.parametrize("change", [
    dict(crop=(24, 40)), dict(look=0.5), dict(scale=(0.5, 1.5)), dict(flip=False), dict(size=(64, 96)), dict(seed=1)])
def test_a_changed_training_set_cannot_be_resumed(tmp_path, change):
    train(tmp_path, epochs=1)
    kept = dict(crop=(24, 32), scale=(0.75, 1.5), look=0.2) | change
    with pytest.raises(ValueError, match=f"cannot go on: {next(iter(change))} was"):
        fit(SmallNet(11, width=0.25), TrainingSet(Blocks(12), **kept), epochs=1, batch_size=4, run=tmp_path, resume=True)


def test_a_changed_loss_or_optimizer_cannot_be_resumed(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="loss was cross_entropy_terms"):
        train(tmp_path, resume=True, epochs=1, loss=partial(cross_entropy_terms, class_weights=torch.ones(11)))
    with pytest.raises(ValueError, match="optimizer was AdamW"):
        train(tmp_path, resume=True, epochs=1, optimizer=partial(torch.optim.SGD, momentum=0.9))


def test_interrupted_in_the_first_epoch_it_starts_from_the_first_weights(tmp_path):
    class Interrupting(Blocks):
        left = 7

        def __getitem__(self, i):
            self.left -= 1
            if self.left == 0: raise KeyboardInterrupt
            return super().__getitem__(i)

    torch.manual_seed(0)
    network, training_set = SmallNet(11, width=0.25), TrainingSet(Interrupting(12), crop=(24, 32))
    with pytest.raises(KeyboardInterrupt): fit(network, training_set, epochs=2, batch_size=4, run=tmp_path)
    resumed = fit(network, training_set, epochs=2, batch_size=4, run=tmp_path, resume=True)
    torch.manual_seed(0)
    whole = fit(SmallNet(11, width=0.25), training_set, epochs=2, batch_size=4)
    assert [r["loss"] for r in resumed] == [r["loss"] for r in whole]


def test_a_lost_log_is_written_again(tmp_path):
    train(tmp_path, epochs=2)
    (tmp_path / "log.jsonl").unlink()
    train(tmp_path, resume=True, epochs=2)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_an_absent_class_is_null_in_the_log(tmp_path):
    class Few(Blocks):
        def __getitem__(self, i): return super().__getitem__(i)[0], np.zeros((32, 48), np.uint8)
    fit(SmallNet(11, width=0.25), TrainingSet(Few(4)), Few(2), epochs=1, batch_size=4, run=tmp_path)
    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert None in record["iou"] and record["iou"][0] is not None


def test_divergence_is_an_error_not_a_network_of_nan():
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        train(learning_rate=1e12, schedule="constant", epochs=20, optimizer=torch.optim.SGD)


def test_fp16_needs_a_gpu():
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="use bf16 on a CPU"): train(mixed_precision="fp16")


def test_the_network_is_its_own_again_after_a_run():
    network, _ = train(epochs=1, mixed_precision="bf16")
    image = torch.randn(1, 3, 32, 48)
    clean = SmallNet(11, width=0.25)
    clean.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(image), clean.eval().to(memory_format=torch.channels_last)(image))


def test_images_of_several_sizes_need_a_size_or_a_crop():
    data = Blocks(4)
    data.sizes = [(32, 48), (32, 48), (30, 48), (32, 48)]
    with pytest.raises(ValueError, match="2 sizes.*give size or crop"): TrainingSet(data)
    TrainingSet(data, crop=(16, 16)), TrainingSet(data, size=(32, 48))
