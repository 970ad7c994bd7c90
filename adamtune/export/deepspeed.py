"""DeepSpeed's configuration: its optimizer and scheduler sections, clipping, precision and accumulation, as JSON.

Keys as `deepspeed.runtime.config` and `deepspeed.runtime.lr_schedules` (0.19) have them. The schedules are DeepSpeed's
own: torch's, which a configuration may name too, refuse the optimizers that DeepSpeed wraps for ZeRO, bf16 and fp16.
Those count one update late: the first two updates both run at the start of the warmup. `_scheduler` makes up for it
where it can, so that after a warmup of three steps or more lr is ours at every update.
"""

from __future__ import annotations

from typing import Any

from adamtune.export import unsayable
from adamtune.export.companion import companion
from adamtune.export.format import Context, Format, Settings, Unsaid
from adamtune.recipe import Recipe, WarmupSteps
from adamtune.schedule import warmup_steps

_AUTOCAST = {
    "fp32": {"enabled": False},
    "bf16": {"enabled": True, "dtype": "bfloat16"},
    "fp16": {"enabled": True, "dtype": "float16"},
}


def settings(recipe: Recipe, context: Context) -> Settings:
    """The recipe in DeepSpeed's keys; `ExportError` where the schedule needs the number of steps and has none."""
    scheduler, of_schedule = _scheduler(recipe, context)
    values = {
        "optimizer": _optimizer(recipe),
        "scheduler": scheduler,
        "gradient_clipping": recipe.clip_norm or 0.0,  # 0 does not clip
        "gradient_accumulation_steps": recipe.accumulate,
        # Its bf16 and fp16 sections would turn the weights too; this is autocast, read from DeepSpeed 0.17.2 on.
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": _AUTOCAST[recipe.precision],
    }
    if recipe.optimizer == "sgd":
        values["zero_allow_untested_optimizer"] = True  # ZeRO refuses SGD otherwise
    unsaid = [
        *unsayable.groups(recipe, "DeepSpeed's configuration has one for all parameters"),
        *of_schedule,
        *unsayable.switch(recipe, "DeepSpeed"),
    ]
    return Settings(values, tuple(unsaid))


def _optimizer(recipe: Recipe) -> dict[str, Any]:
    decay = {"weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return {"type": "SGD", "params": {"lr": recipe.lr, "momentum": recipe.momentum} | decay}
    # torch_adam: torch's own code, not DeepSpeed's fused kernel. "Adam" means AdamW there unless adam_w_mode is false.
    params = {"lr": recipe.lr, "betas": list(recipe.betas), "eps": recipe.eps} | decay | {"torch_adam": True}
    if recipe.optimizer == "adam":
        return {"type": "Adam", "params": params | {"adam_w_mode": False}}
    return {"type": "AdamW", "params": params}


def _scheduler(recipe: Recipe, context: Context) -> tuple[dict[str, Any], list[Unsaid]]:
    schedule = recipe.schedule
    unsaid = list(unsayable.step_decay(recipe, "DeepSpeed"))
    if schedule.kind in ("constant", "step"):
        steps = _warmup_only(recipe, context)
        if steps == 0:  # a schedule all the same: accelerate's DummyScheduler asks for one, and it replaces another
            held = {"warmup_min_lr": recipe.lr, "warmup_max_lr": recipe.lr, "warmup_num_steps": 1}
            return {"type": "WarmupLR", "params": held | _LINEAR}, unsaid
        # From its second update on this is k / steps at update k.
        rise = {"warmup_min_lr": recipe.lr / steps, "warmup_max_lr": recipe.lr, "warmup_num_steps": max(1, steps - 1)}
        why = f"its first update runs at lr / {steps}, not at zero; from update 1 on lr is ours"
        unsaid.append(Unsaid("warmup", why if steps > 2 else _TOO_SHORT))
        return {"type": "WarmupLR", "params": rise | _LINEAR}, unsaid
    total = context.needs_total_steps("deepspeed", f"a {schedule.kind} schedule")
    steps = warmup_steps(schedule, total)
    if schedule.kind == "cosine":
        why = (
            f"its warmup runs one update late, up to lr / {max(1, steps)} lower; from update {steps + 1} on lr is ours"
        )
        unsaid.append(Unsaid("warmup", why if steps > 1 else _TOO_SHORT_TO_DECAY))
        params = {"warmup_min_ratio": 0.0 if steps else 1.0, "warmup_num_steps": max(1, steps)}
        return {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": total} | params | {"cos_min_ratio": schedule.floor} | _LINEAR,
        }, unsaid
    late = f"its warmup runs up to lr / {max(1, steps)} lower"
    if schedule.floor:  # the decay ends where the warmup starts
        late = f"its warmup starts where the decay ends, at {schedule.floor:g} of lr"
    why = f"{late}; from update {steps} on lr is ours"
    unsaid.append(Unsaid("warmup", why if steps > 2 else _TOO_SHORT_TO_DECAY))
    rise = {"warmup_min_lr": schedule.floor * recipe.lr, "warmup_max_lr": recipe.lr}
    params = {"total_num_steps": max(1, total - 1)} | rise | {"warmup_num_steps": max(1, steps - 1)}
    return {"type": "WarmupDecayLR", "params": params | _LINEAR}, unsaid


_TOO_SHORT = "DeepSpeed's schedules begin below lr and take up to three updates to reach it"
_TOO_SHORT_TO_DECAY = f"{_TOO_SHORT}, and then decay up to three updates late"
_LINEAR = {"warmup_type": "linear"}  # DeepSpeed's default is logarithmic


def _warmup_only(recipe: Recipe, context: Context) -> int:
    """Steps of a warmup that nothing follows; where it is none or in steps, the length of the run is not needed."""
    warmup = recipe.schedule.warmup
    if warmup == 0.0:
        return 0
    if isinstance(warmup, WarmupSteps) and context.total_steps is None:
        return warmup.steps
    return warmup_steps(recipe.schedule, context.needs_total_steps("deepspeed", "the warmup"))


_INITIALIZE = '''def initialize(
    model: nn.Module, total_steps: int, config: str | dict, **others: object
) -> tuple[deepspeed.DeepSpeedEngine, object, object, LambdaLR]:
    """deepspeed.initialize with the recipe's optimizer and schedule, which stand in for those named in `config`."""
    optimizer, scheduler = build_optimizer(model, total_steps)
    return deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config, **others)
'''


def _companion(recipe: Recipe, context: Context) -> str:
    return companion(
        recipe,
        """In place of deepspeed.initialize, with the configuration written beside this module:

    engine, optimizer, _, scheduler = initialize(model, total_steps, config="ds_config.json")
    for batch in batches:
        engine.backward(loss(engine, batch))
        engine.step()  # steps the scheduler too""",
        _INITIALIZE,
        imports=["", "import deepspeed"],
    )


FORMAT = Format(
    name="deepspeed",
    consumer="DeepSpeed",
    syntax="json",
    settings=settings,
    how="Read by deepspeed.initialize(config=...), beside the batch size and ZeRO settings of your own.",
    companion=_companion,
)
