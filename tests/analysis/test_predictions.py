"""Predicted classes, over all devices; tests/tools/test_predict.py tests the program."""

import flax.linen as nn
import numpy as np

from tnt_jax.analysis.predictions import predictor
from tnt_jax.data.settings import EvalImages


def test_each_device_computes_its_own_images():
    """TPU kernels need this, because XLA cannot partition them across chips."""
    shapes = []

    class Mean(nn.Module):
        def __call__(self, images):
            shapes.append(images.shape)
            return images.mean((1, 2))

    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), np.uint8)
    settings = EvalImages(mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))
    logits = predictor(Mean(), {}, settings)(pixels)
    assert shapes == [(2, 4, 4, 3)]
    np.testing.assert_allclose(logits, ((pixels / 255 - settings.mean) / settings.std).mean((1, 2)), atol=1e-5)
