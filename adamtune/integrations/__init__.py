"""The probe where people train: callbacks for Lightning and for transformers' Trainer.

    from adamtune.integrations.lightning import AdamProbeCallback       # needs lightning
    from adamtune.integrations.transformers import AdamProbeCallback    # needs transformers

Accelerate needs none: `AdamProbe` takes the optimizer that `accelerator.prepare` gives back.

    probe = adamtune.AdamProbe(optimizer, model, every=50)
    for step, batch in enumerate(loader, start=1):
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch))
            optimizer.step()
            if accelerator.sync_gradients and not optimizer.step_was_skipped:
                probe.step()                                    # before zero_grad: sign flips need the gradient
            optimizer.zero_grad()
        if probe.records and probe.records[-1][0] > logged:
            logged, record = probe.records[-1]
            accelerator.log(record, step=logged)

Nothing here is imported by the rest of adamtune.
"""
