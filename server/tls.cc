// SPDX-License-Identifier: Apache-2.0
#include "server/tls.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

// The files are looked at this often: three times stat, and read only after a change.
constexpr unsigned int kRefreshSeconds = 1;

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

struct NamedFile {
  absl::string_view flag;
  const std::string& path;
};

absl::Status Unusable(const NamedFile& file, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(file.flag, ": expected ", expected, " in ", file.path, ", got ", got));
}

absl::StatusOr<std::string> ReadFile(const NamedFile& file) {
  std::ifstream stream(file.path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (stream.bad() || !stream.is_open()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.flag, ": expected a readable file, got ", file.path, ": ", std::strerror(errno)));
  }
  return bytes;
}

Owned<BIO> Reader(const std::string& bytes) {
  return Owned<BIO>(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
}

// At least one.
absl::StatusOr<std::vector<Owned<X509>>> ReadCertificates(const NamedFile& file) {
  const absl::StatusOr<std::string> bytes = ReadFile(file);
  if (!bytes.ok()) return bytes.status();
  const Owned<BIO> reader = Reader(*bytes);
  std::vector<Owned<X509>> certificates;
  while (X509* certificate = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(certificate);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) return Unusable(file, "PEM certificates", "one that cannot be read");
  if (certificates.empty()) return Unusable(file, "a PEM certificate", "none");
  return certificates;
}

absl::StatusOr<Owned<EVP_PKEY>> ReadKey(const NamedFile& file) {
  const absl::StatusOr<std::string> bytes = ReadFile(file);
  if (!bytes.ok()) return bytes.status();
  // Without this the library would ask the terminal.
  constexpr auto kNoPassphrase = [](char*, int, int, void*) { return -1; };
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(Reader(*bytes).get(), nullptr, kNoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) return Unusable(file, "a PEM private key without passphrase", "none");
  return key;
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& tls) {
  if (tls.empty()) return absl::OkStatus();
  const NamedFile key_file{"--tls_key", tls.key};
  const auto certificates = ReadCertificates({"--tls_cert", tls.certificate});
  if (!certificates.ok()) return certificates.status();
  const absl::StatusOr<Owned<EVP_PKEY>> key = ReadKey(key_file);
  if (!key.ok()) return key.status();
  const bool match = X509_check_private_key(certificates->front().get(), key->get()) == 1;
  ERR_clear_error();
  if (!match) return Unusable(key_file, absl::StrCat("the key of ", tls.certificate), "another");
  if (tls.client_authority.empty()) return absl::OkStatus();
  return ReadCertificates({"--tls_client_ca", tls.client_authority}).status();
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsFiles& tls) {
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key, tls.certificate, tls.client_authority, kRefreshSeconds);
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_identity_key_cert_pairs();
  if (!tls.client_authority.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace gemmd
