"""Comparison of run directories, and checks of what a killed run left."""

import csv
import io
import json
from pathlib import Path

from fedprox.errors import UserError
from fedprox.runs import checkpoint, reader, serialize

TABLES = ("metrics.csv", "clients.csv", "classes.csv")
NO_NUMBER = (*reader.RESUME_MAY_CHANGE, "branch_from", "branch_round")


def untimed(file: Path) -> bytes:
    """Return a table without the column time_s, which differs between any two runs; b"" if there is no table."""
    if not file.exists():
        return b""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))
    text = io.StringIO()
    kept = [at for at, name in enumerate(rows[0]) if name != "time_s"] if rows else []
    csv.writer(text).writerows([row[at] for at in kept if at < len(row)] for row in rows)
    return text.getvalue().encode()


def differences(run_dir: Path, reference: Path) -> list[str]:
    """Return the parts of a finished run that differ from another run, byte for byte."""
    found = [name for name in (*TABLES, "personal.csv") if untimed(run_dir / name) != untimed(reference / name)]
    models = [folder / "model.safetensors" for folder in (run_dir, reference)]
    if not all(model.exists() for model in models) or models[0].read_bytes() != models[1].read_bytes():
        found.append("model.safetensors")
    facts, expected = (json.loads((folder / "run.json").read_text()) for folder in (run_dir, reference))
    found += ["run.json: status"] if facts["status"] != expected["status"] else []
    found += reader.differences(expected["settings"], facts["settings"], NO_NUMBER)
    for which in ("final", "best"):
        facts["result"][which].pop("time_s"), expected["result"][which].pop("time_s")
        found += [f"run.json: {which}"] if facts["result"][which] != expected["result"][which] else []
    return found + (["checkpoint"] if _last_state(run_dir) != _last_state(reference) else [])


def _last_state(run_dir: Path) -> object:
    """Return the round of the last checkpoint, and what it carries besides the model, as text and bytes."""
    last = checkpoint.latest(run_dir)
    if last is None:
        return None
    text, arrays = serialize.encoded(last.carried)
    return last.round_num, text, {name: array.tobytes() for name, array in arrays.items()}


def faults_left(run_dir: Path, reference: Path, *, in_order: bool) -> list[str]:
    """Return what is wrong with the directory of a run that was ended; it should be nothing.

    Every checkpoint must be readable; the table must hold the rows up to the last checkpoint; all rows must be the
    first ones of the reference, of which only SIGKILL may truncate the last.

    Args:
        run_dir: Directory of the run that was ended.
        reference: The same run, uninterrupted.
        in_order: Whether the run could still write its files.
    """
    if not (run_dir / "run.json").exists():
        return []
    faults = []
    if "status" not in json.loads((run_dir / "run.json").read_text()):
        faults.append("run.json without a status")
    marks = {}
    for file in sorted((run_dir / "checkpoint").glob("*.safetensors")):
        try:
            marks = checkpoint.read(file).record["tables"]
        except UserError as error:
            faults.append(str(error))
    for name in TABLES:
        if not (run_dir / name).exists():
            continue
        content = (run_dir / name).read_bytes()
        if len(content) < marks.get(name, {"num_bytes": 0})["num_bytes"]:
            faults.append(f"{name} lost rows that were before the last checkpoint")
        if in_order and not content.endswith(b"\n"):
            faults.append(f"{name} ends with a part of a row")
        faults += _beginning(run_dir / name, reference / name)
    return faults


def _beginning(file: Path, reference: Path) -> list[str]:
    """Return a fault if the complete rows of a table are not the first ones of another."""
    with file.open(newline="", encoding="utf-8") as opened:
        whole = [line for line in opened if line.endswith("\n")]
    cut = file.with_name(file.name + ".whole")
    cut.write_text("".join(whole), newline="")
    ours = untimed(cut)
    cut.unlink()
    return [] if untimed(reference).startswith(ours) else [f"{file.name} does not begin as the reference does"]


def rounds_in(file: Path) -> int:
    """Return the round of a table's last complete row; -1 if it has none."""
    try:
        lines = [line for line in file.read_bytes().split(b"\n")[1:-1] if line[:1].isdigit()]
    except OSError:
        return -1
    return int(lines[-1].split(b",", 1)[0]) if lines else -1
