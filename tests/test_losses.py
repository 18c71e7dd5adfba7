"What the chapter on pixel losses cannot show: types, many shapes, mixed precision, and the errors in full."
import pytest
import torch
import torch.nn.functional as F

from semseg_course.losses import (
    VOID,
    cross_entropy,
    cross_entropy_terms,
    dense_cross_entropy,
    pixel_losses,
    spatial_softmax,
)


def pair(n=2, num_classes=5, h=6, w=7, void=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(n, num_classes, h, w, generator=generator)
    target = torch.randint(num_classes, (n, h, w), generator=generator)
    target[torch.rand(target.shape, generator=generator) < void] = VOID
    return scores, target


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 5, 6, 7), (3, 11, 1, 40), (1, 200, 5, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_torch_in_value_and_gradient(shape, weighted):
    scores, target = pair(*shape)
    target[0, 0, 0] = 1
    weights = torch.rand(shape[1]) + 0.1 if weighted else None
    ours, theirs = (scores.clone().requires_grad_() for _ in range(2))
    a, b = cross_entropy(ours, target, weights), F.cross_entropy(theirs, target, weights, ignore_index=VOID)
    a.backward(); b.backward()
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_whole_numbers_of_any_size(dtype):
    scores, target = pair()
    torch.testing.assert_close(cross_entropy(scores, target.to(dtype)), cross_entropy(scores, target))
    weight = cross_entropy_terms(scores, target.to(dtype), torch.ones(5))[1]
    assert weight.item() == (target != VOID).sum()


@pytest.mark.parametrize("weights", [None, [0.0, 1, 1, 1, 1], torch.zeros(5)])
def test_void_alone_gives_zero_and_zero_gradients(weights):
    scores, _ = pair()
    scores.requires_grad_()
    target = torch.full((2, 6, 7), VOID)
    loss = cross_entropy(scores, target, weights)
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_no_weight_at_all_gives_zero():
    scores, target = pair()
    assert cross_entropy(scores, target, torch.zeros(5)).item() == 0
    assert dense_cross_entropy(scores, spatial_softmax(scores), torch.zeros(2, 6, 7)).item() == 0


def test_parts_add_up_to_the_whole():
    scores, target = pair(n=6)
    target[2:4] = VOID
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    for given in (None, weights):
        terms = [cross_entropy_terms(scores[i:i + 2], target[i:i + 2], given) for i in (0, 2, 4)]
        mean = sum(t for t, _ in terms) / sum(w for _, w in terms)
        torch.testing.assert_close(mean, cross_entropy(scores, target, given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores(dtype):
    scores, target = pair(n=1, num_classes=11, h=300, w=300)  # a float16 sum of 90000 losses overflows
    half = scores.to(dtype).requires_grad_()
    loss = cross_entropy(half, target)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == dtype
    torch.testing.assert_close(loss, cross_entropy(scores.to(dtype).float(), target))
    assert dense_cross_entropy(half, spatial_softmax(scores)).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    scores, target = pair(h=16, w=16)
    network = torch.nn.Conv2d(5, 5, 1)
    with torch.autocast("cpu", dtype):
        loss = cross_entropy(network(scores), target, [1, 2, 3, 4, 5])
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(network(scores), target, [1, 2, 3, 4, 5]), rtol=0.02, atol=0.02)


def test_extreme_scores_stay_finite():
    scores = torch.tensor([1e4, -1e4, 0.0])[None, :, None, None].requires_grad_()
    for true_class in range(3):
        loss = cross_entropy(scores, torch.full((1, 1, 1), true_class))
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite() and gradient.isfinite().all()


def test_gradients_against_finite_differences():
    scores, target = pair(n=1, h=3, w=3)
    scores = scores.double().requires_grad_()
    probabilities = spatial_softmax(torch.randn(1, 5, 3, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda s: pixel_losses(s, target), scores)
    assert torch.autograd.gradcheck(lambda s: dense_cross_entropy(s, probabilities, torch.rand(1, 3, 3) * 0 + 2), scores)


def test_dense_equals_torch():
    scores, _ = pair()
    probabilities = spatial_softmax(torch.randn(2, 5, 6, 7))
    expected = F.cross_entropy(scores, probabilities)  # torch takes the mean over all pixels
    torch.testing.assert_close(dense_cross_entropy(scores, probabilities), expected)


def test_inputs_are_left_alone():
    scores, target = pair()
    before = scores.clone(), target.clone()
    cross_entropy(scores, target, [1, 2, 3, 4, 5])
    assert torch.equal(scores, before[0]) and torch.equal(target, before[1])


def wrong(**change):
    scores, target = pair()
    given = {"scores": scores, "target": target, "class_weights": None} | change
    return given["scores"], given["target"], given["class_weights"]


@pytest.mark.parametrize("arguments, words", [
    (wrong(target=torch.full((2, 6, 7), 5)), ["id 5", "num_classes = 5", "0 to 4", "255"]),
    (wrong(target=torch.full((2, 6, 7), -1)), ["id -1", "num_classes = 5"]),
    (wrong(target=torch.full((2, 6, 7), -100)), ["id -100"]),
    (wrong(target=torch.full((2, 6, 7), 256)), ["id 256"]),
    (wrong(target=torch.zeros(2, 6, 7)), ["float32", "target.long()"]),
    (wrong(target=torch.zeros(2, 6, 7, dtype=torch.bool)), ["bool"]),
    (wrong(target=torch.zeros(2, 12, 14, dtype=torch.int64)), ["scores (6, 7)", "(12, 14)", "upsample the scores"]),
    (wrong(target=torch.zeros(3, 6, 7, dtype=torch.int64)), ["batch", "2 and 3"]),
    (wrong(target=torch.zeros(2, 1, 6, 7, dtype=torch.int64)), ["target[:, 0]"]),
    (wrong(target=torch.zeros(2, 5, 6, 7)), ["dense_cross_entropy"]),
    (wrong(target=torch.zeros(6, 7, dtype=torch.int64)), ["(n, h, w)", "(6, 7)"]),
    (wrong(scores=torch.zeros(5, 6, 7)), ["scores", "(n, classes, h, w)"]),
    (wrong(scores=torch.zeros(2, 5, 6, 7, dtype=torch.int64)), ["scores", "floating point", "int64"]),
    (wrong(class_weights=torch.ones(4)), ["class_weights", "(5,)", "(4,)"]),
    (wrong(class_weights=[1, 1, -1, 1, 1]), ["class_weights", "not negative"]),
    (wrong(class_weights=[1, 1, float("nan"), 1, 1]), ["class_weights", "finite"]),
    (wrong(class_weights=[1, 1, float("inf"), 1, 1]), ["class_weights", "finite"]),
])
def test_errors_say_what_and_how(arguments, words):
    with pytest.raises(ValueError) as error:
        cross_entropy(*arguments)
    for word in words:
        assert word in str(error.value)


def test_dense_errors():
    scores, target = pair()
    with pytest.raises(ValueError, match="For class ids use cross_entropy"):
        dense_cross_entropy(scores, target)
    with pytest.raises(ValueError, match=r"weight must be \(2, 6, 7\)"):
        dense_cross_entropy(scores, spatial_softmax(scores), torch.ones(2, 1, 6, 7))
