"""Report of a long trial: its rows as a table, and their summary."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def report(rows: Sequence[Mapping[str, Any]], table: Path, summary: Mapping[str, Any]) -> None:
    """Write the rows, which have the same keys, and summary.json beside them; print the summary."""
    text = json.dumps(summary, indent=2)
    table.with_name("summary.json").write_text(text + "\n")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(text)
