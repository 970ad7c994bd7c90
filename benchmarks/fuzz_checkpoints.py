"""Checkpoints that were damaged, and checkpoints that were made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

HUGE = 10**12
"""Elements, or bytes, that a file claims; a machine that believed it would run out of memory."""


def saved(legacy: bool = False) -> bytes:
    """A small model's optimizer state, as torch.save writes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return _bytes(optimizer.state_dict(), legacy)


def _bytes(data: object, legacy: bool = False, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    torch.save(data, out, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return out.getvalue()


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """A file with bytes flipped, cut, doubled, or from another place of it."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        place, other = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        match chance.randrange(5):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place : place + 8] = chance.randbytes(8)
            case 2:
                del data[place:other]
            case 3:
                data[place:place] = data[place:other]
            case 4:
                data[place:other] = bytes(other - place)
        if not data:
            break
    return bytes(data)


class _Sings:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path, with_what: Callable[..., object]) -> None:
        self.canary, self.with_what = canary, with_what

    def __reduce__(self) -> tuple[Any, ...]:
        if self.with_what is os.system:
            return os.system, (f"touch '{self.canary}'",)
        return self.with_what, (f"open({str(self.canary)!r}, 'w').close()",)


_OPTIMIZER = {"param_groups": [{"params": [0], "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}]}


def _zip(pickled: bytes, storages: dict[str, bytes] | None = None, folder: str = "archive") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr(f"{folder}/version", "3\n")
        for name, data in (storages or {"data/0": bytes(64)}).items():
            archive.writestr(f"{folder}/{name}", data)
    return out.getvalue()


class _Pickle:
    """A pickle written opcode by opcode."""

    def __init__(self) -> None:
        self.data = bytearray(b"\x80\x02")

    def call(self, name: str, *arguments: object) -> _Pickle:
        module, _, function = name.rpartition(".")
        self.data += b"c" + f"{module}\n{function}\n".encode()
        return self.raw(pickle.dumps(arguments, 2)[2:-1] + b"R")

    def raw(self, data: bytes) -> _Pickle:
        self.data += data
        return self

    def storage(self, key: str, elements: int) -> _Pickle:
        """A reference to a storage of so many floats."""
        told = pickle.dumps(("storage", 0, key, "cpu", elements), 2)[2:-1]
        marker = pickle.dumps(0, 2)[2:-1]
        return self.raw(told.replace(marker, b"ctorch\nFloatStorage\n", 1) + b"Q")

    def tensor(self, key: str, elements: int, size: tuple[int, ...], stride: tuple[int, ...]) -> _Pickle:
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n(").storage(key, elements)
        rest = pickle.dumps((0, size, stride, False), 2)[2:-1]  # as a tuple of its own, taken apart again
        return self.raw(_items(rest) + b"ccollections\nOrderedDict\n)RtR")

    def end(self) -> bytes:
        return bytes(self.data + b".")


def _items(pickled_tuple: bytes) -> bytes:
    """The entries of a pickled tuple of four without what binds them."""
    assert pickled_tuple.startswith(b"(")
    return pickled_tuple[1 : pickled_tuple.rindex(b"t")]


def _state_of(moment: Callable[[_Pickle], object]) -> bytes:
    """An optimizer's state whose moments are made by `moment`."""
    pickled = _Pickle().raw(b"}(X\x05\x00\x00\x00state}K\x00}(X\x07\x00\x00\x00exp_avg")
    moment(pickled)
    pickled.raw(b"X\x0a\x00\x00\x00exp_avg_sq")
    moment(pickled)
    pickled.raw(b"us" + b"X\x0c\x00\x00\x00param_groups" + pickle.dumps(_OPTIMIZER["param_groups"], 2)[2:-1] + b"u")
    return pickled.end()


def of_shape(size: tuple[int, ...]) -> bytes:
    """An optimizer's state whose moments say that they are of this shape, over 16 numbers."""
    return _zip(_state_of(lambda pickled: pickled.tensor("0", 16, size, (1,) * len(size))))


def key_bomb(depth: int) -> bytes:
    """A dict whose key is a pair of a pair of ...: short to write, endless to hash."""
    pairs = b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(depth))
    return _zip(b"\x80\x02}K\x01" + pairs + b"K\x01s.")


def deep_key(depth: int) -> bytes:
    """A dict whose key is a tuple in a tuple in ..., as hashing recurs."""
    return _zip(b"\x80\x02}K\x01" + b"\x85" * depth + b"K\x01s.")


def deep_lists(depth: int) -> bytes:
    """A list in a list in ..."""
    return _zip(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")


def name_bomb(depth: int) -> bytes:
    """An optimizer's state whose group is called by a list of two of a list of two of ...: endless to spell."""
    doubled = b"".join(b"q" + bytes([place]) + b"ah" + bytes([place]) + b"a" for place in range(depth))
    name = _text("name") + b"]" * depth + b"K\x01" + doubled
    group = b"}(" + _text("params") + b"]K\x00a" + name + b"u"
    return _zip(
        b"\x80\x02}("
        + _text("state")
        + b"}K\x00}"
        + _text("step")
        + b"K\x01ss"
        + _text("param_groups")
        + b"]"
        + group
        + b"au."
    )


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _with_bomb(inside: object, size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(inside, 2))
        archive.writestr("archive/data/0", bytes(size))
    return out.getvalue()


def _overlapping() -> bytes:
    """A zip whose directory names one entry many times."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10**6))
        archive.filelist += [archive.filelist[1]] * 5_000
    return out.getvalue()


def _lies_about_size() -> bytes:
    """A zip whose directory gives an entry four gigabytes."""
    data = bytearray(_zip(b"\x80\x02}."))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(data)


def hostile(canary: Path) -> dict[str, bytes]:
    """Files by what they try; where code would run, `canary` is made."""
    small = {"state": {0: {"step": 1}}} | _OPTIMIZER
    return {
        "os.system in a zip": _bytes(small | {"x": _Sings(canary, os.system)}),
        "eval in the legacy format": _bytes(small | {"x": _Sings(canary, eval)}, legacy=True),
        "exec by protocol 4": _bytes(_Sings(canary, exec), protocol=4),
        "a bare pickle of os.system": pickle.dumps(_Sings(canary, os.system)),
        "os.system in the legacy header": pickle.dumps(_Sings(canary, os.system), 2) + saved(legacy=True),
        "builtins.getattr": _zip(b"\x80\x02cbuiltins\ngetattr\n" + _text("x") + _text("upper") + b"\x86R."),
        "a zip bomb": _with_bomb(small, 300 * 2**20),
        "a zip that overlaps itself": _overlapping(),
        "an entry that lies about its size": _lies_about_size(),
        "paths out of the archive": _zip(
            pickle.dumps(small, 2), {"../" * 20 + str(canary)[1:]: b"x", str(canary): b"x"}
        ),
        "an archive that leads out": _zip(pickle.dumps(small, 2), folder="../" * 20 + str(canary.parent)[1:]),
        "a storage out of the archive": _zip(_state_of(lambda p: p.tensor("../../../etc/passwd", 16, (16,), (1,)))),
        "a huge shape on a small storage": of_shape((HUGE,)),
        "a huge shape of stride 0": _zip(_state_of(lambda p: p.tensor("0", 16, (HUGE,), (0,)))),
        "a huge storage": _zip(_state_of(lambda p: p.tensor("0", HUGE, (HUGE,), (1,)))),
        "a shape beyond 64 bits": of_shape((2**62, 2**62)),
        "a negative shape": of_shape((-5,)),
        "a huge tensor of its own": _zip(_state_of(lambda p: p.call("torch.FloatTensor", HUGE))),
        "a huge sparse tensor": _zip(_state_of(lambda p: p.call("torch.sparse.FloatTensor", HUGE))),
        "a huge bytearray": _zip(_Pickle().call("builtins.bytearray", 8 * 2**30).end()),
        "a huge bytearray, by its old name": _zip(_Pickle().call("__builtin__.bytearray", 8 * 2**30).end()),
        "a key that takes for ever to hash": key_bomb(60),
        "a key too deep to hash": deep_key(300_000),
        "lists too deep to walk": deep_lists(100_000),
        "a name too long to spell": name_bomb(60),
        "moments of text": _bytes({"state": {0: {"exp_avg": "x", "exp_avg_sq": "x", "step": 1}}} | _OPTIMIZER),
        "moments of whole numbers": _bytes(_moments(torch.ones(3, dtype=torch.long))),
        "moments without memory": _bytes(_moments(torch.ones(3, device="meta"))),
        "names that steer the terminal": _bytes(
            {"\x1b[2J": {"state": {}, "param_groups": [{"params": [], "name": "\x1b]0;x\x07[red]" * 1000}]}}
        ),
    }


def _moments(value: torch.Tensor) -> dict[str, Any]:
    return {"state": {0: {"exp_avg": value, "exp_avg_sq": value, "step": 1}}} | _OPTIMIZER
