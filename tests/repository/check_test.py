#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows that check.py accepts a good tree and refuses each kind of violation."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

HEADER = f"// {check.SPDX}\n"
GOOD = {
    "README.md": "Run `make demo`, then `make test`.\n",
    "proto/job.h": HEADER + "#include <cstdint>\n",
    "proto/call.proto": HEADER + """message Call {
  oneof key {
    uint64 id = 1;  // Of the call.
    // What people call it.
    string name = 2;
  }
  enum State { READY = 0; }
  // The whole word.
  map<string, State> states = 3;
}
""",
    "gpu/device.h": HEADER + '#include "proto/job.h"\n\n#include "absl/status/status.h"\n',
    "server/router.cc": HEADER + '#include "gemmd/v1/gemm.grpc.pb.h"\n#include "server/router.h"\nauto n = "gemmd_queue_depth";\n',
    "client/call.h": HEADER + '#include "proto/job.h"\n#include <grpcpp/grpcpp.h>\n',
    "tests/gpu/device_test.cc": HEADER + '#include "gpu/device.h"\n#include "server/router.h"\n',
    "deploy/alerts.yaml": f"# {check.SPDX}\nexpr: gemmd_queue_depth > 10\n",
    **{f"{folder}/README.md": "text\n" for folder in check.SOURCE_FOLDERS},
}


class CheckTest(unittest.TestCase):
    def violations_with(self, changes):
        with tempfile.TemporaryDirectory() as root:
            for path, text in {**GOOD, **changes}.items():
                if text is None:
                    continue
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                    file.write(text)
            return check.violations(root)

    def assert_refused(self, changes, expected):
        found = self.violations_with(changes)
        self.assertEqual(len(found), 1, found)
        self.assertIn(expected, found[0])

    def test_good_tree_passes(self):
        self.assertEqual(self.violations_with({}), [])

    def test_client_must_not_include_server(self):
        self.assert_refused({"client/bad.cc": HEADER + '#include "server/router.h"\n'},
                            "client/bad.cc:2: client/ must not include server/router.h")

    def test_server_must_not_include_gpu(self):
        self.assert_refused({"server/bad.h": HEADER + '# include "gpu/device.h"\n'}, "must not include gpu/device.h")

    def test_gpu_must_not_include_the_generated_contract(self):
        self.assert_refused({"gpu/bad.cuh": HEADER + '#include "gemmd/v1/gemm.pb.h"\n'}, "must not include gemmd/v1")

    def test_gpu_must_not_know_grpc(self):
        self.assert_refused({"gpu/bad.cc": HEADER + "#include <grpcpp/grpcpp.h>\n"}, "must not know grpcpp/grpcpp.h")

    def test_proto_knows_nobody(self):
        self.assert_refused({"proto/bad.h": HEADER + '#include "client/call.h"\n'}, "must not include client/call.h")

    def test_sources_must_not_include_tests(self):
        self.assert_refused({"server/bad.cc": HEADER + '#include "tests/gpu/fake_device.h"\n'}, "must not include tests/")

    def test_include_without_folder_is_refused(self):
        self.assert_refused({"server/bad.cc": HEADER + '#include "router.h"\n'}, "by its path from the root")

    def test_missing_licence_line_is_refused(self):
        self.assert_refused({"proto/bad.h": "#pragma once\n"}, "proto/bad.h:1: the first line must say")

    def test_folder_without_readme_is_refused(self):
        self.assert_refused({"gpu/README.md": None}, "gpu/README.md")

    def test_readme_must_name_the_commands(self):
        self.assert_refused({"README.md": "Run `make demo`.\n"}, "make test")

    def test_long_file_is_refused(self):
        self.assert_refused({"gpu/long.cc": HEADER + "\n" * check.MAX_LINES}, f"gpu/long.cc: {check.MAX_LINES + 1} lines")

    def test_private_path_is_refused(self):
        self.assert_refused({"gpu/README.md": "see /" + "work/notes\n"}, "gpu/README.md:1: names a path")

    def test_metric_that_the_server_does_not_have_is_refused(self):
        self.assert_refused({"deploy/rules.yaml": f"# {check.SPDX}\nexpr: gemmd_no_such_total\n"}, "gemmd_no_such_total")

    def test_field_without_comment_is_refused(self):
        self.assert_refused({"proto/bad.proto": HEADER + "// A call.\nmessage Call {\n  repeated int64 shape = 1;\n}\n"},
                            "proto/bad.proto:4: field shape has no comment")

    def test_field_below_a_comment_on_another_field_is_refused(self):
        self.assert_refused({"proto/bad.proto": HEADER + "message Call {\n  int64 m = 1;  // Rows.\n  int64 n = 2;\n}\n"},
                            "proto/bad.proto:4: field n has no comment")


if __name__ == "__main__":
    unittest.main()
