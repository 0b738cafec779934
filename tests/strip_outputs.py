"""A git filter that takes notebooks into a commit without their outputs, which hold faces: `make strip`.

It reads a notebook from standard input and writes it to standard output; the file in the clone keeps its outputs.
"""

from __future__ import annotations

import json
import sys


def stripped(text: str) -> str:
    """Return a notebook's text without outputs, execution counts, pasted pictures and the state of widgets."""
    notebook = json.loads(text)
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        cell.pop("attachments", None)  # pictures that were pasted into the text
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.stdout.write(stripped(sys.stdin.read()))
