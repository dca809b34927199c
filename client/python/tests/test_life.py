# SPDX-License-Identifier: Apache-2.0
"""Regions, sessions and clients begin and end as they say; nothing is left behind."""

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading

import gemmd
import numpy as np
import pytest
from conftest import Daemon, anonymous_bytes, wait_until
from reference import check, normal, product

RNG = np.random.default_rng(1)
A = gemmd.quantize(normal(RNG, 16, 256))
B = gemmd.quantize(normal(RNG, 128, 256), (128, 128))


def regions(client):
    return client.info().regions


@pytest.fixture
def own_client():
    """Of a daemon that nobody else uses."""
    with Daemon() as daemon, daemon.connect() as client:
        client.daemon = daemon
        yield client


def test_an_array_keeps_its_region_until_its_last_view_is_gone(own_client):
    array = own_client.empty((256, 64))
    assert regions(own_client) == 1 and not array.any()
    view = array[3:5].T
    del array
    gc.collect()
    view[...] = 7
    assert regions(own_client) == 1
    del view
    assert wait_until(lambda: regions(own_client) == 0)


def test_a_torch_tensor_keeps_its_region(own_client):
    torch = pytest.importorskip("torch")
    tensor = own_client.empty((256, 64), torch.bfloat16)
    view = tensor[1]
    del tensor
    gc.collect()
    assert regions(own_client) == 1 and view.shape == (64,)
    del view
    assert wait_until(lambda: regions(own_client) == 0)


def test_memory_that_takes_the_place_of_a_region_is_not_taken_for_it(own_client):
    size = 8 << 20
    for value in range(1, 20):
        array = own_client.empty(size // 2, "bfloat16")
        address = array.__array_interface__["data"][0]
        del array
        ordinary = np.full((size // 512, 128), value, np.float32)  # Often mapped where the region was.
        lies_there = address <= ordinary.__array_interface__["data"][0] < address + size
        assert own_client.context.regions.find(ordinary.__array_interface__["data"][0]) is None, lies_there


def test_a_region_holds_many_arrays_and_closes(own_client):
    with own_client.region(1 << 20) as region:
        a = gemmd.Quantized(region.empty((16, 256), "float8_e4m3fn"), region.empty((16, 2)))
        out = region.empty((16, 128))
        a.data[...], a.scales[...] = A.data, A.scales
        check(own_client.gemm(a, B, out=out), product(A, B), "float32")
        assert regions(own_client) == 1 and region.nbytes == 1 << 20 and region.id > 0
        with pytest.raises(gemmd.ResourceExhaustedError, match="region: expected room for"):
            region.empty(1 << 20)
    assert region.closed
    assert wait_until(lambda: regions(own_client) == 0)
    out += 1  # Ordinary memory now, which goes with the message.
    check(own_client.gemm(a, B, out=out), product(A, B), "float32")
    with pytest.raises(gemmd.FailedPreconditionError, match="region: closed"):
        region.empty(4)


def test_results_do_not_go_to_read_only_regions(own_client):
    with own_client.region(1 << 20, writable=False) as region, pytest.raises(gemmd.GemmdError, match=r"d"):
        own_client.gemm(A, B, out=region.empty((16, 128)))


def test_closing_a_client_ends_its_session(daemon, client):
    sessions = client.info().sessions
    other = daemon.connect()
    array = other.share(np.ones((4, 4), np.float32))
    other.put(np.ones(4, np.float32), "mine")
    tensors = client.info().tensors
    assert client.info().sessions == sessions + 1
    other.close()
    other.close()
    assert wait_until(lambda: client.info().sessions == sessions)
    assert wait_until(lambda: client.info().tensors == tensors - 1)
    assert (array == 1).all() and other.closed
    for call in (lambda: other.gemm(A, B), lambda: other.empty(4), other.info, lambda: other.stream()):
        with pytest.raises(gemmd.FailedPreconditionError, match="client: closed"):
            call()


def test_a_client_that_is_dropped_ends_its_session(daemon, client):
    sessions = client.info().sessions
    other = daemon.connect()
    other.empty(4)
    del other
    gc.collect()
    assert wait_until(lambda: client.info().sessions == sessions)


def test_a_client_without_session_may_send_operands(daemon, client):
    sessions = client.info().sessions
    with daemon.connect(session=False) as anonymous:
        assert client.info().sessions == sessions and not anonymous.shares_memory
        check(anonymous.gemm(A, B), product(A, B), "float32")
        with pytest.raises(gemmd.UnauthenticatedError) as caught:
            anonymous.put(np.zeros(4, np.float32))
        assert isinstance(caught.value, PermissionError)
        with pytest.raises(gemmd.FailedPreconditionError, match="region: memory can be shared only"):
            anonymous.empty(4)


def test_a_remote_session_ends_with_its_client(daemon, client):
    sessions = client.info().sessions
    with daemon.connect_by_tcp() as remote:
        remote.put(np.zeros(4, np.float32))
        assert client.info().sessions == sessions + 1
    assert wait_until(lambda: client.info().sessions == sessions)


DOOMED = """
import sys, gemmd, numpy as np
client = gemmd.connect(sys.argv[1])
array = client.share(np.ones((512, 512), np.float32))
tensor = client.put(np.ones((512, 512), np.float32))
print("ready", flush=True)
x = gemmd.to_bfloat16(np.asarray(array))
while True:
    client.gemm(x, x)
"""


def test_a_killed_client_leaves_nothing(own_client):
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", DOOMED, own_client.address], stdout=subprocess.PIPE, text=True
        ) as doomed:
            assert doomed.stdout.readline() == "ready\n"
            info = own_client.info()
            assert (info.sessions, info.tensors) == (2, 1) and info.regions >= 1
            doomed.send_signal(signal.SIGKILL)
        assert wait_until(lambda: own_client.info().sessions == 1)
        assert wait_until(lambda: (own_client.info().regions, own_client.info().tensors) == (0, 0))
    check(own_client.gemm(A, B), product(A, B), "float32")


def test_a_forked_child_neither_uses_nor_keeps_the_session(own_client):
    other = own_client.daemon.connect()
    array = other.share(np.ones(4, np.float32))
    read_end, write_end = os.pipe()
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        verdict = b"no error"
        try:
            other.gemm(A, B)
        except gemmd.FailedPreconditionError as error:
            verdict = b"refused" if "forked" in error.message and array[0] == 1 else b"wrong"
        finally:
            os.write(write_end, verdict)
            os.read(go_read, 1)
            os._exit(0)
    try:
        assert os.read(read_end, 64) == b"refused"
        assert own_client.info().sessions == 2
        other.close()
        # The child still lives, but does not hold the session.
        assert wait_until(lambda: own_client.info().sessions == 1)
    finally:
        os.write(go_write, b".")
        os.waitpid(child, 0)
        for fd in (read_end, write_end, go_read, go_write):
            os.close(fd)


def test_what_belongs_to_a_session_cannot_be_pickled(client):
    for thing in (client, client.put(np.zeros(4, np.float32)), client.region(64)):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)
    copied = pickle.loads(pickle.dumps(A))
    assert np.array_equal(copied.scales, A.scales) and copied.block == A.block


def test_a_daemon_that_dies_is_unavailable():
    with Daemon() as daemon, daemon.connect() as client:
        array = client.share(np.ones((16, 16), np.float32))
        daemon.kill()
        with pytest.raises(gemmd.UnavailableError):
            client.gemm(A, B)
        with pytest.raises(gemmd.UnavailableError):
            client.empty(4)
        del array
    with pytest.raises(gemmd.UnavailableError):
        gemmd.connect(daemon.address, connect_timeout=0.2)


def test_a_restarted_daemon_does_not_know_old_sessions():
    with Daemon() as daemon, daemon.connect() as client:
        weights = client.put(B)
        daemon.restart()
        with pytest.raises(gemmd.GemmdError) as caught:
            while True:  # The first one may find the old connection.
                with contextlib.suppress(gemmd.UnavailableError):
                    client.gemm(A, weights)
        assert isinstance(caught.value, gemmd.UnauthenticatedError)
        with daemon.connect() as again:
            check(again.gemm(A, B), product(A, B), "float32")


def test_scratch_regions_are_bounded(own_client, monkeypatch):
    monkeypatch.setattr("gemmd.regions._SCRATCH_REGIONS", 2)
    monkeypatch.setattr("gemmd.regions._SCRATCH_BYTES", 8 << 20)
    scratch = own_client.context.regions
    taken = [scratch.take_scratch(size << 20) for size in (1, 2, 3, 1)]
    assert sorted(region.nbytes >> 20 for region in taken) == [1, 1, 2, 4]
    for region in taken:
        scratch.give_scratch(region)
    assert [region.closed for region in taken] == [True, False, False, True]
    assert scratch.take_scratch(1) is taken[1] and scratch.take_scratch(1) is taken[2]
    large = scratch.take_scratch((64 << 20) + 1)
    assert large.nbytes == 128 << 20
    scratch.give_scratch(large)
    assert large.closed


def test_threads_share_a_client(own_client):
    weights = own_client.put(B)
    failures = []

    def work(seed):
        try:
            rng = np.random.default_rng(seed)
            for rows in rng.integers(1, 600, 15):
                a = gemmd.quantize(normal(rng, int(rows), 256))
                check(own_client.gemm(a, weights), product(a, B), "float32")
                shared = own_client.share(a)
                check(own_client.gemm(shared, weights), product(a, B), "float32")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    # Scratch regions are kept, at most 32; those of the 120 arrays are not.
    assert wait_until(lambda: regions(own_client) <= 32)


def test_closing_from_another_thread_ends_calls_in_flight(daemon):
    client = daemon.connect()
    x = gemmd.to_bfloat16(normal(RNG, 256, 2048))
    outcomes = []

    def work():
        try:
            while True:
                client.gemm(x, x)
        except gemmd.GemmdError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    client.gemm(x, x)
    client.close()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 4
    allowed = (gemmd.CancelledError, gemmd.FailedPreconditionError, gemmd.UnauthenticatedError, gemmd.NotFoundError)
    assert all(isinstance(error, allowed) for error in outcomes), outcomes


def test_ten_thousand_calls_leave_no_memory(own_client):
    weights = own_client.put(B)
    shared, out = own_client.share(A), own_client.empty((16, 128))
    large = gemmd.quantize(normal(RNG, 1024, 256))

    def calls(count):
        for number in range(count):
            own_client.gemm(A, weights)
            own_client.gemm(shared, weights, out=out)
            if number % 50 == 0:
                own_client.gemm(large, weights)
                own_client.empty((64, 64))
                with pytest.raises(gemmd.InvalidArgumentError):
                    own_client.gemm(A, weights, priority=9)
        gc.collect()

    def used():
        return anonymous_bytes(os.getpid()), own_client.daemon.resident_bytes(), len(os.listdir("/proc/self/fd"))

    calls(1000)
    before = used()
    calls(5000)
    after = used()
    assert after[0] - before[0] < 8 << 20 and after[1] - before[1] < 8 << 20, (before, after)
    assert after[2] <= before[2]
    assert wait_until(lambda: regions(own_client) == 3)  # `shared`, `out`, and one for what is copied.
