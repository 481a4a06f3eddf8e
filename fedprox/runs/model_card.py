"""MODEL.md: a short description of a run's model for whoever gets it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprox.errors import printable
from fedprox.runs.model_file import NAME, ModelFacts
from fedprox.storage import CARD, write_atomic

_USE = """\
```python
import fedprox

model = fedprox.load_model("{name}"{code})  # a torch.nn.Module that normalises its input as in training
labels = model.predict(examples)  # shape (n, {shape})
```
"""
_TENSORS = """\
Its clients trained with a script of their own, which has the model's code. The weights are a state dict:

```python
from safetensors.torch import load_file

weights = load_file("{name}")
```
"""


def write_card(run_dir: Path, facts: Mapping[str, Any], state: Mapping[str, Any], model: ModelFacts | None) -> None:
    """Write MODEL.md.

    Args:
        run_dir: The run directory.
        facts: Entries of run.json.
        state: Its rows "final" and "best" are those of metrics.csv, or None.
        model: What model.safetensors says about its model; None if only the clients' script knows.
    """
    write_atomic(run_dir / CARD, card(facts, state, model).encode())


def card(facts: Mapping[str, Any], state: Mapping[str, Any], model: ModelFacts | None) -> str:
    """Return the text of MODEL.md; see `write_card`."""
    final, best = state["final"], state["best"]
    rows = {
        "trained by": facts["algorithm"],
        "on": f"{facts['name']}: {facts['data']}",
        **({"model": f"`{model.model.target}`"} if model else {}),
        **({"classes": _classes(model)} if model and model.task == "classification" else {}),
        **(_measured(final, "after round") if final else {}),
        **(_measured(best, "best, after round") if best else {}),
        "seed, repetition": f"{facts['seed']}, {facts['repetition']}",
        "commit": facts.get("git_commit") or "unknown",
    }
    lines = ["# Model", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {printable(str(value)).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    use = _TENSORS.format(name=NAME)
    if model:
        code = "" if model.model.is_ours else f", model={model.model.name}"  # which the reader has to import
        use = _USE.format(name=NAME, code=code, shape=", ".join(map(str, model.input_shape)))
    return "\n".join([*lines, "", "`run.json` has all settings and versions, `metrics.csv` every round.", "", use])


def _classes(model: ModelFacts) -> str:
    names = ", ".join(model.class_names[:20]) + ", ..." * (len(model.class_names) > 20)
    return f"{model.num_classes}" + (f": {names}" if names else "")


def _measured(row: Mapping[str, Any], when: str) -> dict[str, str]:
    """Return the test accuracy and loss of a row, unless they were not measured."""
    values = {"accuracy": row.get("test_accuracy"), "loss": row.get("test_loss")}
    texts = [f"test {name} {value:.4f}" for name, value in values.items() if value is not None]
    return {f"{when} {row['round']}": ", ".join(texts)} if texts else {}
