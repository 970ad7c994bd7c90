from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, SparseAdam

from adamtune.diagnosis import diagnose
from adamtune.diagnosis.checkpoint import Checkpoint, read_checkpoint
from adamtune.errors import CheckpointError
from adamtune.handover import AdamThenSGD
from adamtune.probe import SAMPLE, AdamProbe

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
NEEDS_MORE = ("grad_norm", "flips", "update_to_weight")
"""Statistics that need gradients or weights."""


def trained(make: Callable[[list[Any]], Optimizer], steps: int = 3) -> Optimizer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    optimizer = make(list(model.named_parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).pow(2).sum().backward()
        optimizer.step()
    return optimizer


def two_groups(named: list[Any]) -> Optimizer:
    groups = [{"params": named[:1], "name": "body"}, {"params": named[1:], "name": "rest", "lr": 0.5, "eps": 1e-2}]
    return AdamW(groups, lr=1e-3)


def live(optimizer: Optimizer) -> dict[str, float]:
    """What the probe tells of the optimizer itself, as far as a checkpoint can."""
    record = AdamProbe(optimizer).record()
    return {key: value for key, value in record.items() if key.split("/")[1] not in NEEDS_MORE}


def saved(path: Path, what: object, legacy: bool = False) -> Path:
    torch.save(what, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "optimizer.pt"


def read(file: Path, what: object, legacy: bool = False) -> Checkpoint:
    return read_checkpoint(saved(file, what, legacy))


def refusal(path: Path) -> str:
    """The one sentence by which it is refused; no way to open it unsafely is in it."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert str(path) in text or repr(str(path)) in text
    assert "\n" not in text
    assert "weights_only" not in text
    assert "safe_globals" not in text
    assert caught.value.exit_code == 2
    return text


# --- what is measured


KINDS: dict[str, Callable[[list[Any]], Optimizer]] = {
    "Adam": lambda named: Adam(named, lr=0.01, betas=(0.8, 0.99), eps=1e-4),
    "AdamW": lambda named: AdamW(named, lr=0.01),
    "amsgrad": lambda named: Adam(named, betas=(0.9, 0.5), amsgrad=True),
    "RAdam": lambda named: RAdam(named, lr=0.02),
    "RAdam, decoupled": lambda named: RAdam(named, decoupled_weight_decay=True),
    "lr a tensor": lambda named: AdamW(named, lr=torch.tensor(0.03), foreach=False),
    "capturable": lambda named: Adam([param for _, param in named], foreach=False),
    "groups": two_groups,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_is_measured_as_the_optimizer_itself(kind: str, legacy: bool, file: Path) -> None:
    optimizer = trained(KINDS[kind])
    checkpoint = read(file, optimizer.state_dict(), legacy)
    assert checkpoint.record == pytest.approx(live(optimizer), rel=1e-6)
    assert "r/p50" in " ".join(checkpoint.record)
    assert checkpoint.step == 3
    assert checkpoint.file == file


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.float64])
def test_moments_of_any_type_are_measured(dtype: torch.dtype, file: Path) -> None:
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((), (3, 4))]
    optimizer = Adam(params, lr=0.01)
    for param in params:
        param.grad = torch.arange(1.0, 1.0 + param.numel()).reshape(param.shape).to(dtype)
    optimizer.step()
    assert read(file, optimizer.state_dict()).record == pytest.approx(live(optimizer), rel=1e-6)


def test_sparse_adam_is_measured_as_itself(file: Path) -> None:
    table = nn.Embedding(9, 3, sparse=True)
    optimizer = SparseAdam(table.parameters(), lr=0.1, eps=1e-2)
    table(torch.tensor([1, 2, 2])).sum().backward()
    optimizer.step()
    record = read(file, optimizer.state_dict()).record
    assert record == pytest.approx(live(optimizer))
    assert record["group0/never_updated"] == pytest.approx(7 / 9)


def test_nadams_moments_are_told_as_adams_and_said_to_be(file: Path) -> None:
    optimizer = trained(NAdam)
    checkpoint = read(file, optimizer.state_dict())
    twin = trained(Adam, steps=1)
    twin.load_state_dict({"state": optimizer.state_dict()["state"], "param_groups": twin.state_dict()["param_groups"]})
    twin.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    assert checkpoint.record == pytest.approx(live(twin))
    assert any("NAdam" in note for note in checkpoint.notes)


def test_a_large_group_is_sampled_as_the_probe_samples_it(file: Path) -> None:
    param = nn.Parameter(torch.zeros(SAMPLE * 2))
    optimizer = Adam([param], lr=1.0, betas=(0.0, 0.0))
    param.grad = torch.linspace(0.0, 1.0, 2 * SAMPLE)
    optimizer.step()
    saved(file, optimizer.state_dict())
    sampled = read_checkpoint(file).record
    assert sampled == live(optimizer)
    assert sampled["group0/m_hat/p50"] == pytest.approx(0.5, abs=0.0065)


def test_nonfinite_state_is_measured_and_not_a_crash(file: Path) -> None:
    optimizer = trained(AdamW)
    for state in optimizer.state.values():
        state["exp_avg"].fill_(math.nan)
    record = read(file, optimizer.state_dict()).record
    assert record["group0/nonfinite"] == 1.0
    assert "group0/r/p50" not in record


def test_an_optimizer_without_adams_moments_is_told_by_its_norms(file: Path) -> None:
    optimizer = trained(lambda named: SGD(named, lr=0.01, momentum=0.9))
    checkpoint = read(file, optimizer.state_dict())
    assert checkpoint.record == pytest.approx(live(optimizer))
    assert list(checkpoint.record) == ["group0/momentum_norm"]
    assert checkpoint.step is None
    assert "momentum_buffer" in checkpoint.notes[0]


def test_a_parameter_without_a_gradient_has_no_state_and_is_left_out(file: Path) -> None:
    unused = nn.Parameter(torch.ones(50))
    optimizer = trained(lambda named: AdamW([param for _, param in named] + [unused]))
    assert read(file, optimizer.state_dict()).record == pytest.approx(live(optimizer))


def test_the_rules_see_one_record_at_its_step(file: Path) -> None:
    checkpoint = read(file, trained(AdamW, steps=4).state_dict())
    observed = checkpoint.observed
    assert observed.records == ((4, checkpoint.record),)
    assert observed.recipe is not None
    assert (observed.recipe.betas, observed.recipe.eps) == ((0.9, 0.999), 1e-8)


def test_a_saved_underflow_is_found_with_its_remedy(file: Path) -> None:
    weight = nn.Parameter(torch.ones(50, dtype=torch.float16))
    optimizer = torch.optim.Adam([weight], lr=1e-3, eps=1e-6)
    for _ in range(20):
        weight.grad = torch.full_like(weight, 1e-4)  # squared, below the least that fp16 has
        optimizer.step()
    (told,) = diagnose(saved(file, optimizer.state_dict())).findings
    assert (told.finding.rule, told.finding.severity) == ("eps-size", "warning")
    assert told.finding.remedy["eps"] > 1e-6


def test_groups_that_differ_in_what_rules_ask_for_have_no_recipe(file: Path) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(3))], "eps": eps} for eps in (1e-8, 1e-6)]
    optimizer = AdamW(groups)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(3)
    optimizer.step()
    assert read(file, optimizer.state_dict()).observed.recipe is None


# --- where the state is


def lightning(optimizers: list[Optimizer]) -> dict[str, Any]:
    return {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {"weight": torch.ones(2)},
        "optimizer_states": [optimizer.state_dict() for optimizer in optimizers],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1, "name": "x"},
    }


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"model": {"weight": torch.ones(3)}, "optimizer": state, "step": 3},
        lambda state: {"trainer": {"optimizers": [state]}},
        lambda state: {"optimizer": {"optimizer": state, "scaler": None}},
        lambda state: (torch.ones(1), state),
    ],
    ids=["bare", "beside a model", "in a list", "in a wrapper", "in a tuple"],
)
def test_the_state_is_found_wherever_it_is(nest: Callable[[Any], Any], file: Path) -> None:
    optimizer = trained(two_groups)
    assert read(file, nest(optimizer.state_dict())).record == pytest.approx(live(optimizer))


def test_several_optimizers_are_told_apart_by_their_place(file: Path) -> None:
    one, other = trained(KINDS["Adam"]), trained(KINDS["AdamW"], steps=7)
    checkpoint = read(file.with_suffix(".ckpt"), lightning([one, other]))
    expected = {f"optimizer_states.0.{key}": value for key, value in live(one).items()}
    expected |= {f"optimizer_states.1.{key}": value for key, value in live(other).items()}
    assert checkpoint.record == pytest.approx(expected)
    assert checkpoint.step == 7


def test_groups_that_share_a_name_are_kept_apart(file: Path) -> None:
    def make(named: list[Any]) -> Optimizer:
        return AdamW([{"params": named[:2], "name": "same"}, {"params": named[2:], "name": "same"}])

    assert read(file, trained(make).state_dict()).observed.groups == ["same", "same#1"]


def test_a_group_name_that_would_break_a_key_or_the_terminal_is_made_plain(file: Path) -> None:
    state = trained(AdamW).state_dict()
    state["param_groups"][0]["name"] = "lr/encoder\x1b[31m\n"
    assert read(file, state).observed.groups == ["lr.encoder.[31m."]


def test_a_state_keyed_by_parameter_names_is_read(file: Path) -> None:
    optimizer = trained(AdamW)
    state = optimizer.state_dict()
    names = state["param_groups"][0].pop("param_names")
    by_name = {names[place]: value for place, value in state["state"].items()}
    gathered = {"state": by_name, "param_groups": [state["param_groups"][0] | {"params": names}]}
    assert read(file, gathered).record == pytest.approx(live(optimizer))


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "epoch=1-step=3.ckpt"])
def test_a_folder_with_one_state_is_read(name: str, tmp_path: Path) -> None:
    optimizer = trained(AdamW)
    saved(tmp_path / name, lightning([optimizer]) if name.endswith("ckpt") else optimizer.state_dict())
    saved(tmp_path / "scheduler.pt", {"last_epoch": 3})
    (tmp_path / "trainer_state.json").write_text("{}")
    assert read_checkpoint(tmp_path).record == pytest.approx(live(optimizer))


def test_a_step_is_told_from_where_it_is(file: Path) -> None:
    state = trained(AdamW).state_dict()
    record = read(file, state).record

    def without_step(more: object = 0.0) -> dict[str, Any]:
        return {place: {k: v for k, v in own.items() if k != "step"} for place, own in state["state"].items()}

    for step in (3, 3.0, torch.tensor(3)):
        same = {place: own | {"step": step} for place, own in state["state"].items()}
        assert read(file, state | {"state": same}).record == record
    in_group = {"state": without_step(), "param_groups": [state["param_groups"][0] | {"step": 3}]}
    assert (read(file, in_group).step, read(file, in_group).record) == (3, record)
    beside = read(file, {"global_step": 3, "optimizer": state | {"state": without_step()}})
    assert (beside.step, beside.record) == (3, record)
    nowhere = read(file, state | {"state": without_step()})
    assert nowhere.step is None
    assert any("bias correction" in note for note in nowhere.notes)
    m = torch.cat([own["exp_avg"].flatten() for own in state["state"].values()]).abs()
    assert nowhere.record["group0/m_hat/p50"] == pytest.approx(float(m.quantile(0.5)))


def test_a_hand_over_is_read_on_both_sides(file: Path) -> None:
    def make(named: list[Any]) -> Optimizer:
        return AdamThenSGD([{"params": named, "sgd_lr": 1e-4}], Adam, switch_at=2, lr=1e-3, sgd_lr=1e-4, momentum=0.9)

    before, after = read(file, trained(make, 2).state_dict()), read(file, trained(make, 3).state_dict())
    assert "group0/r/p50" in before.record
    assert list(after.record) == ["group0/momentum_norm"]
    assert (before.step, after.step) == (2, 3)


# --- what would run code


class Marks:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo run > '{self.marker}'",)


class Evaluates(Marks):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


@pytest.mark.parametrize("hostile", [Marks, Evaluates])
@pytest.mark.parametrize("way", ["zip", "legacy", "zip, protocol 4", "legacy, protocol 4", "pickle", "within"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    hostile: type[Marks], way: str, tmp_path: Path, file: Path
) -> None:
    marker = tmp_path / "marker"
    bomb: object = hostile(marker)
    protocol = 4 if way.endswith("4") else 2
    if way == "pickle":
        file.write_bytes(pickle.dumps(bomb))
    else:
        if way == "within":
            bomb = trained(AdamW).state_dict() | {"more": [bomb]}
        torch.save(bomb, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not way.startswith("legacy"))
    told = refusal(file)
    assert not marker.exists()
    assert "run code" in told or way == "legacy, protocol 4"
    with file.open("rb") as opened:  # that it would have run is no accident of the test
        if way == "pickle":
            pickle.load(opened)
        else:
            torch.load(opened, weights_only=False)
    assert marker.exists()


def test_the_name_that_a_file_asks_for_is_told_with_a_way_to_save_it_readably(file: Path) -> None:
    optimizer = trained(AdamW)
    torch.save(optimizer, file)
    assert "torch.optim.adamw.AdamW" in refusal(file)
    assert "torch.save(optimizer.state_dict(), 'optimizer.pt')" in refusal(file)
    ckpt = saved(file.with_suffix(".ckpt"), lightning([optimizer]) | {"hyper_parameters": argparse.Namespace(lr=0.1)})
    told = refusal(ckpt)
    assert "argparse.Namespace" in told
    assert "trainer.optimizers[0].state_dict()" in told
    assert "save_hyperparameters" in told


# --- what cannot be read


def damaged(file: Path) -> Iterator[bytes]:
    whole = saved(file, trained(AdamW).state_dict()).read_bytes()
    yield from (whole[:length] for length in (5, 100, len(whole) // 2, len(whole) - 30))
    yield b"PK\x03\x04" + bytes(100)


def test_a_file_that_was_cut_short_is_refused(file: Path) -> None:
    for part in damaged(file):
        file.write_bytes(part)
        assert "damaged" in refusal(file)
    whole = saved(file, trained(AdamW).state_dict(), legacy=True).read_bytes()
    for length in (20, 100, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:length])
        assert "damaged" in refusal(file)


@functools.cache
def whole_file(legacy: bool) -> bytes:
    """The same bytes at each call: a legacy file names its tensors by their addresses, and so varies in length."""
    with tempfile.TemporaryDirectory() as folder:
        return saved(Path(folder) / "optimizer.pt", trained(AdamW, steps=1).state_dict(), legacy).read_bytes()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_told_or_does_not_matter(data: st.DataObject, legacy: bool, file: Path) -> None:
    whole = bytearray(whole_file(legacy))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    with contextlib.suppress(CheckpointError):
        read_checkpoint(file)


STATE = {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3), "step": 1}
GROUP = {"params": [0], "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}
TEXT = st.text(max_size=5)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | TEXT
    | st.just(torch.ones(3))
    | st.just(torch.ones(())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 2) | TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(
    state=st.dictionaries(st.sampled_from([*STATE, "max_exp_avg_sq", "momentum_buffer", "state1"]), VALUES),
    group=st.dictionaries(st.sampled_from([*GROUP, "name", "amsgrad", "momentum_decay", "weight_decay"]), VALUES),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_state_of_anything_is_told_or_measured(state: dict[str, Any], group: dict[str, Any], file: Path) -> None:
    saved(file, {"state": {0: STATE | state}, "param_groups": [GROUP | group]})
    try:
        record = read_checkpoint(file).record
    except CheckpointError:
        return
    assert all(isinstance(value, float) for value in record.values())


def bomb(file: Path) -> None:
    """Ten megabytes in ten kilobytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
        archive.writestr("archive/version", "3")


def overlapping(file: Path) -> None:
    """A zip whose directory names one entry many times."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10**4))
        archive.writestr("archive/data/0", bytes(10**4))
        archive.filelist += [archive.filelist[1]] * 50


def plain_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("letter.txt", "hello")


def script(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")


def safetensors(file: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def expanded(file: Path) -> None:
    """Moments of 10^12 elements in four bytes."""
    endless = torch.ones(1).expand(10**12)
    saved(file, {"state": {0: {"exp_avg": endless, "exp_avg_sq": endless, "step": 5}}, "param_groups": [GROUP]})


def state_dict(state: dict[str, Any], group: dict[str, Any] | None = None) -> Callable[[Path], object]:
    return lambda file: saved(file, {"state": {0: state}, "param_groups": [GROUP | (group or {})]})


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_text("hello, this is a text\n" * 9), "neither of torch.save's formats"),
        (safetensors, "safetensors"),
        (plain_zip, "not one that torch.save wrote"),
        (script, "TorchScript"),
        (bomb, "would grow"),
        (overlapping, "would grow"),
        (expanded, "without their values"),
        (lambda file: saved(file, {"w": torch.ones(2, device="meta")}), "no optimizer state (it has w)"),
        (lambda file: saved(file, nn.Linear(2, 2).state_dict()), "no optimizer state (it has weight, bias)"),
        (lambda file: saved(file, torch.ones(3)), "no optimizer state, but a Tensor"),
        (lambda file: saved(file, AdamW([torch.ones(1, requires_grad=True)]).state_dict()), "made no step yet"),
        (state_dict(STATE, {"betas": None}), "lr, betas and eps"),
        (state_dict(STATE, {"lr": "high"}), "lr, betas and eps"),
        (state_dict(STATE | {"exp_avg_sq": torch.ones(4)}), "different shapes"),
        (state_dict(STATE | {"exp_avg": torch.ones(3, dtype=torch.long)}), "no numbers"),
        (state_dict({"state1": torch.ones(3, dtype=torch.uint8), "step": 1}), "8 bits"),
    ],
)
def test_what_holds_no_readable_state_is_refused_in_one_sentence(
    write: Callable[[Path], object], told: str, file: Path
) -> None:
    write(file)
    assert told in refusal(file)


def test_folders_without_one_state_say_what_to_name(tmp_path: Path) -> None:
    assert "without an optimizer state" in refusal(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    saved(tmp_path / "checkpoint-500" / "optimizer.pt", {})
    assert "name one of the folders in it: checkpoint-500" in refusal(tmp_path)
    for name in ("last.ckpt", "best.ckpt"):
        saved(tmp_path / name, {})
    assert "name one: best.ckpt, last.ckpt" in refusal(tmp_path)
    shards = tmp_path / "dcp"
    shards.mkdir()
    (shards / "__0_0.distcp").touch()
    assert "dcp_to_torch" in refusal(shards)


@pytest.mark.parametrize("path", ["missing.pt", "x" * 300, "nul\0.pt"])
def test_a_path_to_nothing_is_refused(path: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist|cannot be read"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "no file" in refusal(tmp_path / "pipe.pt")


# --- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
@pytest.mark.parametrize("exact", ["", "exact"])
def test_a_large_state_is_not_loaded(exact: str, file: Path) -> None:
    elements = 16_000_000  # 128 MB of moments
    moments = {"exp_avg": torch.ones(elements), "exp_avg_sq": torch.ones(elements), "step": torch.tensor(9.0)}
    saved(file, {"state": {0: moments}, "param_groups": [GROUP]})
    watch = """
import sys, threading
from adamtune.diagnosis import diagnose
exact = bool(sys.argv[3])
warm = diagnose(sys.argv[2], exact)
def mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024
before, peak, done = mb(), 0.0, threading.Event()
def look():
    global peak
    while not done.wait(0.001):
        peak = max(peak, mb())
watcher = threading.Thread(target=look)
watcher.start()
diagnosis = diagnose(sys.argv[1], exact)
done.set(), watcher.join()
assert diagnosis.step == 9, diagnosis
print(max(peak, mb()) - before)
"""
    small = saved(file.with_name("small.pt"), {"state": {0: STATE}, "param_groups": [GROUP]})
    done = subprocess.run(
        [sys.executable, "-c", watch, str(file), str(small), exact], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 48


def test_a_view_of_a_larger_storage_is_read(file: Path) -> None:
    flat: Tensor = torch.arange(12.0)
    buffer = io.BytesIO()
    torch.save({"state": {0: STATE | {"exp_avg": flat[3:9].view(2, 3).T[:, 0]}}, "param_groups": [GROUP]}, buffer)
    file.write_bytes(buffer.getvalue())
    record = read_checkpoint(file).record
    assert record["group0/m_hat/p50"] == pytest.approx(4 / (1 - 0.9))
