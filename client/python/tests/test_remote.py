# SPDX-License-Identifier: Apache-2.0
"""TLS and bearer tokens on HOST:PORT."""

import asyncio
import contextlib
import json
import pathlib
import re
import struct
import subprocess

import gemmd
import numpy as np
import pytest
from conftest import START_TIMEOUT, Daemon, wait_until
from reference import check, normal, product

RNG = np.random.default_rng(1)
A = gemmd.quantize(normal(RNG, 16, 256))
B = gemmd.quantize(normal(RNG, 128, 256), (128, 128))


class Authority:
    """A certificate authority and what it signed, made by the openssl command."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self._openssl(*self._new(name), "-days", "1", "-x509", "-out", folder / f"{name}.pem")
        self.certificate = (folder / f"{name}.pem").read_bytes()

    def sign(self, name):
        """Certificate and key."""
        request, certificate, key = (self.folder / f"{name}.{kind}" for kind in ("csr", "pem", "key"))
        self._openssl(*self._new(name), "-out", request)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1", encoding="utf-8")
        authority = self.folder / self.name
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-CAcreateserial", "-days", "1", "-out", certificate, "-extfile", extensions),
        )
        return certificate, key

    def _new(self, name):
        key = self.folder / f"{name}.key"
        return (
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
            *("-keyout", key, "-subj", f"/CN=gemmd test {name}"),
        )

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, stderr=subprocess.DEVNULL)


def test_tls_with_a_certificate_on_both_sides(tmp_path):
    authority = Authority(tmp_path, "authority")
    server, client = authority.sign("server"), authority.sign("client")
    flags = (f"--tls_cert={server[0]}", f"--tls_key={server[1]}", f"--tls_client_ca={tmp_path}/authority.pem")
    own = {"tls_certificate": client[0].read_bytes(), "tls_key": client[1].read_text(encoding="utf-8")}
    with Daemon(*flags, tcp=True) as daemon:
        with daemon.connect_by_tcp(tls=True, tls_root_certificates=authority.certificate, **own) as remote:
            check(remote.gemm(A, remote.put(B)), product(A, B), "float32")
        for wrong in (
            {"tls": False},
            {"tls": True, "tls_root_certificates": authority.certificate},
            {"tls": True, **own},
        ):
            with pytest.raises(gemmd.UnavailableError, match="no gemmd at"):
                gemmd.connect(daemon.tcp_address, connect_timeout=0.5, **wrong)


def test_tokens(tmp_path):
    tokens = pathlib.Path(tmp_path, "tokens")
    tokens.write_text("a-token-that-is-long-enough-for-it-0123456789\n", encoding="utf-8")
    tokens.chmod(0o600)
    token = tokens.read_text(encoding="utf-8").strip()
    with Daemon(f"--token_file={tokens}", tcp=True) as daemon:
        with daemon.connect_by_tcp(token=token) as remote:
            check(remote.gemm(A, remote.put(B)), product(A, B), "float32")
            assert remote.read(remote.put(np.ones(3, np.float32))).tolist() == [1, 1, 1]
        for wrong in (None, "another-token-that-is-long-enough-0123456789"):
            with pytest.raises(gemmd.UnauthenticatedError):
                gemmd.connect(daemon.tcp_address, token=wrong)
        with daemon.connect() as local:
            assert local.health("gemmd.v1.Gemm/cpu") == "SERVING"


@pytest.fixture
def daemons(tmp_path):
    """Two with the same manifest: `w`, quantized from float32, and what its values are."""
    values = normal(RNG, 128, 256)
    header = json.dumps({"w": {"dtype": "F32", "shape": [128, 256], "data_offsets": [0, values.nbytes]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        json.dumps({"tensors": [{"name": "w", "file": {"path": "w.safetensors"}, "quantize": "BLOCK_128X128"}]})
    )
    flags = (f"--tensor_dirs={tmp_path}", f"--tensor_manifest={manifest}", "--metrics_listen=127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Daemon(*flags, tcp=True)) for _ in range(2)], gemmd.quantize(values, (128, 128))


W = gemmd.Quantized(
    gemmd.named_tensor("w", (128, 256), "float8_e4m3fn"), gemmd.named_tensor("w.sf", (1, 2), "float32"), (128, 128)
)


def test_round_robin_spreads_calls_and_does_without_a_daemon_that_stops(daemons):
    (first, second), weights = daemons
    address = f"ipv4:{first.tcp_address},{second.tcp_address}"
    with gemmd.connect(address, session=False, round_robin=True, connect_timeout=START_TIMEOUT) as client:

        def both_answer():
            check(client.gemm(A, W), product(A, weights), "float32")
            return min(first.answered(), second.answered()) >= 5

        assert wait_until(both_answer)
        first.process.terminate()
        while first.process.poll() is None:
            check(client.gemm(A, W), product(A, weights), "float32")
        for _ in range(20):
            check(client.gemm(A, W), product(A, weights), "float32")


def test_round_robin_for_asyncio(daemons):
    (first, second), weights = daemons

    async def call_both():
        address = f"ipv4:{first.tcp_address},{second.tcp_address}"
        async with gemmd.aio.connect(
            address, session=False, round_robin=True, connect_timeout=START_TIMEOUT
        ) as client:
            while min(first.answered(), second.answered()) < 5:
                check(await client.gemm(A, W), product(A, weights), "float32")

    asyncio.run(asyncio.wait_for(call_both(), START_TIMEOUT))


def test_a_named_tensor_that_is_another_is_refused(daemons):
    (first, _), _ = daemons
    wrong = gemmd.Quantized(gemmd.named_tensor("w", (256, 256), "float8_e4m3fn"), W.scales, (128, 128))
    unknown = gemmd.Quantized(gemmd.named_tensor("v", (128, 256), "float8_e4m3fn"), W.scales, (128, 128))
    with gemmd.connect(first.tcp_address, session=False, connect_timeout=START_TIMEOUT) as client:
        with pytest.raises(gemmd.InvalidArgumentError):
            client.gemm(A, wrong)
        with pytest.raises(gemmd.UnauthenticatedError):  # Only the manifest's are there without a session.
            client.gemm(A, unknown)


def test_round_robin_is_for_clients_without_a_session():
    with pytest.raises(gemmd.InvalidArgumentError, match="round_robin: expected session=False"):
        gemmd.connect("dns:///gemmd:1", round_robin=True)


def test_round_robin_is_the_policy_of_the_cpp_client():
    source = (pathlib.Path(__file__).resolve().parents[2] / "client.cc").read_text(encoding="utf-8")
    policy = re.search(r'kRoundRobinServiceConfig\[\] = R"\((.*?)\)"', source, re.DOTALL)
    assert json.loads(policy.group(1)) == json.loads(gemmd.connection.ROUND_ROBIN_SERVICE_CONFIG)
