"Settings that several tests of networks ask for by name."
import pytest


@pytest.fixture
def seeded():
    "PyTorch from a fixed seed, without gradients."
    import torch
    torch.manual_seed(0)
    with torch.no_grad(): yield


@pytest.fixture
def double():
    "Keras in double precision: rounding cannot move a maximum to another place."
    import keras
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")
