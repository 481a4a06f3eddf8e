"""Sixteen float32 as one value in compiled code: a CPU register whose numbers are added and multiplied at once.

`load` reads lanes from an array, `store` writes them, and + - * / compute with them; a scalar factor applies to all
lanes. Without this type the compiler cannot keep sums in registers, because any store might change what is read next.
In plain Python, lanes are NumPy arrays of 16 numbers with the same meaning.
"""

# mypy: disable-error-code="call-arg, no-untyped-call"
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

NUM_LANES = 16
Floats = NDArray[np.float32]

_VECTOR = ir.VectorType(ir.FloatType(), NUM_LANES)
_FUSED = ("contract",)  # a product and a sum may become one fused multiply-add


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_LANES = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def load(array: Floats, row: int, column: int) -> Floats:
    """Return array[row, column : column + 16]."""
    lanes = array[row, column : column + NUM_LANES].copy()
    if len(lanes) != NUM_LANES:
        raise IndexError(f"no 16 numbers at row {row}, column {column} of {array.shape}")
    return lanes


def store(array: Floats, row: int, column: int, lanes: Floats) -> None:
    """Set array[row, column : column + 16] = lanes."""
    array[row, column : column + NUM_LANES] = lanes


def spread(scalar: np.float32) -> Floats:
    """Return lanes that all hold the same number."""
    return np.full(NUM_LANES, scalar)


@intrinsic
def _load(typing: Any, array: Any, row: Any, column: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_address(context, builder, signature, args))
        value.align = 4
        return value

    return _LANES(array, row, column), emit


@intrinsic
def _store(typing: Any, array: Any, row: Any, column: Any, lanes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[3], _address(context, builder, signature, args)).align = 4
        return context.get_dummy_value()

    return types.none(array, row, column, lanes), emit


@intrinsic
def _spread(typing: Any, scalar: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), NUM_LANES), [0] * NUM_LANES)
        return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)

    return _LANES(types.float32), emit


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of array[row, column] as a pointer to a vector."""
    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, args[0])
    indices = [
        context.cast(builder, value, given, types.intp)
        for value, given in zip(args[1:3], signature.args[1:3], strict=True)
    ]
    pointer = cgutils.get_item_pointer(context, builder, kind, array, indices, wraparound=False)
    return builder.bitcast(pointer, _VECTOR.as_pointer())


@overload(load, strict=False)
def _overload_load(array: Any, row: Any, column: Any) -> Callable[..., Any]:
    return lambda array, row, column: _load(array, row, column)


@overload(store, strict=False)
def _overload_store(array: Any, row: Any, column: Any, lanes: Any) -> Callable[..., Any]:
    return lambda array, row, column, lanes: _store(array, row, column, lanes)


@overload(spread, strict=False)
def _overload_spread(scalar: Any) -> Callable[..., Any]:
    return lambda scalar: _spread(scalar)


def _overload_operator(symbol: Any, name: str) -> None:
    """Make an operator on lanes one CPU instruction; a scalar on the left applies to all lanes."""

    @intrinsic
    def instruction(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args, flags=_FUSED)

        return _LANES(_LANES, _LANES), emit

    @overload(symbol, strict=False)
    def operate(a: Any, b: Any) -> Callable[..., Any] | None:
        if a == types.float32 and b == _LANES:
            return lambda a, b: instruction(_spread(a), b)
        return (lambda a, b: instruction(a, b)) if a == b == _LANES else None


_overload_operator(operator.add, "fadd")
_overload_operator(operator.sub, "fsub")
_overload_operator(operator.mul, "fmul")
_overload_operator(operator.truediv, "fdiv")
