"""LightningCLI's YAML: the optimizer, and of the trainer's arguments those that are the recipe's.

No lr_scheduler is written. LightningCLI steps one once an epoch (`LightningCLI.configure_optimizers` returns
`[optimizer], [lr_scheduler]`, and an interval is not said in YAML), and a schedule in updates so stepped would hold the
whole run in its first few.
"""

from __future__ import annotations

from typing import Any

from adamtune.export.format import Context, Format, Settings
from adamtune.export.python_module import python_module
from adamtune.export.unsaid import groups_unsaid, schedule_unsaid, switch_unsaid
from adamtune.recipe import Recipe

_CLASSES = {"adamw": "torch.optim.AdamW", "adam": "torch.optim.Adam", "sgd": "torch.optim.SGD"}
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def _settings(recipe: Recipe, context: Context) -> Settings:
    own: dict[str, Any] = {"betas": list(recipe.betas), "eps": recipe.eps}
    if recipe.optimizer == "sgd":
        own = {"momentum": recipe.momentum}
    values = {
        "optimizer": {
            "class_path": _CLASSES[recipe.optimizer],
            "init_args": {"lr": recipe.lr} | own | {"weight_decay": recipe.weight_decay},
        },
        "trainer": {
            "gradient_clip_val": recipe.clip_norm,
            "gradient_clip_algorithm": "norm",
            "precision": _PRECISIONS[recipe.precision],
            "accumulate_grad_batches": recipe.accumulate,
        },
    }
    unsaid = [
        *groups_unsaid(recipe, "LightningCLI gives the optimizer all parameters as one group"),
        *schedule_unsaid(
            recipe, "LightningCLI would step a scheduler once an epoch; none is written, lr stays constant"
        ),
        *switch_unsaid(recipe, "Lightning keeps its optimizer to the end"),
    ]
    return Settings(values, tuple(unsaid))


_CLI = '''def configured(module: LightningModule, model: nn.Module | None = None) -> dict:
    """What configure_optimizers returns: the recipe's optimizer and schedule, moved once an optimizer step.

    Names in GROUPS are those within `model`, the module itself where None is given.
    """
    total_steps = int(module.trainer.estimated_stepping_batches)
    optimizer, scheduler = build_optimizer(module if model is None else model, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class RecipeCLI(LightningCLI):
    """LightningCLI with the recipe in place of the optimizer in the YAML file, whose trainer arguments hold."""

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: torch.optim.Optimizer, lr_scheduler: object = None
    ) -> dict:
        """See LightningCLI.configure_optimizers."""
        return configured(lightning_module)
'''


def _companion(recipe: Recipe, context: Context) -> str:
    return python_module(
        recipe,
        title="Lightning with the optimizer recipe that YAML cannot say, written by adamtune.",
        use="""RecipeCLI(MyModule, MyData)  # in place of LightningCLI, with the YAML file written beside this module

Without the command line interface, in the LightningModule:

def configure_optimizers(self):
    return configured(self)  # or configured(self, self.net), where net is what the recipe was tuned on""",
        imports=["", "from lightning.pytorch import LightningModule", "from lightning.pytorch.cli import LightningCLI"],
        more=_CLI,
    )


FORMAT = Format(
    name="lightning",
    consumer="LightningCLI",
    syntax="yaml",
    settings=_settings,
    how="Read by LightningCLI with --config.",
    companion=_companion,
)
