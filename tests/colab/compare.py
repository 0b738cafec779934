"""Prints the image's packages beside Colab's: python tests/colab/compare.py < pip-freeze."""

import re
import sys
from pathlib import Path


def versions(lines) -> dict[str, str]:
    """Return the versions of a pip freeze by name, as pip compares names."""
    found = (re.match(r"([\w.-]+)(?:==| @ )(\S+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


if __name__ == "__main__":
    colab = versions(Path(__file__).with_name("colab.txt").read_text().splitlines())
    image = versions(sys.stdin)
    for name, version in sorted(image.items()):
        there = colab.get(name, "-")
        print(f"{name:32} {there:24} {'' if version == there else version}".rstrip())
    alike = sum(colab.get(name) == version for name, version in image.items())
    print(f"{alike} of {len(image)} packages are as on Colab; {len(colab)} are in its list")
