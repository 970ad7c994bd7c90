"""What a pickle would build, told from its opcodes before anything is built.

torch's weights_only unpickler runs no code, but it builds whatever a file says: a `bytearray` of any size, and tuples
in tuples that take for ever to hash as a dict's key, or end the process by the depth of the recursion.
"""

from __future__ import annotations

import pickletools
from typing import IO

_GROW = {"builtins bytearray", "__builtin__ bytearray"}
"""Called with a number they fill as many bytes of memory; no optimizer's state has one."""

_HEAVIEST, _DEEPEST = 100_000, 100
"""Entries of a tuple, counted as often as they are met, and tuples within one another."""

_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}

_Tuple = tuple[int, int]
"""Its weight and depth; (1, 0) for what is no tuple."""

_OTHER: _Tuple = (1, 0)


class Refused(Exception):
    """The pickle would build what no optimizer saves."""


def scan_pickle(file: IO[bytes]) -> None:
    """Read one pickle up to its end. Raises `Refused`, and `ValueError` or the like where it is damaged."""
    stack: list[_Tuple | None] = []  # None is a mark
    memo: dict[object, _Tuple] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and argument in _GROW:
            raise Refused(str(argument).replace(" ", "."))
        if opcode.name in _GETS:
            stack.append(memo.get(argument, _OTHER))
        elif opcode.name in _PUTS or opcode.name == "MEMOIZE":
            memo[len(memo) if opcode.name == "MEMOIZE" else argument] = (stack[-1] if stack else None) or _OTHER
        elif opcode.name == "MARK":
            stack.append(None)
        else:
            taken = _take(stack, opcode)
            made = _OTHER
            if opcode.name.startswith("TUPLE") or opcode.name == "REDUCE":  # torch.Size is a tuple too
                made = (1 + sum(weight for weight, _ in taken), 1 + max((depth for _, depth in taken), default=0))
                if made[0] > _HEAVIEST or made[1] > _DEEPEST:
                    raise Refused("tuples nested without end")
            stack += [made] * len(opcode.stack_after)


def _take(stack: list[_Tuple | None], opcode: pickletools.OpcodeInfo) -> list[_Tuple]:
    """What an opcode takes from the stack; a damaged pickle may take more than there is."""
    before, taken = list(opcode.stack_before), []
    if pickletools.markobject in before:
        while stack and (top := stack.pop()) is not None:
            taken.append(top)
        before = before[: before.index(pickletools.markobject)]
    return taken + [(stack.pop() if stack else None) or _OTHER for _ in before]
