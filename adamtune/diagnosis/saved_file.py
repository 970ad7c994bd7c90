"""A file that torch.save wrote, read without running anything in it, and without loading what is not looked at."""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from adamtune.diagnosis.pickle_scan import Refused, scan_pickle
from adamtune.errors import CheckpointError

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the pickle beside the tensors: a hundred or two a tensor, so a quarter of a million tensors fit."""

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch.save began a file with before torch 1.6: its magic number, pickled by protocol 2."""

_ALONE = "save the optimizer's state alone, torch.save(optimizer.state_dict(), 'optimizer.pt')"
_ALONE_LIGHTNING = (
    "save the optimizer's state alone, torch.save(trainer.optimizers[0].state_dict(), 'optimizer.pt'), or give "
    "save_hyperparameters only numbers, texts, lists and dicts"
)


def read_saved(path: Path) -> Any:
    """What the file holds: tensors and plain data.

    Tensors of torch's zip format are mapped, so that only what is looked at is read from the disk; the legacy format
    (before torch 1.6) can only be read whole. Raises `CheckpointError` for any other file, for a damaged one, and for
    one whose pickle asks for more than data, of which nothing is run.
    """
    head = _head(path)
    if head.startswith(_ZIP):
        _check_zip(path)
        return _load(path, mapped=True)
    if head.startswith(_LEGACY):
        with path.open("rb") as file:
            _scan(path, file, pickles=4)  # magic number, version, the machine's sizes; then what was saved
        return _load(path, mapped=False)
    raise CheckpointError(f"{path} {_what_it_is(path, head)}; adamtune diagnose reads what torch.save wrote")


def _head(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no file; name what torch.save wrote")
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:  # no right to read it, or no name a file can have
        why = problem.strerror if isinstance(problem, OSError) else problem
        raise CheckpointError(f"{str(path)[:200]!r} cannot be read: {why}") from problem


def _what_it_is(path: Path, head: bytes) -> str:
    if not head:
        return "is empty"
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "is a safetensors file, which holds tensors without an optimizer's settings"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "is a pickle that torch.save did not write, and opening one can run code"
    return "is neither of torch.save's formats, or its beginning is damaged"


def _check_zip(path: Path) -> None:
    """Refuse a zip that is cut, is not torch.save's, or says it holds more than there is of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            (pickled,) = (entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl")
            with archive.open(pickled) as file:
                _scan(path, file)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise CheckpointError(f"{path} is damaged or was cut short; copy or save it again") from problem


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript model, which holds no optimizer's state")
    pickles = [entry for entry, name in zip(entries, names, strict=True) if name == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip file, but not one that torch.save wrote")
    if any(entry.filename.startswith("/") or ".." in entry.filename.split("/") for entry in entries):
        raise CheckpointError(f"{path} has entries that lead out of it, as torch.save writes none; save it again")
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    size = sum(entry.file_size for entry in entries)
    if compressed or size > path.stat().st_size or pickles[0].file_size > LARGEST_PICKLE:
        raise CheckpointError(
            f"{path} would grow when unpacked, as nothing that torch.save writes does, and might fill the memory; save "
            "it again with torch.save"
        )


def _scan(path: Path, file: IO[bytes], pickles: int = 1) -> None:
    try:
        for _ in range(pickles):
            scan_pickle(file)
    except Refused as why:
        raise CheckpointError(
            f"{path} was pickled in a way that might fill the memory or never end when it is opened ({why}), so it was "
            f"not opened; {_ALONE}"
        ) from None
    except Exception:  # damaged, or of opcodes that nobody knows: torch.load says the same
        raise CheckpointError(f"{path} is damaged or was cut short; copy or save it again") from None


def _load(path: Path, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on old types of storage
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory") from None
    except Exception as problem:  # a damaged pickle can raise anything
        raise _refusal(path, problem) from None


def _refusal(path: Path, problem: Exception) -> CheckpointError:
    """What torch.load's error means. Its own text names ways to open the file unsafely, so it is not passed on."""
    text = str(problem)
    if "DTensor" in text or "device_mesh" in text:
        return CheckpointError(
            f"{path} holds shards of a distributed run (DTensor); gather them before saving: "
            "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict with full_state_dict=True"
        )
    better = _ALONE_LIGHTNING if path.suffix == ".ckpt" else _ALONE
    refused = re.search(r"GLOBAL (\S+)", text)
    if refused is not None:
        name = "".join(filter(str.isprintable, refused[1]))[:100]
        return CheckpointError(
            f"{path} asks for {name} when it is opened, which is more than data and could run code, so it was not "
            f"opened; {better}"
        )
    if re.search("Unsupported operand|Trying to call reduce|Can only (create|build)", text):
        return CheckpointError(
            f"{path} was pickled in a way that could run code when it is opened, so it was not opened; {better}, with "
            "torch.save's own pickle_protocol"
        )
    return CheckpointError(f"{path} is damaged or was cut short; copy or save it again")
