"""Runs of a tiny model, for tests."""

import dataclasses

import optax

from experiments.configs import default
from experiments.run import initial_state, workdir
from experiments.run.build import build
from gradmem_jax.storage import checkpoint
from gradmem_jax.training.step import init_state


def tiny_config(method="gradmem", **changes):
    config = default.get_config(method)
    config.num_steps = 8
    config.batch_size = 8
    config.log_every = 2
    config.evaluate_every = 4
    config.num_eval_samples = 24
    config.final_num_write_steps = (0, 1)
    config.lm.width = 8
    config.lm.num_layers = 1
    if "num_heads" in config.lm:
        config.lm.num_heads = 2
    config.lm.init = "fan_in"
    config.model.num_write_steps = 1
    if "num_memory_tokens" in config.model:
        config.model.num_memory_tokens = 2
    config.data.num_pairs = 2
    config.data.key_length = 1
    config.data.value_length = 1
    config.data.alphabet_size = 8
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 2
    config.update_from_flattened_dict(changes)
    return config


def tiny_plan(method="gradmem", **changes):
    return build(tiny_config(method, **changes))


def random_run(folder, config, scores=(0.0,)):
    """A run that was stopped before its first step, with a checkpoint for each score."""
    folder.mkdir()
    plan = build(config)
    workdir.check_workdir(folder, plan)
    with checkpoint.open_checkpoints(folder / "checkpoints") as checkpoints:
        for step, score in enumerate(scores, 1):
            seeded = dataclasses.replace(plan, seed=plan.seed + step - 1)
            state = init_state(initial_state.start_params(seeded), optax.identity())
            checkpoint.save(checkpoints, step, state, {}, {"score": score})


def target_stage(config):
    return build(config).target
