# SPDX-License-Identifier: Apache-2.0
"""TLS and bearer tokens on HOST:PORT."""

import pathlib
import subprocess

import gemmd
import numpy as np
import pytest
from conftest import Daemon
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
