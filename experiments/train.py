r"""Trains a way of writing memory on a task and evaluates it with the context removed.

Run again with the same --workdir, a stopped run goes on from its last checkpoint. SIGTERM,
Ctrl-C and a closed terminal let it finish the steps in flight, save, and exit with status 75.

Example:
  python -m experiments.train --workdir=runs/kv_quick
  python -m experiments.train --config=experiments/configs/kv_paper.py:n8_k2 \
      --workdir=runs/n8_k2

--config.mesh arranges several devices, --distributed joins several processes: docs/devices.md.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.program import console, cores, heap, hosts, startup
from experiments.program.console import log
from experiments.run import whole_run
from experiments.run.build import build
from experiments.run.hub_names import with_commits
from experiments.run.nonfinite import NonFiniteError
from experiments.run.stopping import EXIT_STOPPED, STORAGE_ERRORS, Stopped
from experiments.run.workdir import as_begun
from gradmem_jax.storage.checkpoint import CheckpointError

with startup.known_fields():
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        str(pathlib.Path(__file__).parent / "configs" / "kv_quick.py"),
        "What to train: a file of experiments/configs, perhaps with an argument behind a colon. "
        "Fields, set as in --config.seed=1, are explained in experiments/configs/default.py.",
    )
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of this run: checkpoints, TensorBoard, metrics.json (required).",
    required=True,
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "This is one of several processes. JAX finds what the other flags leave open, on Cloud TPU, "
    "SLURM and Open MPI.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, or JAX_COORDINATOR_ADDRESS."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are, or JAX_NUM_PROCESSES.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0, or JAX_PROCESS_ID.", lower_bound=0
)


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates the best checkpoint.

    Args:
        config: see experiments/configs/default.py.
        workdir: the run's folder.

    Returns:
        What is written to metrics.json.

    Raises:
        ValueError: the configuration is wrong, before anything is compiled.
        NonFiniteError, Stopped, CheckpointError: see `whole_run.train`.
    """
    config = as_begun(with_commits(config, workdir), workdir)
    return whole_run.train(build(config), workdir)


def _config() -> ConfigDict:
    config = _CONFIG.value
    try:
        return config.lock()
    except OSError as error:  # from whatever is done with a configuration that was not found
        raise ValueError(f"--config: {' '.join(str(error).split())}") from error


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    heap.share_arenas()
    console.set_up_logging()
    config, workdir = _config(), pathlib.Path(_WORKDIR.value)
    hosts.connect(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    # Before the plan is made, which may use a device.
    cores.make_devices(config.cpu_devices, config.batch_size, config.mesh)
    if not hosts.is_first():
        log.setLevel("WARNING")
    try:
        train(config, workdir)
    except Stopped as signal:
        log.info("stopped by %s; the same command goes on from here", signal)
        hosts.disconnect()
        return EXIT_STOPPED
    except (CheckpointError, NonFiniteError) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        log.error(
            "cannot read or write: %s. Make space for %s, or mend its disk or permissions; the "
            "same command then goes on from the last checkpoint.",
            error,
            workdir,
        )
        return 1
    return 0


if __name__ == "__main__":
    startup.run(main)
