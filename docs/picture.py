"""Make `docs/demo.svg`: what `dataflow_archive demo` prints on a terminal.

.venv/bin/python docs/picture.py
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 110
PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    """Run the demo, and draw what it said."""
    command = Path(sys.executable).with_name("dataflow_archive")
    said = subprocess.run([str(command), "demo"], capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ dataflow_archive demo", style="bold green"))
    console.print(Text(re.sub(r"dataflow_archive_demo\.\w+", "demo", said)))
    drawn = console.export_svg(title="dataflow_archive demo", unique_id="demo")
    # Whoever looks at the picture loads nothing from elsewhere.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
