"""accelerate, by its DeepSpeed plugin: a `deepspeed_config_file`, where alone it takes an optimizer from a file.

Without DeepSpeed accelerate's configuration holds precision only, and the optimizer is the script's: the companion is
then all that is needed, with `mixed_precision`, `gradient_accumulation_steps` and `clip_grad_norm_` for the rest.
"""

from __future__ import annotations

from adamtune.export import deepspeed
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings
from adamtune.recipe import Recipe


def _settings(recipe: Recipe, context: Context) -> Settings:
    told = deepspeed.settings(recipe, context)
    # accelerate refuses a file without ZeRO settings (stage 0 is none), and fills in the batch size of the dataloader.
    own = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 0}}
    return Settings({**told.values, **own}, told.unsaid, placeholders=tuple(own))


_PREPARE = '''def prepare(
    accelerator: Accelerator, model: nn.Module, total_steps: int, *others: object
) -> tuple[object, ...]:
    """What accelerator.prepare makes of the model, the recipe's optimizer and schedule, and `others` (dataloaders).

    The schedule moves once an optimizer step, whatever the number of processes: accelerate's own wrapping would move it
    once for each. Under DeepSpeed the optimizer and schedule named in its file are left aside.
    """
    optimizer, scheduler = build_optimizer(model, total_steps)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config.pop("optimizer", None)
        plugin.deepspeed_config.pop("scheduler", None)
    model, optimizer, *others = accelerator.prepare(model, optimizer, *others)
    scheduler = AcceleratedScheduler(scheduler, optimizer, split_batches=True)
    accelerator.register_for_checkpointing(scheduler)
    return model, optimizer, scheduler, *others
'''


def _companion(recipe: Recipe, context: Context) -> str:
    clip = """
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)"""
    return companion(
        recipe,
        f"""In place of accelerator.prepare; accelerator has mixed_precision and gradient_accumulation_steps as below:

    model, optimizer, scheduler, batches = prepare(accelerator, model, total_steps, batches)
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch)){clip if recipe.clip_norm else ""}
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()""",
        _PREPARE,
        imports=["", "from accelerate import Accelerator", "from accelerate.scheduler import AcceleratedScheduler"],
    )


FORMAT = Format(
    name="accelerate",
    consumer="accelerate's DeepSpeed plugin",
    syntax="json",
    settings=_settings,
    how="Named as deepspeed_config_file; the script passes DummyOptim and DummyScheduler to accelerator.prepare.",
    companion=_companion,
)
