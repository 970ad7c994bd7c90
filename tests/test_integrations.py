from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adamtune.diagnosis import diagnose
from adamtune.diagnosis.checkpoint import read_checkpoint
from adamtune.errors import CheckpointError, ProbeError
from adamtune.probe import AdamProbe

os.environ.setdefault("WANDB_DISABLED", "true")
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
ON_DISK = {"m_hat", "sqrt_v_hat", "r", "lr_r", "below_eps", "never_updated", "nonfinite"}
"""Statistics that a checkpoint tells too."""


def of_checkpoint(record: dict[str, float], prefix: str = "adam/") -> dict[str, float]:
    plain = {key.removeprefix(prefix): value for key, value in record.items()}
    return {key: value for key, value in plain.items() if key.split("/")[1] in ON_DISK}


@pytest.mark.parametrize(("module", "library"), [("lightning", "Lightning"), ("transformers", "transformers")])
def test_a_missing_library_is_told_in_one_sentence(module: str, library: str, tmp_path: Path) -> None:
    for missing in (module, "pytorch_lightning"):
        (tmp_path / f"{missing}.py").write_text(f"raise ImportError('No module named {missing}')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import adamtune.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = f"ImportError: adamtune.integrations.{module} needs {library}: pip install {module}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, last)


def test_the_callbacks_are_imported_by_nobody(tmp_path: Path) -> None:
    code = "import sys, adamtune.integrations, adamtune.sweeps; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- Lightning


def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch")


def make_module(pl: Any, optimizers: int = 1) -> Any:
    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.nets = nn.ModuleList(nn.Linear(4, 2) for _ in range(optimizers))
            self.automatic_optimization = optimizers == 1
            self.seen: list[dict[str, float]] = []

        def training_step(self, batch: Tensor, index: int) -> Tensor | None:
            if self.automatic_optimization:
                return self.nets[0](batch).pow(2).mean()
            for net, optimizer in zip(self.nets, self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(net(batch).pow(2).mean())
                optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            made = [torch.optim.AdamW(net.named_parameters(), lr=0.1) for net in self.nets]
            if not self.automatic_optimization:
                return made
            schedule = torch.optim.lr_scheduler.LambdaLR(made[0], lambda step: 1 / (1 + step))
            return made, [{"scheduler": schedule, "interval": "step"}]

        def train_dataloader(self) -> Any:
            return DataLoader(X, batch_size=4)  # type: ignore[arg-type]

    return Module()


def fit(pl: Any, folder: Path, callback: Any, module: Any, ckpt: Path | None = None, **more: Any) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(folder, name="", version="logs")
    trainer = pl.Trainer(
        **{"max_steps": 7, "max_epochs": -1, **more},
        logger=logger,
        callbacks=[callback],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=False,
    )
    trainer.fit(module, ckpt_path=ckpt)
    return trainer


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_lightning_logs_what_each_nth_step_did(tmp_path: Path) -> None:
    pl = lightning()
    from adamtune.integrations.lightning import AdamProbeCallback

    callback = AdamProbeCallback(every=3)
    trainer = fit(pl, tmp_path, callback, make_module(pl))
    assert [step for step, _ in callback.records] == [3, 6]
    logged = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    assert "adam/group0/r/p50" in logged[0].split(",")
    assert len(logged) == 3
    _, record = callback.records[-1]
    assert {"adam/group0/flips", "adam/group0/grad_norm", "adam/group0/update_to_weight/p50"} <= set(record)
    # lr_r is by the lr of the step, not of the next: at the sixth it is lr / 6
    assert record["adam/group0/lr_r/p50"] / record["adam/group0/r/p50"] == pytest.approx(0.1 / 6)
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_lightnings_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    pl = lightning()
    from adamtune.integrations.lightning import AdamProbeCallback

    with_probe, without = make_module(pl), make_module(pl)
    fit(pl, tmp_path / "a", AdamProbeCallback(every=1), with_probe)
    fit(pl, tmp_path / "b", pl.Callback(), without)
    for one, other in zip(with_probe.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_lightning_with_accumulation_several_optimizers_and_a_resumed_run(tmp_path: Path) -> None:
    pl = lightning()
    from adamtune.integrations.lightning import AdamProbeCallback

    accumulating = AdamProbeCallback(every=2)
    fit(pl, tmp_path / "a", accumulating, make_module(pl), accumulate_grad_batches=4, max_steps=4)
    assert [step for step, _ in accumulating.records] == [2, 4]

    several = AdamProbeCallback(every=2)
    fit(pl, tmp_path / "b", several, make_module(pl, 2), max_steps=10)  # Lightning counts the steps of both
    assert [step for step, _ in several.records] == [4, 8]
    assert {key.split("/")[0] for key in several.records[0][1]} == {"adam0", "adam1"}

    first = AdamProbeCallback(every=4)
    trainer = fit(pl, tmp_path / "c", first, make_module(pl), max_steps=3)
    trainer.save_checkpoint(tmp_path / "c" / "last.ckpt")
    second = AdamProbeCallback(every=4)
    fit(pl, tmp_path / "d", second, make_module(pl), tmp_path / "c" / "last.ckpt", max_steps=9)
    assert [step for step, _ in first.records + second.records] == [4, 8]


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_lightnings_checkpoint_is_diagnosed_as_the_training_was_measured(tmp_path: Path) -> None:
    pl = lightning()
    from adamtune.integrations.lightning import AdamProbeCallback

    callback = AdamProbeCallback(every=7)
    module = make_module(pl)
    module.save_hyperparameters({"lr": 0.1, "name": "plain"})
    trainer = fit(pl, tmp_path, callback, module)
    trainer.save_checkpoint(tmp_path / "epoch=0.ckpt")
    checkpoint = read_checkpoint(tmp_path / "epoch=0.ckpt")
    assert checkpoint.step == 7
    expected = of_checkpoint(callback.records[-1][1])
    same = {key: value for key, value in expected.items() if "lr_r" not in key}  # the scheduler has moved lr on
    assert {key: checkpoint.record[key] for key in same} == pytest.approx(same)
    assert set(checkpoint.record) == set(expected)
    assert diagnose(tmp_path).step == 7

    module.save_hyperparameters({"kind": Rows()})
    trainer.save_checkpoint(tmp_path / "epoch=0.ckpt")
    with pytest.raises(CheckpointError, match=r"test_integrations\.Rows.*trainer\.optimizers\[0\]\.state_dict"):
        read_checkpoint(tmp_path / "epoch=0.ckpt")


# --- transformers


class Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index], "labels": X[index].sum()}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.net(x)[:, 0] - labels).pow(2).mean()}


def make_trainer(folder: Path, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = {"max_steps": 7, "logging_steps": 2, "report_to": "none", "use_cpu": True, "learning_rate": 0.1}
    arguments |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "save_strategy": "no", "optim": "adamw_torch"}
    training = transformers.TrainingArguments(output_dir=str(folder), **(arguments | more))
    return transformers.Trainer(Model(), training, train_dataset=Rows())


def logged(trainer: Any, key: str) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if key in entry]


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_transformers_logs_what_each_nth_step_did_beside_its_own_logs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    from adamtune.integrations.transformers import AdamProbeCallback

    callback = AdamProbeCallback(trainer, every=3)
    trainer.add_callback(callback)
    trainer.train()
    assert [step for step, _ in callback.records] == [3, 6]
    assert logged(trainer, "adam/group0/r/p50") == [3, 6]
    assert logged(trainer, "loss") == [2, 4, 6]  # at step 6 both
    record = callback.records[-1][1]
    assert {"adam/group0/flips", "adam/group1/grad_norm", "adam/group0/update_to_weight/p50"} <= set(record)
    # the linear schedule's lr of the sixth step of seven
    assert record["adam/group0/lr_r/p50"] / record["adam/group0/r/p50"] == pytest.approx(0.1 * 2 / 7)
    trainer.train()
    assert [step for step, _ in callback.records] == [3, 6, 3, 6]


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_transformers_reports_reach_its_reporting_callbacks(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    from transformers import TrainerCallback

    from adamtune.integrations.transformers import AdamProbeCallback

    class Reports(TrainerCallback):  # type: ignore[misc]
        seen: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: object) -> None:
            self.seen.append((state.global_step, dict(logs)))

    trainer.add_callback(Reports())
    trainer.add_callback(AdamProbeCallback(trainer, every=5))
    trainer.train()
    assert [step for step, logs in Reports.seen if "adam/group0/r/p50" in logs] == [5]


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_transformers_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    with_probe, without = make_trainer(tmp_path), make_trainer(tmp_path)
    from adamtune.integrations.transformers import AdamProbeCallback

    with_probe.add_callback(AdamProbeCallback(with_probe, every=1))
    with_probe.train()
    without.train()
    for one, other in zip(with_probe.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_transformers_checkpoint_is_diagnosed_as_the_training_was_measured(tmp_path: Path) -> None:
    more = {"save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, lr_scheduler_type="constant", **more)
    from adamtune.integrations.transformers import AdamProbeCallback

    callback = AdamProbeCallback(trainer, every=7)
    trainer.add_callback(callback)
    trainer.train()
    folder = tmp_path / "checkpoint-7"
    for path in (folder, folder / "optimizer.pt"):
        checkpoint = read_checkpoint(path)
        assert checkpoint.step == 7
        assert checkpoint.record == pytest.approx(of_checkpoint(callback.records[-1][1]))
    with pytest.raises(CheckpointError, match="name one of the folders in it: checkpoint-7"):
        read_checkpoint(tmp_path)


@pytest.mark.consumers
def test_an_interval_of_no_steps_is_refused() -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    from adamtune.integrations import lightning, transformers

    with pytest.raises(ProbeError, match="at least 1, not 0"):
        lightning.AdamProbeCallback(every=0)
    with pytest.raises(ProbeError, match="at least 1, not 0"):
        transformers.AdamProbeCallback(None, every=0)


# --- Accelerate


@pytest.mark.consumers
@pytest.mark.filterwarnings("default")
def test_the_probe_takes_accelerates_optimizer(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Rows(), batch_size=4))
    probe = AdamProbe(optimizer, model, every=2)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            if accelerator.sync_gradients and not optimizer.step_was_skipped:
                probe.step()
            optimizer.zero_grad()
    assert [step for step, _ in probe.records] == [2, 4]  # eight batches, two a step
    record = dict(probe.records[-1][1])
    assert "group0/flips" in record
    accelerator.save_state(str(tmp_path / "state"))
    checkpoint = read_checkpoint(tmp_path / "state")
    assert checkpoint.step == 4
    assert checkpoint.record == pytest.approx(of_checkpoint(record, ""))
