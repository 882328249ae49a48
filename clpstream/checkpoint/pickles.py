"""A pickle machine that has nothing to run.

`pickle.Unpickler` is not used, not even with a `find_class` of its own: its opcodes still call
whatever that returns, build state into it, set items on it and hash what it is given, and nothing
bounds what it makes. `pickletools.genops` takes opcodes and their arguments apart, no more. Here is
a stack of plain values for them: no name is ever imported or resolved (a `Global` is its
name), a call runs one of the caller's own functions or is refused, and state given to an object is
dropped.
Of containers, only lists, tuples and dicts with string keys exist; they are never hashed, compared,
printed or walked into here, so nesting and cycles cost nothing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MAX_BYTES = 64 << 20
"""Of one pickle, and of anything in it that is read at once."""
MAX_STEPS = 5_000_000
"""Opcodes of one pickle, some 40 for a tensor; each can take no more than a hundred bytes."""

_LITERALS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEVER = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
"""Ways to call, or to name an object from outside, that a file of tensors has no use for."""
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsafePickleError(ValueError):
    """A pickle wants something that is not on the caller's list; the message says what."""


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a pickle would import: "module name" with one space between, never resolved."""

    name: str

    def __str__(self) -> str:
        return shown(self.name.replace(" ", "."))


class Skipped:
    """Stands for an object of which nothing is needed."""


Calls = Mapping[str, Callable[..., Any] | None]
"""The names that a pickle may have, and the function that stands for each; None: not callable."""


def shown(text: str, limit: int = 100) -> str:
    """Text of a file that is not trusted, fit for one line of a message."""
    text = text if len(text) <= limit else text[:limit] + "..."
    return text if text.isprintable() else ascii(text)


def load(file: IO[bytes], calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """The value of the pickle at the file's position, which moves to the pickle's end.

    persistent: makes the object that a persistent id stands for. `file` must bound what `read`
    and `readline` take at once.

    Raises UnsafePickleError for a name or a call that `calls` does not have, ValueError for what
    is no pickle or too large.
    """
    machine = _Machine(calls, persistent)
    start = file.tell()
    for step, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if step >= MAX_STEPS or (position or start) - start > MAX_BYTES:
            raise ValueError("too large for a list of tensors")
        try:
            machine.step(opcode.name, argument)
        except (IndexError, KeyError):
            raise ValueError(f"{opcode.name} finds nothing on the stack or in the memo") from None
    return machine.stack[-1] if machine.stack else None


class _Machine:
    def __init__(self, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}  # a dict, since a pickle chooses its indices
        self._calls = calls
        self._persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            stack.append(self._global(f"{_text(module)} {_text(attribute)}"))
        elif name == "REDUCE":
            stack.append(self._call(*self._pop(2)))
        elif name == "BUILD":
            self._build()
        elif name == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        elif name in _NEVER:
            raise UnsafePickleError(self._what_it_would_make(name, argument))
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._container(name)

    def _container(self, name: str) -> None:
        stack = self.stack
        if name in ("EMPTY_DICT", "DICT"):
            items = self._pop_to_mark() if name == "DICT" else []
            stack.append({})
            self._set_items(items)
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(self._pop_to_mark() if name == "LIST" else [])
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            if type(stack[-1]) is not list:
                raise ValueError(f"{name} to what is no list")
            stack[-1].extend(items)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise ValueError(f"opcode {name}, which files of tensors don't have")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        height = self._marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("items for what is no dict")
        # other keys are no tensor's name, and hashing a nested tuple can take forever
        target.update(
            (key, value)
            for key, value in zip(items[::2], items[1::2], strict=True)
            if type(key) is str
        )

    def _global(self, name: str) -> Global:
        found = Global(name)
        if name not in self._calls:
            raise UnsafePickleError(str(found))
        return found

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or (call := self._calls[function.name]) is None:
            raise UnsafePickleError(_described(function))
        if type(arguments) is not tuple:
            raise ValueError(f"{function} is called with what is no tuple")
        try:
            return call(*arguments)
        except TypeError:
            raise ValueError(f"{function} is called with the wrong arguments") from None

    def _build(self) -> None:
        self.stack.pop()  # attributes, such as the _metadata of a state dict: not needed
        if not isinstance(self.stack[-1], (dict, Skipped)):
            raise UnsafePickleError(f"__setstate__ of {_described(self.stack[-1])}")

    def _what_it_would_make(self, opcode: str, argument: Any) -> str:
        if opcode == "INST":
            return str(Global(argument))
        if opcode == "PERSID":
            return f"object {shown(argument)} from outside"
        if argument is not None:
            return f"extension {argument} of copyreg"
        found = next((v for v in reversed(self.stack) if isinstance(v, Global)), None)
        return f"{found or 'something'} by {opcode}"


def _described(value: Any) -> str:
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a name to import that is no text")
    return value
