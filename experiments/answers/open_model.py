"""Models to write and ask with: a finished run, or a pretrained language model as it is."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.run.exports_on_hub import find_run
from experiments.run.saved_run import SavedRun
from gradmem_jax.checks import (
    require,
    require_choice,
    require_instance,
    require_integer,
    require_number,
)
from gradmem_jax.data.task import Tokenizer, ids_without_token
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.load import load_pretrained
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.storage import hub
from gradmem_jax.trees import Params

# Learning rates of a WRITE that nobody trained; Adam's is in units of the embeddings' size.
WRITE_LEARNING_RATES = {"adam": 0.3, "sgd": 1.0}
NUM_MEMORY_TOKENS = 8  # m that nobody chose
PRETRAINED_OPTIONS = (
    "num_memory_tokens",
    "num_write_steps",
    "write_optimizer",
    "write_learning_rate",
    "tokenizer_path",
    "pad_token",
    "add_begin_token",
    "scan_layers",
)
FLAGS = {"checkpoint_name": "checkpoint", "tokenizer_path": "tokenizer"}  # others: as the option


class OpenModel(NamedTuple):
    """A model with all that it takes to turn texts into memories and memories into answers.

    Attributes:
        model: the model.
        params: its parameters.
        tokenizer: its tokenizer.
        end_id: the id that ends an answer, if there is one.
        prompt: from a question to the text that an answer continues.
        notes: what `open_model` takes to open the same model again.
    """

    model: MemoryModel
    params: Params
    tokenizer: Tokenizer
    end_id: int | None
    prompt: Callable[[str], str]
    notes: dict[str, Any]

    @property
    def limit(self) -> int:
        """Tokens that one WRITE takes."""
        return self.model.config.lm.max_positions - self.model.write_positions

    @property
    def never(self) -> np.ndarray:
        """Ids of the model that its tokenizer has no token for; none of them is an answer."""
        return ids_without_token(self.tokenizer, self.model.config.lm.vocab_size)


def open_model(path: str, options: Mapping[str, Any] | None = None) -> OpenModel:
    """Opens a finished run by `open_run`, or another model by `open_pretrained`.

    Args:
        path: the workdir of a run, an export among them, or what `load_pretrained` reads; of a
            name on a hub the notes keep the commit.
        options: keyword arguments of the function that opens it; None for none.

    Raises:
        ValueError: there is no such model, or an option is wrong or not one of its kind.
    """
    place, options = pathlib.Path(hub.pinned(path)), {**(options or {})}
    require(
        os.path.exists(place) or hub.name_on_hub(place) is not None,
        f"there is no model {path}; name a run's workdir or a model's files.",
    )
    run = find_run(place)
    foreign = [f"--{FLAGS.get(name, name)}" for name in foreign_options(run, options)]
    require(not foreign, f"{path} is {kind_of(run)}: leave out {', '.join(foreign)}.")
    opened = open_pretrained(place, **options) if run is None else open_run(run, **options)
    if run is None:  # files of before this option have none
        options.setdefault("add_begin_token", True)
    return opened._replace(notes={"model": whole_place(place), "options": options})


def whole_place(path: str | pathlib.Path) -> str:
    """A path that means the same in every folder; a name on a hub with its commit."""
    is_on_hub = hub.name_on_hub(path) is not None
    return hub.pinned(str(path)) if is_on_hub else str(pathlib.Path(path).absolute())


def kind_of(run: pathlib.Path | None) -> str:
    """What `find_run` found, in words."""
    return "a run, configured by its config.json" if run else "a pretrained language model"


def foreign_options(run: pathlib.Path | None, options: Mapping[str, Any]) -> list[str]:
    """The options that a model of this kind does not have."""
    known = ("checkpoint_name",) if run else PRETRAINED_OPTIONS
    return [name for name in options if name not in known]


def open_run(workdir: pathlib.Path, checkpoint_name: str = "best") -> OpenModel:
    """Opens a run of experiments.train, or what experiments.export made of one.

    Args:
        workdir: its folder.
        checkpoint_name: "best", "latest", or a step.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    require_instance("checkpoint_name", checkpoint_name, str)
    run = SavedRun(workdir)
    model, task, _ = run.plan.target
    _, params = run.params(checkpoint_name)
    end_id = getattr(task, "end_id", None) or getattr(run.tokenizer, "end_id", None)
    prompt = getattr(task, "prompt", _as_asked)
    return OpenModel(model, params, run.tokenizer, end_id, prompt, {})


def open_pretrained(
    path: pathlib.Path,
    num_memory_tokens: int = NUM_MEMORY_TOKENS,
    num_write_steps: int = 300,
    write_optimizer: str = "adam",
    write_learning_rate: float | None = None,
    tokenizer_path: str | None = None,
    pad_token: str = "",
    add_begin_token: bool = True,
    scan_layers: bool = False,
) -> OpenModel:
    """Puts GradMem around a pretrained language model that was never trained to write or read.

    Nothing is learned beforehand: WRITE predicts with the language model's own head, and the
    memory starts from the mean of all token embeddings.

    Args:
        path: what `load_pretrained` reads.
        num_memory_tokens: m.
        num_write_steps: K; without meta-training it takes many.
        write_optimizer: "adam", or "sgd" for plain gradient steps.
        write_learning_rate: of plain steps, or of Adam in units of the embeddings' root mean
            square, so that one value suits models of any scale; None takes a usual one.
        tokenizer_path: where the tokenizer is, if it is not beside the model.
        pad_token: what fills contexts, see `load_tokenizer`.
        add_begin_token: whether contexts and prompts begin with a token, as the tokenizer's own
            files say.
        scan_layers: stack the layers, which compiles fast.

    Raises:
        ValueError: there is no model or no tokenizer, or an option is wrong.
    """
    require_integer("num_memory_tokens", num_memory_tokens, 1)
    require_integer("num_write_steps", num_write_steps, 0)
    require_instance("tokenizer_path", tokenizer_path, str | None)
    require_instance("pad_token", pad_token, str)
    require_instance("add_begin_token", add_begin_token, bool)
    require_instance("scan_layers", scan_layers, bool)
    require_choice("write_optimizer", write_optimizer, tuple(WRITE_LEARNING_RATES))
    usual = WRITE_LEARNING_RATES[write_optimizer]
    rate = usual if write_learning_rate is None else write_learning_rate
    require_number("write_learning_rate", rate, above=0)
    lm, lm_params, tokenizer = load_pretrained(
        path, tokenizer=tokenizer_path, pad_token=pad_token, scan_layers=scan_layers
    )
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer; name one with --tokenizer.")
    if not add_begin_token:
        tokenizer = dataclasses.replace(tokenizer, begin_id=None)
    _require_room(num_memory_tokens, lm)
    embedding = token_embeddings(lm, lm_params)
    optimizer = None
    if write_optimizer == "adam":
        optimizer = scaled_adam(rate, embedding)
    config = GradMemConfig(
        lm=lm,
        pad_id=tokenizer.pad_id,
        num_memory_tokens=num_memory_tokens,
        num_write_steps=num_write_steps,
        write_learning_rate=rate,
        write_head=False,
    )
    start = np.tile(embedding.mean(axis=0), (num_memory_tokens, 1)).astype(lm.param_dtype)
    model = GradMem(config, optimizer)
    params = model.init(jax.random.key(0), lm_params) | {"initial_memory": jnp.asarray(start)}
    return OpenModel(model, params, tokenizer, tokenizer.end_id, _as_asked, {})


def resize_memory(opened: OpenModel, num_memory_tokens: int) -> OpenModel:
    """What `open_pretrained` opens with another m; the language model's parameters are shared.

    Args:
        opened: what it and `open_model` opened.
        num_memory_tokens: m.

    Raises:
        ValueError: m is wrong.
    """
    require_integer("num_memory_tokens", num_memory_tokens, 1)
    old: Any = opened.model.config
    _require_room(num_memory_tokens, old.lm)
    config = dataclasses.replace(old, num_memory_tokens=num_memory_tokens)
    start = jnp.tile(opened.params["initial_memory"][:1], (num_memory_tokens, 1))
    options = opened.notes["options"] | {"num_memory_tokens": num_memory_tokens}
    return opened._replace(
        model=dataclasses.replace(opened.model, config=config),
        params=opened.params | {"initial_memory": start},
        notes=opened.notes | {"options": options},
    )


def _require_room(num_memory_tokens: int, lm: LMConfig) -> None:
    require(
        num_memory_tokens < lm.max_positions,
        f"num_memory_tokens={num_memory_tokens} leaves no room in the {lm.max_positions} positions "
        "of this model; take fewer.",
    )


def _as_asked(question: str) -> str:
    """The prompt of a model that was not trained on a form of questions."""
    return question


def token_embeddings(lm: LMConfig, lm_params: Params) -> np.ndarray:
    """Embeddings [V, d] of all tokens as they enter the model; Gemma multiplies those stored."""
    return getattr(lm, "embedding_scale", 1.0) * np.asarray(lm_params["embedding"], np.float64)


def scaled_adam(rate: float, embedding: np.ndarray) -> optax.GradientTransformation:
    """Adam with a rate in units of the root mean square of the embeddings."""
    scale = float(np.sqrt(np.square(np.asarray(embedding, np.float64)).mean()))
    return optax.adam(rate * scale, eps_root=1e-12)
