"""Named tuples of arrays as one pointer: how the kernels of this room are given a cluster.

A cluster is about 120 arrays in nested named tuples. numba hands a tuple on by value: seven words for each array at
every call, and counts references at every access. A class marked ``by_reference`` is laid down once instead, as a row
of int64 (an array as its address and its shape, a number as its bits, a tuple inside another as its own row in place),
and a kernel gets the address of that row: ``Ref``. In a kernel ``st.node_phase[n]`` reads as before, ``world.st`` is
the address of a part of the row, and nothing is counted: whoever calls keeps the arrays alive, as Python does for the
arguments of a call. A row is made when a kernel first asks for it, and is kept by the tuple.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
from numba import extending
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.np import arrayobj, numpy_support

__all__ = ["Handle", "Ref", "address_of", "at", "by_reference", "ref_type", "row_of"]

_extending: Any = extending  # their helpers are not annotated
_numpy: Any = arrayobj
_cgutils: Any = cgutils
_Class = TypeVar("_Class", bound=type[Any])

_NUMBERS: dict[Any, types.Type] = {float: types.float64, int: types.intp, bool: types.boolean}


class Ref(types.Type):
    """The address of the row of a named tuple.

    Args:
        cls: A class marked ``by_reference``.
        fields: Types of its fields.
    """

    def __init__(self, cls: type[Any], fields: tuple[types.Type, ...]) -> None:
        self.cls, self.fields = cls, fields
        digest = hashlib.sha256(repr((cls, fields)).encode()).hexdigest()[:12]
        super().__init__(
            name=f"Ref[{cls.__name__}:{digest}]"
        )  # short: it is a part of every symbol, and what makes two types the same

    def field(self, name: str) -> tuple[int, types.Type]:
        """Where in the row a field begins, and its type."""
        i = self.cls._fields.index(name)
        return sum(map(_num_words, self.fields[:i])), self.fields[i]


def _num_words(kind: types.Type) -> int:
    if isinstance(kind, Ref):
        return sum(map(_num_words, kind.fields))
    return 1 + kind.ndim if isinstance(kind, types.Array) else 1


def by_reference(*, is_written: bool) -> Callable[[_Class], _Class]:
    """Marks a named tuple of C-contiguous arrays, floats, ints, bools and other such tuples.

    Args:
        is_written: Whether kernels write into its arrays: arrays that are read-only are refused then.
    """

    def mark(cls: _Class) -> _Class:
        def lay_down(self: Any) -> int:
            self._row = np.array(list(row_of(self)), np.int64)
            return int(self._row.ctypes.data)

        address = cached_property(lay_down)
        body = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__qualname__": cls.__qualname__,
            "__getstate__": lambda self: None,  # a row holds in this process, and for these arrays only
            "_kinds": [_declared(hint) for hint in get_type_hints(cls).values()],
            "_is_written": is_written,
            "_address": address,
        }
        marked = type(cls.__name__, (cls,), body)
        address.__set_name__(marked, "_address")
        _extending.typeof_impl.register(marked)(lambda value, context: ref_type(value))
        return marked  # type: ignore[return-value]  # the same class, with room for its row

    return mark


def _declared(hint: Any) -> Any:
    """What a field is to be: a dtype, the type of a number, or a class marked ``by_reference``."""
    if hasattr(hint, "_kinds"):
        return hint
    return _NUMBERS[hint] if hint in _NUMBERS else np.dtype(get_args(get_args(hint)[1])[0])


def ref_type(value: Any) -> Ref:
    """The type by which a kernel knows a tuple marked ``by_reference``.

    Raises:
        TypeError: A field is not what its annotation says.
    """
    return Ref(type(value), tuple(map(_type_of, value, value._kinds, value._fields)))


def _type_of(value: Any, kind: Any, name: str) -> types.Type:
    if isinstance(kind, np.dtype):
        if not isinstance(value, np.ndarray) or value.dtype != kind:
            raise TypeError(f"{name} must be an array of {kind}, got {getattr(value, 'dtype', type(value))}")
        return types.Array(numpy_support.from_dtype(kind), value.ndim, "C")
    if isinstance(kind, types.Type):
        return kind
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value)}")
    return ref_type(value)


def row_of(value: Any) -> Iterator[int]:
    """The row of a tuple marked ``by_reference``.

    Raises:
        ValueError: An array is not contiguous, or is read-only where kernels write.
    """
    for part, kind, name in zip(value, value._kinds, value._fields, strict=True):
        if isinstance(part, tuple):
            yield from row_of(part)
        elif isinstance(part, np.ndarray):
            if not part.flags.c_contiguous or (value._is_written and not part.flags.writeable):
                raise ValueError(f"{name} must be C-contiguous and writable, got strides {part.strides}\n{part.flags}")
            yield part.__array_interface__["data"][0]
            yield from part.shape
        else:
            yield int(np.float64(part).view(np.int64)) if kind is types.float64 else int(part)


def address_of(value: Any, like: Any) -> int:
    """Where the row of ``value`` is, for ``at``; it holds as long as ``value`` lives.

    Raises:
        TypeError: Its type is not that of ``like``.
    """
    if ref_type(value) != ref_type(like):
        raise TypeError(f"expected {ref_type(like)}, got {ref_type(value)}")
    address: int = value._address
    return address


class Handle:
    """A tuple marked ``by_reference``, as cheaply as a kernel can be given it: its type is looked at once.

    Args:
        value: The tuple, which is kept alive.
    """

    def __init__(self, value: Any) -> None:
        self.value, self.kind, self._address = value, ref_type(value), value._address


_extending.typeof_impl.register(Handle)(lambda handle, context: handle.kind)


@_extending.register_model(Ref)
class _RefModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _cgutils.intp_t.as_pointer())  # type: ignore[no-untyped-call]  # not annotated


@_extending.unbox(Ref)  # type: ignore[untyped-decorator]  # Any
def _unbox(typ: Ref, obj: Any, c: Any) -> Any:
    pointer = _cgutils.alloca_once_value(c.builder, _cgutils.intp_t.as_pointer()(None))
    address = c.pyapi.object_getattr_string(obj, "_address")
    with _cgutils.if_likely(c.builder, _cgutils.is_not_null(c.builder, address)):
        c.builder.store(c.builder.bitcast(c.pyapi.long_as_voidptr(address), _cgutils.intp_t.as_pointer()), pointer)
        c.pyapi.decref(address)
    value = c.builder.load(pointer)
    return _extending.NativeValue(value, is_error=_cgutils.is_null(c.builder, value))


@_extending.infer_getattr
class _Fields(AttributeTemplate):
    key = Ref

    def generic_resolve(self, typ: Ref, attr: str) -> types.Type | None:  # type: ignore[override]  # a place-holder there
        return typ.field(attr)[1] if attr in typ.cls._fields else None


@_extending.lower_getattr_generic(Ref)  # type: ignore[untyped-decorator]
def _read(context: Any, builder: Any, typ: Ref, pointer: Any, attr: str) -> Any:
    first, kind = typ.field(attr)

    def word(i: int) -> Any:
        return builder.gep(pointer, [context.get_constant(types.intp, first + i)])

    def load(i: int) -> Any:
        loaded = builder.load(word(i))
        # Rows do not change while a kernel runs: LLVM may read them once, before a loop.
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    if isinstance(kind, Ref):
        return word(0)
    if isinstance(kind, types.Array):
        return _array(context, builder, kind, load(0), [load(1 + i) for i in range(kind.ndim)])
    if isinstance(kind, types.Float):
        return builder.bitcast(load(0), context.get_value_type(kind))
    if isinstance(kind, types.Boolean):
        return builder.trunc(load(0), context.get_value_type(kind))
    return load(0)


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


@extending.intrinsic
def at(typingctx: Any, prototype: Any, address: Any) -> Any:
    """The tuple like ``prototype`` whose row is at ``address``.

    Args:
        typingctx: numba's; not given by the caller.
        prototype: Any tuple of the same type; only the type is used.
        address: ``address_of`` it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return prototype(prototype, types.intp), codegen
