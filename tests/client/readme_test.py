#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's C++ example is the marked section of the compiled quickstart.

Usage: readme_test.py ROOT
"""

import pathlib
import re
import sys


def main():
    root = pathlib.Path(sys.argv[1])
    source = (root / "client/quickstart.cc").read_text(encoding="utf-8")
    section = re.search(r"// \[quickstart\]\n(.*)// \[/quickstart\]", source, re.DOTALL).group(1)
    failed = False
    for name in ("README.md", "client/README.md"):
        text = (root / name).read_text(encoding="utf-8")
        for block in re.findall(r"```cpp\n(.*?)```", text, re.DOTALL):
            if "int main" in block and section not in block:
                print(f"{name}: its quickstart differs from client/quickstart.cc; copy the marked section there")
                failed = True
    if section not in (root / "client/README.md").read_text(encoding="utf-8"):
        print("client/README.md: does not quote the quickstart")
        failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
