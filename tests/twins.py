"""What tests of networks share: networks without numbers, and a Keras network beside its PyTorch twin.

TensorFlow is imported where it is used, so that tests of PyTorch networks run without it.
"""
import numpy as np
import torch
from fingerprint import fill


def on_meta(kind, *args, **settings):
    "A network with shapes and without numbers."
    with torch.device("meta"): return kind(*args, **settings)


def filled(kind, *args, **settings):
    "A network in double precision, filled by the rule of the fingerprints; no random numbers are drawn."
    return fill(on_meta(kind, *args, **settings).double().to_empty(device="cpu"))


def count(network): return sum(p.numel() for p in network.parameters())


def paired(theirs, ours):
    "A Keras network and its PyTorch twin, which get the same weights by the rule of the fingerprints."
    from semseg_course.tf.weights import copy_weights
    copy_weights(fill(theirs).eval(), ours)
    return ours, theirs


def as_graph(network):
    "A Keras network as one TensorFlow function for images of any size."
    import tensorflow as tf
    return tf.function(lambda x: network(x, training=False), input_signature=[tf.TensorSpec((None, None, None, 3))])


def gap(ours, theirs):
    "The largest difference of scores (n, h, w, classes) from (n, classes, h, w), as a share of their deviation."
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    return np.abs(np.array(ours) - theirs).max() / theirs.std()


def assert_same_gradients(ours, theirs, loss, of_largest=0.0, of_own=0.0, floor=0.0):
    """Compare the gradients of `loss()`, which uses `ours`, with those that `theirs` has after backward().

    A difference must be less than the sum of: a share of the largest gradient of all tensors, a share of the tensor's own
    largest, and a floor.
    """
    import tensorflow as tf

    from semseg_course.tf.weights import keras_slots
    slots = {name: slot for name, slot in keras_slots(ours).items() if slot.tensor.trainable}
    with tf.GradientTape() as tape: value = loss()
    gradients = tape.gradient(value, [slot.tensor.value for slot in slots.values()])
    there = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.requires_grad}
    assert set(slots) == set(there), set(slots) ^ set(there)
    largest = max(np.abs(g).max() for g in there.values())
    for (name, slot), gradient in zip(slots.items(), gradients):
        here, own = gradient.numpy().transpose(slot.axes).reshape(slot.shape), np.abs(there[name]).max()
        difference = np.abs(here - there[name]).max()
        assert difference < of_largest * largest + of_own * own + floor, f"{name}: {difference}, of {own}"
