"""Ray Tune's ASHA as a peer of `benchmarks.search`, in a process of its own: python -m benchmarks.search_ray JSON

Trials go by the library's own random search and scheduler, one worker of one thread a core; steps are counted from
what they report, in the order the reports come. Prints the answers as JSON.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
from typing import Any

import torch

from adamtune.history import TrialRequest
from adamtune.task import load_task
from adamtune.trial import Trial
from benchmarks.search_peers import distributions, recipe_of, rungs

CORES = len(os.sched_getaffinity(0))
DIVERGED = 1e9
"""Reported as the loss of a trial that diverged; ASHA takes percentiles, and infinity has none."""


def asha(ref: str, args: dict[str, Any], horizon: int, seed: int, trial_seed: int, cap: int) -> dict[str, Any]:
    """One run until `cap` training steps are spent: the steps, and its answers as (steps, the study's parameters)."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    looks = rungs(horizon)

    class Trained(tune.Trainable):  # type: ignore[misc, name-defined]
        def setup(self, config: dict[str, float], task: Any = None) -> None:
            torch.set_num_threads(1)
            self._task = task
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, float]) -> bool:
            self._trial = Trial(
                self._task, TrialRequest(recipe_of(new_config), trial_seed, horizon), torch.device("cpu")
            )
            return True

        def step(self) -> dict[str, Any]:
            report = self._trial.advance(next(look for look in looks if look > self._trial.step))
            loss = report.values["loss"] if report else DIVERGED
            return {"loss": loss, "steps": self._trial.step, "done": self._trial.outcome is not None}

    class Count(tune.Stopper):  # type: ignore[misc, name-defined]
        """Hears every report, in order."""

        def __init__(self) -> None:
            self.steps: dict[str, int] = {}
            self.best = math.inf
            self.answers: list[tuple[int, dict[str, float]]] = []

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.steps[trial_id] = result["steps"]
            if result["steps"] == horizon and result["loss"] < min(self.best, DIVERGED):
                self.best = result["loss"]
                self.answers.append((sum(self.steps.values()), result["config"]))
            return False

        def stop_all(self) -> bool:
            return sum(self.steps.values()) >= cap

    count = Count()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            object_store_memory=2**28, _temp_dir=folder, _node_ip_address="127.0.0.1",
        )  # fmt: skip
        tune.Tuner(
            tune.with_resources(tune.with_parameters(Trained, task=load_task(ref, args)), {"cpu": 1}),
            param_space={
                name: tune.loguniform(one.low, one.high) if one.log else tune.uniform(one.low, one.high)
                for name, one in distributions().items()
            },
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=-1,  # until the steps are spent
                reuse_actors=True,
                search_alg=BasicVariantGenerator(random_state=seed, max_concurrent=CORES),
                scheduler=ASHAScheduler(time_attr="steps", max_t=horizon, grace_period=looks[0]),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                stop=count,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # nobody reads one
            ),
        ).fit()
        ray.shutdown()
    return {"spent": sum(count.steps.values()), "trials": len(count.steps), "answers": count.answers}


if __name__ == "__main__":
    print(json.dumps(asha(**json.loads(sys.argv[1]))))
