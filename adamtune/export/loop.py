"""The training loop that an exported module shows, in the order in which `adamtune.trial` trains."""

from __future__ import annotations

from adamtune.recipe import Recipe

_DTYPES = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}


def training_loop(recipe: Recipe) -> str:
    """Source that trains a model by `build_optimizer`, without the parts that the recipe has no need of."""
    dtype = _DTYPES.get(recipe.precision)
    scaled = recipe.precision == "fp16"
    accumulated = recipe.accumulate > 1
    before = ["optimizer, scheduler = build_optimizer(model, total_steps)"]
    if dtype:
        before.append("device_type = next(model.parameters()).device.type")
    if scaled:
        before.append("scaler = torch.amp.GradScaler(device_type)")
    each = "for number, batch in enumerate(batches, start=1):" if accumulated else "for batch in batches:"
    within = []
    value = "loss(model, batch)"
    if dtype:
        within += [f"with torch.autocast(device_type, {dtype}):", f"    value = {value}"]
        value = "value"
    if accumulated:
        value += " / ACCUMULATE"
    if scaled:
        value = f"scaler.scale({value})"
    elif accumulated:
        value = f"({value})"
    within.append(f"{value}.backward()")
    if accumulated:
        within += ["if number % ACCUMULATE:", "    continue"]
    if recipe.clip_norm is not None:
        if scaled:
            within.append("scaler.unscale_(optimizer)")
        within.append("torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)")
    if scaled:
        within += [
            "scale = scaler.get_scale()",
            "scaler.step(optimizer)",
            "scaler.update()",
            "if scaler.get_scale() >= scale:  # else the gradients overflowed, and the step was skipped",
            "    scheduler.step()",
        ]
    else:
        within += ["optimizer.step()", "scheduler.step()"]
    within.append("optimizer.zero_grad()")
    return "\n".join([*before, each, *(f"    {line}" for line in within)])
