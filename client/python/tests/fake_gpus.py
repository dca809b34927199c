# SPDX-License-Identifier: Apache-2.0
"""What the tests of GPU memory share: the two GPUs of the fake CUDA driver, and products that the fake worker fills."""

import numpy as np

GPUS = ["GPU-00000000-0000-0000-0000-000000000000", "GPU-01010101-0101-0101-0101-010101010101"]
GRANULE = 2 << 20
FILL = 0x42  # What the fake worker fills results with.
M, N, K = 32, 64, 128


def is_filled(array):
    bits = array.bits if hasattr(array, "bits") else np.asarray(array.to_host())
    return (np.ascontiguousarray(bits).view(np.uint8) == FILL).all()


REGIONS = {
    "pool": lambda client, gpu: client.pool(1 << 20, GPUS[gpu]),
    "device": lambda client, gpu: client.device_region(1 << 20, GPUS[gpu]),
}
