"""model.safetensors: the last global model, with what is needed to use it as its metadata."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from fedprox.config.schema import Target
from fedprox.errors import UserError, one_line
from fedprox.storage import check_regular

NAME = "model.safetensors"
_KEY = "fedprox"  # a single entry: safetensors writes several in another order in each process


class ModelFacts(BaseModel):
    """What a model file says about its model.

    Attributes:
        model: Function or class that makes it, and its arguments.
        input_shape: Shape of one example.
        num_classes: Number of classes, or of outputs.
        takes_tokens: Whether examples are token sequences, int64, which are not normalised.
        mean: Subtracted from an example to make the model's input; a number or nested lists.
        std: Divides it after that.
        class_names: Names of the classes; empty if they are only numbers.
        task: What the outputs are.
        commit: Of the code that trained it; None if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    model: Target
    input_shape: list[int]
    num_classes: int = Field(ge=1)
    takes_tokens: bool
    mean: Any
    std: Any
    class_names: list[str]
    task: Literal["classification", "regression", "multilabel"] = "classification"
    commit: str | None

    def metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file."""
        return {_KEY: json.dumps(self.model_dump(by_alias=True), sort_keys=True)}

    def normalisation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and std as arrays that broadcast over the input shape.

        Raises:
            ValueError: If they do not, or are not numbers.
        """
        mean, std = (np.array(each, dtype=np.float32) for each in (self.mean, self.std))
        for each in (mean, std):
            np.broadcast_to(each, self.input_shape)  # or ValueError
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ValueError("mean and std must be finite, and std above 0")
        return mean, std


def read_facts(file: Path) -> ModelFacts | None:
    """Return what a model file says about its model; None if an earlier version or another program wrote it.

    Raises:
        UserError: If it cannot be read, or says nonsense.
    """
    try:
        check_regular(file)
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(_KEY)
        if text is None:
            return None
        facts = ModelFacts.model_validate_json(text)
        facts.normalisation()
        return facts
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{file} does not describe its model: {place}: {wrong['msg']}; restore the file") from error
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be used: {one_line(error)}; name a model.safetensors of a run") from error
