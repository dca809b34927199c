# SPDX-License-Identifier: Apache-2.0
"""Client of gemmd, a daemon that runs FP8 block-scaled matrix products for other processes.

    import gemmd

    with gemmd.connect("unix:/run/gemmd/gemmd.sock") as client:
        weights = client.put(gemmd.quantize(w, block=(128, 128)))   # w: [N, K] float32
        d = client.gemm(gemmd.quantize(x), weights)                 # x: [M, K] float32; d: [M, N]

Start at README.md; the operations are documented at Client.gemm, Client.grouped_gemm, Client.k_grouped_gemm and
Client.quantize. gemmd.aio has the same for asyncio.
"""

from gemmd import aio
from gemmd.arrays import DType, to_bfloat16, to_float32
from gemmd.client import Client, connect
from gemmd.device_arrays import DeviceArray
from gemmd.device_regions import DeviceRegion
from gemmd.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    GemmdError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from gemmd.linear import Linear
from gemmd.quantized import Quantized, quantize, quantize_k_groups
from gemmd.regions import HostRegion
from gemmd.stream import Stream
from gemmd.tensors import Tensor, named_tensor

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "CancelledError",
    "Client",
    "DType",
    "DeadlineExceededError",
    "DeviceArray",
    "DeviceRegion",
    "FailedPreconditionError",
    "GemmdError",
    "HostRegion",
    "InternalError",
    "InvalidArgumentError",
    "Linear",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "Quantized",
    "ResourceExhaustedError",
    "Stream",
    "Tensor",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "aio",
    "connect",
    "named_tensor",
    "quantize",
    "quantize_k_groups",
    "to_bfloat16",
    "to_float32",
]
