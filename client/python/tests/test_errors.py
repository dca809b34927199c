# SPDX-License-Identifier: Apache-2.0
"""Errors are of the right class, name the field, and say what was expected and what came."""

import threading

import gemmd
import grpc
import numpy as np
import pytest
from conftest import Daemon, wait_until
from gemmd.errors import from_code
from reference import normal

RNG = np.random.default_rng(1)
A = gemmd.quantize(normal(RNG, 16, 256))
B = gemmd.quantize(normal(RNG, 128, 256), (128, 128))
W = gemmd.quantize(normal(RNG, 2, 128, 256), (128, 128))
F32 = normal(RNG, 16, 256)

# A call, and the field that its error names. (The daemon's worker calls x of quantize a, and masked_m groups.)
REFUSED = {
    "shape_of_b": (lambda c: c.gemm(A, gemmd.quantize(normal(RNG, 128, 128), (128, 128))), "b.shape[1]"),
    "shape_of_scales": (lambda c: c.gemm(gemmd.Quantized(A.data, A.scales[:, :1]), B), "sfa.shape[1]"),
    "rank": (lambda c: c.gemm(A, W), "b.shape"),
    "block": (lambda c: c.gemm(B, B), "a.block"),
    "scales_missing": (lambda c: c.gemm(A, gemmd.to_bfloat16(F32)), "b"),
    "float32_operand": (lambda c: c.gemm(F32, B), "a.dtype"),
    "float64_operand": (lambda c: c.gemm(F32.astype(np.float64), B), "a.dtype"),
    "type_of_scales": (lambda c: c.gemm(gemmd.Quantized(A.data, A.scales.astype(np.int32)), B), "sfa.dtype"),
    "shape_of_out": (lambda c: c.gemm(A, B, out=np.zeros((16, 120), np.float32)), "d.shape[1]"),
    "type_of_out": (lambda c: c.gemm(A, B, out=np.zeros((16, 128), np.int32)), "d.dtype"),
    "type_of_result": (lambda c: c.gemm(A, B, dtype="float16"), "dtype"),
    "nothing_to_accumulate_into": (lambda c: c.gemm(A, B, accumulate=True), "out"),
    "accumulate_bfloat16": (lambda c: c.gemm(A, B, out=c.empty((16, 128), "bf16"), accumulate=True), "d.dtype"),
    "priority": (lambda c: c.gemm(A, B, priority=9), "priority"),
    "unaligned_rows": (lambda c: c.gemm(gemmd.quantize(F32[:, :100]), gemmd.quantize(F32[:, :100], (128, 128))), None),
    "groups_missing": (lambda c: c.grouped_gemm(A, W), "row_groups"),
    "groups_twice": (lambda c: c.grouped_gemm(A, W, offsets=[0, 8, 16], masked_m=[1, 2]), "row_groups"),
    "offsets_decrease": (lambda c: c.grouped_gemm(A, W, offsets=[0, 17, 16]), None),
    "offsets_are_floats": (lambda c: c.grouped_gemm(A, W, offsets=[0.0, 8.0, 16.0]), "row_groups.offsets"),
    "index_is_too_large": (lambda c: c.grouped_gemm(A, W, row_index=[1 << 40] * 16), "row_groups.row_index"),
    "mask_is_too_large": (
        lambda c: c.grouped_gemm(gemmd.quantize(normal(RNG, 2, 8, 256)), W, masked_m=[9, 0]),
        "groups",
    ),
    "ks_without_out": (lambda c: c.k_grouped_gemm(gemmd.to_bfloat16(F32), gemmd.to_bfloat16(F32), [0]), "out"),
    "overlap": (lambda c: (lambda x: c.gemm(x, c.put(gemmd.to_bfloat16(F32)), out=x))(c.empty((16, 16), "bf16")), None),
    "quantized_integers": (lambda c: c.quantize(np.zeros((4, 128), np.int32)), "a.dtype"),
    "quantized_groups": (lambda c: c.quantize(np.zeros((4, 100, 128), np.float32), (128, 128)), "x.shape"),
    "stored_type": (lambda c: c.put(np.zeros(4)), "x.dtype"),
    "stored_type_is_another": (lambda c: c.put(np.zeros(4, np.float32), dtype="bf16"), "dtype"),
    "nameless_shared": (lambda c: c.put(np.zeros(4, np.float32), shared=True), "name"),
    "region_of_nothing": (lambda c: c.region(0), "byte_size"),
    "negative_extent": (lambda c: c.empty((-1, 4)), "shape"),
    "service_name": (lambda c: c.health("x" * 200), "service"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_wrong_arguments_are_refused_and_named(client, case):
    call, field = case
    with pytest.raises(gemmd.InvalidArgumentError) as caught:
        call(client)
    error = caught.value
    assert isinstance(error, ValueError) and isinstance(error, gemmd.GemmdError)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error) == f"INVALID_ARGUMENT: {error.message}"
    assert "expected" in error.message or "not accepted" in error.message
    if field is not None:
        assert error.field == field or error.field.startswith(f"{field}[")
    # And nothing is broken afterwards.
    assert client.gemm(A, B).shape == (16, 128)


def test_what_is_no_array_is_a_type_error(client):
    for wrong in ([[1.0]], None, "a", 3):
        with pytest.raises(TypeError, match="a: expected a numpy array or a torch tensor"):
            client.gemm(wrong, B)
    with pytest.raises(TypeError, match="tensor: expected a Tensor"):
        client.delete(A)


def test_a_read_only_result_is_refused(client):
    out = np.zeros((16, 128), np.float32)
    out.flags.writeable = False
    with pytest.raises(gemmd.InvalidArgumentError, match="d: expected an array that can be written"):
        client.gemm(A, B, out=out)


def test_a_tensor_elsewhere_says_what_to_do():
    torch = pytest.importorskip("torch")
    from gemmd.arrays import host_bits

    elsewhere = torch.empty(4, 4, device="meta")
    with pytest.raises(gemmd.InvalidArgumentError, match=r"a\.device: .* on meta; copy it first: a\.cpu\(\)"):
        host_bits("a", elsewhere)
    with pytest.raises(gemmd.InvalidArgumentError, match=r"a\.layout"):
        host_bits("a", torch.eye(2).to_sparse())
    with pytest.raises(gemmd.InvalidArgumentError, match=r"a\.dtype: .* got float16"):
        host_bits("a", torch.empty(4, dtype=torch.float16))


def test_unknown_things_are_not_found(client):
    tensor = client.put(np.zeros(4, np.float32))
    client.delete(tensor)
    for call in (
        lambda: client.tensor("nobody"),
        lambda: client.tensor(1 << 40),
        lambda: client.delete(tensor),
        lambda: client.read(tensor),
    ):
        with pytest.raises(gemmd.NotFoundError) as caught:
            call()
        assert isinstance(caught.value, LookupError)


def test_a_write_beyond_the_end_is_out_of_range(client):
    tensor = client.put(np.zeros(4, np.float32))
    with pytest.raises(gemmd.OutOfRangeError) as caught:
        client.write(tensor, np.zeros(4, np.float32), offset=4)
    assert isinstance(caught.value, IndexError)


def test_deadlines_pass(client):
    a, b = gemmd.to_bfloat16(normal(RNG, 512, 4096)), gemmd.to_bfloat16(normal(RNG, 2048, 4096))
    with pytest.raises(gemmd.DeadlineExceededError) as caught:
        client.gemm(a, b, timeout=0.002)
    assert isinstance(caught.value, TimeoutError)
    # Its memory, which the daemon may still be writing to, is not used for the next ones.
    x = gemmd.to_bfloat16(np.full((1024, 128), 1, np.float32))
    for _ in range(5):
        assert (client.gemm(x, x[:128]) == 128).all()


def test_quotas_are_told():
    with Daemon("--max_regions_per_session=2") as small, small.connect() as client:
        held = [client.region(4096), client.region(4096)]
        with pytest.raises(gemmd.ResourceExhaustedError):
            client.region(4096)
        held.pop().close()
        assert wait_until(lambda: client.info().regions == 1)
        client.region(4096)


def test_messages_too_large_say_what_to_do():
    with Daemon("--max_message_bytes=100000", tcp=True) as small:
        with small.connect_by_tcp() as remote:
            a = gemmd.quantize(normal(RNG, 1024, 256))
            with pytest.raises(gemmd.ResourceExhaustedError, match=r"a: expected at most .* resident \(put\)"):
                remote.gemm(a, B)
        with small.connect() as local:
            assert local.gemm(a, B).shape == (1024, 128)


def test_nobody_there():
    for address in ("unix:/nowhere/gemmd.sock", "127.0.0.1:1"):
        with pytest.raises(gemmd.UnavailableError, match="no gemmd at") as caught:
            gemmd.connect(address, connect_timeout=0.2)
        assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"address": ""},
        {"address": "unix:/x", "tls": True},
        {"address": "x:1", "tls_root_certificates": "pem"},
        {"address": "x:1", "tls": True, "tls_key": "pem"},
        {"address": "x:1", "connect_timeout": 0},
    ],
)
def test_contradicting_options_are_refused(arguments):
    with pytest.raises(gemmd.InvalidArgumentError, match="expected"):
        gemmd.connect(**arguments)


def test_every_code_has_a_class():
    for number in range(1, 17):
        error = from_code(number, "a.b[1]: wrong")
        assert error.code.value[0] == number and error.field == "a.b[1]"
    assert from_code(99, "what").code is grpc.StatusCode.UNKNOWN and from_code(99, "what").field is None


def test_a_hint_when_to_retry_is_kept():
    x = gemmd.to_bfloat16(normal(RNG, 512, 2048))
    errors = []

    def work(client):
        while not errors:
            try:
                client.gemm(x, x)
            except gemmd.ResourceExhaustedError as error:
                errors.append(error)

    with Daemon("--max_jobs_per_session=1") as small, small.connect() as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors and errors[0].retry_after is not None and 0 < errors[0].retry_after < 60
