"""LightningCLI's YAML: the optimizer, and of the trainer's arguments those that are the recipe's.

No lr_scheduler is written. LightningCLI steps one once an epoch (`LightningCLI.configure_optimizers` returns
`[optimizer], [lr_scheduler]`, and an interval is not said in YAML), and a schedule in updates so stepped would hold the
whole run in its first few.
"""

from __future__ import annotations

from adamtune.export import told, unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings
from adamtune.recipe import Recipe

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def _settings(recipe: Recipe, context: Context) -> Settings:
    values = {
        "optimizer": {"class_path": told.torch_class(recipe), "init_args": told.torch_arguments(recipe)},
        "trainer": {
            "gradient_clip_val": recipe.clip_norm,
            "gradient_clip_algorithm": "norm",
            "precision": _PRECISIONS[recipe.precision],
            "accumulate_grad_batches": recipe.accumulate,
        },
    }
    unsaid = [
        *unsayable.groups(recipe, "LightningCLI gives the optimizer all parameters as one group"),
        *unsayable.schedule(
            recipe,
            "LightningCLI would step a scheduler once an epoch; none is written, lr stays constant",
            ("schedule", "warmup", "floor", "milestones", "gamma"),
        ),
        *unsayable.switch(recipe, "Lightning"),
    ]
    return Settings(values, tuple(unsaid), {"lr_scheduler": None})


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
    return companion(
        recipe,
        """In place of LightningCLI, with the YAML file written beside this module:

    RecipeCLI(MyModule, MyData)

Or, without the command line interface, in the LightningModule (self.net where the recipe was tuned on that alone):

    def configure_optimizers(self):
        return configured(self)""",
        _CLI,
        imports=["", "from lightning.pytorch import LightningModule", "from lightning.pytorch.cli import LightningCLI"],
    )


FORMAT = Format(
    name="lightning",
    consumer="LightningCLI",
    syntax="yaml",
    settings=_settings,
    how="Read by LightningCLI with --config.",
    companion=_companion,
)
