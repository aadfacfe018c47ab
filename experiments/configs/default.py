"""Every field of a training run, with the paper's settings for KV retrieval.

Other tasks have another `config.data`, the fields of their class in gradmem_jax/data/tasks.py.

Another config starts from `get_config()` and changes what it needs; any field can be overridden on
the command line, as in `--config.data.num_pairs=8`. What a config has set is not set back to None
there, but in a file of its own, which --config names:

  from experiments.configs import kv_quick

  def get_config():
      config = kv_quick.get_config()
      config.stop_at_exact_match = None
      return config
"""

import dataclasses
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from gradmem_jax.checks import AUTOMATIC, require
from gradmem_jax.data.tasks import GENERATED, TASKS
from gradmem_jax.foreign_text import shown
from gradmem_jax.methods import METHODS
from gradmem_jax.parallel.sharding import MeshConfig
from gradmem_jax.training.optimizer import OptimizerConfig

LEFT_OPEN = (
    "dtype",
    "param_dtype",
    "scan_layers",
    "remat",
    "attention",
    "gather",
    "matmul_precision",
)


def fields_of(config_class: type, leave_out: tuple[str, ...] = ()) -> ConfigDict:
    """Makes a ConfigDict of the defaults of a dataclass, fields without default left out.

    Args:
        config_class: a dataclass of numbers, strings and optional numbers.
        leave_out: names of fields that the caller sets in another way.
    """
    types = typing.get_type_hints(config_class)
    fields = ConfigDict()
    for field in dataclasses.fields(config_class):
        if field.name in leave_out or field.default is dataclasses.MISSING:
            continue
        default = field.default
        if default is None:
            default = config_dict.placeholder(typing.get_args(types[field.name])[0])
        fields[field.name] = default
    return fields


def require_known(field: str, name: object, known: Mapping[str, object], hint: str = "") -> None:
    """Refuses a name that is not in a registry, and says how to add to it.

    Args:
        field: what has the name.
        name: the name.
        known: the registry.
        hint: what else may help.

    Raises:
        ValueError: it is not there.
    """
    require(
        isinstance(name, str) and name in known,
        f"{field}={shown(name)} is not known; choose one of {tuple(known)}, or name the module "
        f"that adds it in the environment variable GRADMEM_MODULES.{hint}",
    )


def set_known(fields: ConfigDict, **values: object) -> None:
    """Sets those of some fields that a configuration has, and leaves the others out.

    Methods have different fields, so that one configuration of many methods is written with it, as
    in `set_known(config.lm, num_heads=8, state_size=16)`.

    Args:
        fields: what is changed, such as `config.lm`.
        **values: by name.
    """
    fields.update({name: value for name, value in values.items() if name in fields})


def get_config(
    method: str = "gradmem", task: str = "kv_retrieval", pretrained: bool = False
) -> ConfigDict:
    """Returns the configuration.

    Args:
        method: how the memory is written, a name of gradmem_jax/methods.py.
        task: a name of gradmem_jax/data/tasks.py.
        pretrained: whether the language model is read from `config.pretrained`, so that
            `config.lm` has those fields only that a checkpoint leaves open.
    """
    require_known("method", method, METHODS)
    require_known("task", task, TASKS)
    config = ConfigDict()
    config.method = method
    config.task = task
    # What `load_pretrained` reads, a path or org/name@revision; the tokenizer comes from there too.
    config.pretrained = ""
    config.seed = 0  # parameters and samples are functions of it
    config.num_steps = 1_000_000
    config.batch_size = 64
    # Parts of each device's batch, processed one after the other; -1: as many as suit the machine.
    config.num_micro_batches = AUTOMATIC
    # Cores of a CPU that are devices, unless JAX_NUM_CPU_DEVICES says otherwise; -1: as many as the
    # batch divides over. Each has its own copy of the parameters.
    config.cpu_devices = 1 if pretrained else AUTOMATIC
    config.mesh = fields_of(MeshConfig)  # how devices are arranged; -1: all that are left
    config.log_every = 50  # steps between progress lines, and between curriculum decisions
    # Where scalars go: names of experiments/run/log_to.py, such as "tensorboard" and "wandb".
    config.log_to = ("tensorboard",)
    config.evaluate_every = 500  # steps between evaluations, each with a checkpoint
    config.save_every = 0  # steps between checkpoints beside those; 0: none
    config.num_eval_samples = 5000
    config.skip_nonfinite = 0  # steps of NaN or infinite loss or gradient to skip before stopping
    config.stop_at_exact_match = config_dict.placeholder(float)  # of an evaluation
    config.best_metric = "exact_match"  # which checkpoint is best; token_accuracy, read_loss
    config.shuffle = task not in GENERATED  # in every epoch another order
    config.final_split = "test"  # of the report at the end; evaluations on the way: validation
    config.frozen = ()  # regular expressions; "^lm/" trains all but the language model
    # Workdir of another run, whose parameters this one starts from; those of its language model
    # only, if it has another method.
    config.init_from = ""
    config.init_checkpoint = "best"  # which parameters of that run: best, latest, or a step

    config.lm = fields_of(METHODS[method].lm, leave_out=("rope_scaling",))
    if pretrained:
        config.lm = ConfigDict({name: config.lm[name] for name in LEFT_OPEN if name in config.lm})
    config.model = fields_of(METHODS[method].config, leave_out=("pad_id",))
    if "write_learning_rate" in config.model:
        config.model.num_write_steps = 2
        config.model.write_learning_rate = 0.04
    config.data = fields_of(TASKS[task], leave_out=("seed", "split", "num_samples"))
    if pretrained and "add_begin_token" in config.data:
        config.data.add_begin_token = True
    config.optimizer = fields_of(OptimizerConfig, leave_out=("num_steps",))

    # An optax optimizer for WRITE in place of plain gradient descent: its name and arguments, set
    # as in --config.write_optimizer.name=adam
    # "--config.write_optimizer.arguments={'learning_rate': 0.1, 'eps_root': 1e-8}".
    config.write_optimizer = ConfigDict({"name": "", "arguments": ConfigDict()})

    # Stages of a curriculum; the last one is the task itself. Empty: no curriculum.
    config.curriculum = ConfigDict()
    config.curriculum.num_pairs = ()
    config.curriculum.max_context_tokens = ()  # in place of num_pairs; 0: any length
    config.curriculum.num_write_steps = ()  # as many, or empty for the same K
    config.curriculum.exact_match = 0.9  # of the last log_every training batches, to go on

    # At the end the best checkpoint is evaluated with these numbers of WRITE steps.
    one_pass = METHODS[method].model.one_pass
    config.final_num_write_steps = (0, 1) if one_pass else (0, 1, 2, 3, 5, 8)
    return config
