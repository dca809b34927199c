# SPDX-License-Identifier: Apache-2.0
"""What a right result is: products of dequantized operands in float64, and how far a result may be from them."""

import gemmd
import numpy as np

# Relative Frobenius error and largest error over the RMS of D, by type of D (the accuracy that gemmd promises).
LIMITS = {"bfloat16": (2e-3, 0.04), "float32": (2e-4, 0.005)}


def float64(operand):
    """Quantized, or an array of bfloat16 or float32."""
    if isinstance(operand, gemmd.Quantized):
        return operand.dequantize().astype(np.float64)
    return gemmd.to_float32(operand).astype(np.float64)


def product(a, b):
    return float64(a) @ float64(b).T


def check(actual, expected, precision):
    """Fails unless `actual` (any kind of array) is within the limits of `precision`."""
    actual = gemmd.to_float32(actual).astype(np.float64)
    assert actual.shape == expected.shape
    error = actual - expected
    norm = np.linalg.norm(expected)
    frobenius, largest = LIMITS[precision]
    assert np.linalg.norm(error) <= frobenius * norm
    if expected.size:
        assert np.abs(error).max() <= largest * norm / np.sqrt(expected.size)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)
