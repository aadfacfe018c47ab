"""The plan of a run: all that it needs, checked, in one frozen object."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from gradmem_jax.data.task import Task
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel.sharding import MeshConfig
from gradmem_jax.training.optimizer import OptimizerConfig

LOWER_IS_BETTER = ("read_loss",)
BEST_METRICS = ("exact_match", "token_accuracy", *LOWER_IS_BETTER)


class Stage(NamedTuple):
    """One stage of a curriculum.

    Attributes:
        model: the model, with this stage's number of WRITE steps.
        task: the task.
        name: what progress lines call it.
    """

    model: MemoryModel
    task: Task
    name: str


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the parameters of step 0 come from.

    Attributes:
        pretrained: what `load_pretrained` reads the language model from; "" draws it.
        lm_changes: fields of its configuration that are not the checkpoint's.
        init_from: workdir of another run, whose parameters are taken; "" for none.
        init_checkpoint: which of them: "best", "latest", or a step.
    """

    pretrained: str = ""
    lm_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str = ""
    init_checkpoint: str = "best"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All that a run needs; `build` makes it of a configuration, and checks it.

    experiments/configs/default.py explains the attributes not listed here, fields of the same name.

    Attributes:
        fields: the whole configuration, as config.json has it.
        task_name: a name of gradmem_jax/data/tasks.py.
        stages: the task in growing sizes, the task itself last.
        next_stage_at: exact match that ends a stage but the last.
        start: where the parameters of step 0 come from.
        optimizer: the outer optimizer.
        mesh: how devices are arranged.
    """

    fields: Mapping[str, Any]
    method: str
    task_name: str
    stages: tuple[Stage, ...]
    next_stage_at: float
    start: Start
    optimizer: OptimizerConfig
    frozen: tuple[str, ...]
    mesh: MeshConfig
    seed: int
    shuffle: bool
    num_steps: int
    batch_size: int
    num_micro_batches: int
    log_every: int
    log_to: tuple[str, ...]
    evaluate_every: int
    save_every: int
    num_eval_samples: int
    skip_nonfinite: int
    stop_at_exact_match: float | None
    best_metric: str
    final_split: str
    final_num_write_steps: tuple[int, ...]

    @property
    def target(self) -> Stage:
        """The last stage: the task itself, and the model that is wanted."""
        return self.stages[-1]

    def model_with(self, **changes: Any) -> MemoryModel:
        """The model with other values of some fields of its configuration."""
        return model_with(self.target.model, **changes)

    def score(self, metrics: Mapping[str, float]) -> float:
        """How good an evaluation is by `best_metric`; more is better."""
        sign = -1 if self.best_metric in LOWER_IS_BETTER else 1
        return sign * metrics[self.best_metric]


def model_with(model: MemoryModel, **changes: Any) -> MemoryModel:
    """A model with other values of some fields of its configuration."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))
