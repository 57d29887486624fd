"""Many nested tuples of arrays in one kernel call: each is laid down as a row of addresses and read back as views.

numba counts references of every array that it takes out of a list of tuples, and a cluster has about 120 of them:
0.7 us a cluster and step, which is more than the step itself costs. Here a tuple becomes one row of an int64 table
(for an array its address and its shape, for a number its bits), and ``view`` builds the same tuple over it inside a
kernel, without counting anything. Whoever makes the table keeps the arrays alive, and in place.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np import arrayobj

__all__ = ["row_of", "view"]

_numpy: Any = arrayobj  # their helpers are not annotated
_cgutils: Any = cgutils


def row_of(value: Any) -> Iterator[int]:
    """The row of a nested named tuple.

    Args:
        value: C-contiguous arrays, floats, ints, bools, and tuples of these.

    Raises:
        ValueError: An array is not contiguous.
    """
    if isinstance(value, tuple):
        for part in value:
            yield from row_of(part)
    elif isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"arrays must be C-contiguous, got strides {value.strides}")
        yield value.ctypes.data
        yield from value.shape
    elif isinstance(value, float):
        yield int(np.float64(value).view(np.int64))
    else:
        yield int(value)


@intrinsic
def view(typingctx: Any, prototype: Any, row: Any) -> Any:
    """A tuple like ``prototype`` over the arrays whose addresses are in ``row``.

    Args:
        typingctx: numba's; not given by the caller.
        prototype: Any tuple of the same structure; only its type is used.
        row: ``(L,)`` int64, from ``row_of``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row_type = signature.args[1]
        data = _numpy.make_array(row_type)(context, builder, args[1]).data
        at = [0]

        def read() -> Any:
            value = builder.load(builder.gep(data, [context.get_constant(types.intp, at[0])]))
            at[0] += 1
            return value

        def build(kind: Any) -> Any:
            if hasattr(kind, "types"):  # of a tuple
                parts = [build(part) for part in kind.types]
                return context.make_tuple(builder, kind, parts)
            if isinstance(kind, types.Array):
                return _array(context, builder, kind, read(), [read() for _ in range(kind.ndim)])
            if isinstance(kind, types.Float):
                return builder.bitcast(read(), context.get_value_type(kind))
            if isinstance(kind, types.Boolean):
                return builder.trunc(read(), context.get_value_type(kind))
            return read()

        return build(signature.args[0])

    return prototype(prototype, row), codegen


def _array(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any]) -> Any:
    """An array struct of ``kind`` at ``address`` that owns nothing."""
    array = _numpy.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    itemsize = context.get_constant(types.intp, size)
    strides = [itemsize]
    for extent in shape[:0:-1]:
        strides.insert(0, builder.mul(strides[0], extent))
    pointer = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
    _numpy.populate_array(
        array,
        data=pointer,
        shape=_cgutils.pack_array(builder, shape),
        strides=_cgutils.pack_array(builder, strides),
        itemsize=itemsize,
        meminfo=None,
    )
    return array._getvalue()
