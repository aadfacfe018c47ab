"""How long a run will take from here: steps, compiles, evaluations, saves and the final report."""

import dataclasses
import math

from experiments.run.plan import RunPlan

# Until the run has measured them, in parts of what it has measured.
_EVALUATION = 0.5  # of the time of as many training samples
_EVALUATION_COMPILE = 0.25  # of the time a training step compiles
_REPORT_COMPILES = 4  # evaluations would compile as long as what the final report compiles


@dataclasses.dataclass
class TimeLeft:
    """What a run has measured of itself, and what that says of the rest.

    Attributes:
        plan: of the run.
        compiles: seconds that each stage waited for its first step.
        evaluations: seconds that each evaluation took, its save included; the first one compiles.
        saves: seconds that each save without an evaluation took.
    """

    plan: RunPlan
    compiles: list[float] = dataclasses.field(default_factory=list)
    evaluations: list[float] = dataclasses.field(default_factory=list)
    saves: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, step: int, step_seconds: float, stage: int) -> float:
        """Returns seconds.

        Args:
            step: steps done, at least 1; if an evaluation follows, it is still to come.
            step_seconds: seconds of a step.
            stage: number of the curriculum's stage, from 0.
        """
        plan = self.plan
        compile_seconds = max(self.compiles, default=0.0)
        samples = plan.num_eval_samples / plan.batch_size
        evaluation = min(self.evaluations, default=_EVALUATION * step_seconds * samples)
        evaluation_compile = _EVALUATION_COMPILE * compile_seconds
        if len(self.evaluations) > 1:
            evaluation_compile = self.evaluations[0] - evaluation
        elif self.evaluations:  # the one there was compiled too
            evaluation_compile = min(evaluation_compile, evaluation / 2)
            evaluation -= evaluation_compile
        steps = plan.num_steps - step
        count = self._multiples(step, plan.evaluate_every) + 1  # the last step is evaluated too
        return (
            steps * step_seconds
            + (len(plan.stages) - 1 - stage) * compile_seconds
            + count * evaluation
            + self._num_saves(step) * min(self.saves, default=0.0)
            + (0 if self.evaluations else evaluation_compile)
            + self._final_report(evaluation, evaluation_compile)
        )

    def _num_saves(self, step: int) -> int:
        """How many saves without an evaluation are to come."""
        every = self.plan.save_every
        if not every:
            return 0
        both = math.lcm(every, self.plan.evaluate_every)
        return self._multiples(step, every) - self._multiples(step, both)

    def _multiples(self, step: int, every: int) -> int:
        """How many multiples of `every` there are from `step` on, before the last step."""
        return -(-self.plan.num_steps // every) - -(-step // every)

    def _final_report(self, evaluation: float, compile_seconds: float) -> float:
        """Seconds of evaluations with several K, of answers, and of compiling those programs."""
        trained = self.plan.target.model.config.num_write_steps
        numbers = {*self.plan.final_num_write_steps, trained}
        share = sum((k + 1) / (trained + 1) for k in numbers)
        return share * evaluation + _REPORT_COMPILES * compile_seconds
