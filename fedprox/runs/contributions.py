"""The table of what the clients have contributed in a whole run: contribution.csv."""

import csv
import io
from collections import defaultdict
from math import fsum
from pathlib import Path

from fedprox.runs.reader import read_rows
from fedprox.storage import CONTRIBUTIONS, write_atomic


def write_contributions(run_dir: Path) -> None:
    """Write contribution.csv from clients.csv: for each client the rounds that it is in, and the sum of its values.

    The largest sum comes first; clients that are in no round have no row.
    """
    header, rows = read_rows(run_dir / "clients.csv")
    of_client: dict[int, list[float]] = defaultdict(list)
    for row in (dict(zip(header, row, strict=True)) for row in rows):
        if row["contribution"]:
            of_client[int(row["client"])].append(float(row["contribution"]))
    totals = sorted(((fsum(values), len(values), client) for client, values in of_client.items()), reverse=True)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("client", "num_rounds", "contribution"))
    table.writerows((client, num, total) for total, num, client in totals)
    write_atomic(run_dir / CONTRIBUTIONS, text.getvalue().encode())
