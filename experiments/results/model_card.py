"""The README.md that makes an export a model repository of the Hugging Face hub.

All that it says comes from the files of the run; what they do not have, it says so.
"""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.program import files
from experiments.program.formatting import markdown
from experiments.results.card_texts import CITATION, CODE, DATA, data_text, usage
from experiments.results.finished_runs import METRICS, label, task_name
from experiments.results.front_matter import LARGEST_CARD, check_license, front_matter, license_of
from experiments.results.run_checks import check_metrics
from experiments.run.exported import README
from experiments.run.saved_run import SavedRun
from experiments.run.workdir import LM
from gradmem_jax.checks import require, require_choice
from gradmem_jax.data.tasks import size_name
from gradmem_jax.foreign_text import one_line
from gradmem_jax.memory.interface import Memory, MemoryModel, memory_floats
from gradmem_jax.storage.hub import Repository, name_on_hub
from gradmem_jax.trees import Params

_NO_LIMIT = 2**31 - 1  # positions
_OF_A_MACHINE = ("data_dir", "tokenizer_path", "pad_token")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#~&])")


class Export(NamedTuple):
    """What is exported.

    Attributes:
        name: what the model is called.
        run: where it is from.
        step: the training step of its parameters.
        params: they.
        dtype: what they are stored as, None as they are.
        license: an identifier of the hub's that somebody chose for the weights, None for none.
    """

    name: str
    run: SavedRun
    step: int
    params: Params
    dtype: str | None = None
    license: str | None = None


class _Base(NamedTuple):
    """The pretrained language model that a run began with.

    Attributes:
        name: its name on a hub, "" if it came from files.
        text: what a reader is told of it.
        license: that its card says, None if it says none.
    """

    name: str
    text: str
    license: str | None


def model_card(export: Export) -> str:
    """Returns the model card of an export, Markdown with YAML in front.

    Raises:
        ValueError: a file of the run is damaged, or the licence is no identifier.
    """
    check_license(export.license)
    metrics, base = _metrics(export), _base(export.run)
    chosen = export.license or (base.license if base else None)
    parts = [
        front_matter(_fields(export, metrics, base, chosen)),
        f"# {_plain(export.name)}",
        _what_it_is(export, base),
        "## Results",
        _results(export, metrics),
        "## How to use it",
        usage(),
        "## Licence",
        _license_text(export, base),
        "## Data",
        data_text(export.run.fields["task"]),
        "## Citation",
        CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(export: Export) -> Mapping[str, Any] | None:
    """metrics.json, if it is of the parameters that are exported."""
    path = export.run.folder / "metrics.json"
    if not path.is_file():
        return None
    found = files.read_json(path)
    try:
        require_choice("best_metric", found["best_metric"], tuple(METRICS))
        check_metrics(found, found["best_metric"])
        for row in found["by_num_write_steps"].values():
            low, high = row["confidence_interval"]
            require(0 <= low <= high <= 1, "confidence_interval is none")
            require(type(row["num_samples"]) is int, "num_samples is no number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(str(error), 200)}); evaluate the run again by its "
            "training command, or move the file away."
        ) from error
    return found if found.get("best_step") == export.step else None


def _base(run: SavedRun) -> _Base | None:
    """The pretrained language model of a run; None if it has none."""
    path = run.fields["pretrained"]
    if not path:
        return None
    if path == str(run.folder / LM):
        return _Base("", "a pretrained language model whose name is not recorded", None)
    name = name_on_hub(path)
    if name is None:
        folder = pathlib.Path(path)
        text = f"a pretrained language model from the files {_plain(folder.name)}"
        return _Base("", text, license_of(folder / README))
    text = f"[{name.repository}](https://huggingface.co/{name.repository})"
    if name.revision:
        text += f" at {_plain(name.revision)}"
    return _Base(name.repository, text, license_of(Repository(name).get(README, LARGEST_CARD)))


def _fields(
    export: Export, metrics: Mapping[str, Any] | None, base: _Base | None, chosen: str | None
) -> dict[str, Any]:
    fields = export.run.fields
    method, task = fields["method"], fields["task"]
    matter: dict[str, Any] = {"library_name": CODE}
    if chosen:
        matter["license"] = chosen
    matter["tags"] = [CODE, "jax", "memory", "test-time-training", method, task]
    if base and base.name:
        matter["base_model"] = base.name
    if task in DATA:
        matter["datasets"] = [DATA[task].hub]
    if metrics:
        matter["metrics"] = ["exact_match"]
        split = fields["final_split"]
        data = {"name": _task(fields), "type": DATA[task].hub if task in DATA else task}
        values = [
            {"type": "exact_match", "name": f"exact match, K = {k}", "value": row["exact_match"]}
            for k, row in _rows(metrics)
        ]
        result = {
            "task": {"type": "question-answering", "name": f"{task}, context removed after WRITE"},
            "dataset": data | {"split": split},
            "metrics": values,
        }
        matter["model-index"] = [{"name": export.name, "results": [result]}]
    return matter


def _task(fields: Mapping[str, Any]) -> str:
    """Task and size, without paths of the machine that it was trained on."""
    data = {name: x for name, x in fields["data"].items() if name not in _OF_A_MACHINE}
    text, size = task_name(dict(fields) | {"data": data}), size_name(fields["task"], data)
    return text if size == fields["task"] else f"{size}: {text}"


def _rows(metrics: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    rows = metrics["by_num_write_steps"]
    return sorted((int(k), row) for k, row in rows.items())


def _what_it_is(export: Export, base: _Base | None) -> str:
    run = export.run
    model = run.plan.target.model
    leaves = jax.tree.leaves(export.params)
    lm = model.config.lm
    stored = export.dtype or " and ".join(sorted({str(np.dtype(x.dtype)) for x in leaves}))
    language_model = type(lm).__name__.removesuffix("Config")
    began = f"begun from {base.text}" if base else "not begun from a pretrained one"
    rows = [
        ("method", _plain(label(run.fields))),
        ("task", _plain(_task(run.fields))),
        (
            "language model",
            f"{language_model}, {lm.num_layers} layers of width {lm.width}, {began}",
        ),
        ("parameters", f"{sum(x.size for x in leaves):,}, stored as {stored}"),
        ("training step", f"{export.step:,}"),
        ("memory of a context", _memory_size(model, export.params)),
        ("WRITE steps K", model.config.num_write_steps),
        ("positions", f"{lm.max_positions:,}" if lm.max_positions < _NO_LIMIT else "any number"),
        ("vocabulary", _vocabulary(run)),
    ]
    return (
        "A model that writes a context into a memory of fixed size and answers from that memory "
        "alone, by [GradMem](https://arxiv.org/abs/2603.13875) in JAX or a method that it is "
        f"compared with. `{CODE}` opens it; `transformers` does not.\n\n"
        + "\n".join(f"- {name}: {text}" for name, text in rows)
    )


def _memory_size(model: MemoryModel, params: Params) -> str:
    """How large the memory of a context is, and whether longer ones take more."""
    sizes = []
    for length in (4, 8):
        ids = jax.ShapeDtypeStruct((1, length), np.int32)
        memory = jax.eval_shape(functools.partial(_write, model), params, ids)
        leaves = jax.tree.leaves(memory)
        sizes.append((memory_floats(memory), sum(x.size * x.dtype.itemsize for x in leaves)))
    floats, num_bytes = sizes[0]
    if sizes[0] == sizes[1]:
        return f"{floats:,} floats, {num_bytes:,} bytes"
    per_token = (sizes[1][0] - floats) / 4
    return f"it grows with the context, by {per_token:,.0f} floats a token"


def _write(model: MemoryModel, params: Params, context_ids: jax.Array) -> Memory:
    return model.write_memory(params, context_ids)[0]


def _vocabulary(run: SavedRun) -> str:
    size = f"{run.tokenizer.vocab_size:,} ids"
    if run.fields["pretrained"]:
        return f"{size}, those of the pretrained model"
    return f"{size}, made of its task; all that it has no id for is the same to it"


def _results(export: Export, metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return (
            f"Not known: the files that this was made of have no results of step {export.step}. "
            "That is exact match by K, the number of samples, their intervals, and the time of "
            "training."
        )
    trained_k = export.run.plan.target.model.config.num_write_steps
    judged = METRICS[metrics["best_metric"]]
    columns = [METRICS["exact_match"]] + ([judged] if judged.field != "exact_match" else [])
    rows = []
    for k, row in _rows(metrics):
        low, high = row["confidence_interval"]
        values = [f"{metric.value(row):.{metric.digits}f}" for metric in columns]
        interval, count = f"{100 * low:.1f} to {100 * high:.1f}", f"{row['num_samples']:,}"
        name = f"{k}, as trained" if k == trained_k else k
        rows.append((name, values[0], interval, *values[1:], count))
    names = [metric.name for metric in columns]
    table = markdown(("K", names[0], "95 % interval", *names[1:], "contexts"), rows)
    time = f"{metrics['steps']:,} steps" if "steps" in metrics else "an unknown number of steps"
    if "seconds" in metrics:
        time += f" in {metrics['seconds'] / 60:,.1f} minutes"
    if metrics.get("devices"):
        time += f" on {_plain(' and '.join(metrics['devices']))}"
    rounded = f" Measured before parameters were rounded to {export.dtype}." if export.dtype else ""
    split = _plain(export.run.fields["final_split"])
    return (
        f"On the split {split}, the context removed after K steps of WRITE:\n\n{table}"
        f"\n\nTraining took {time}; this is the best checkpoint.{rounded}"
    )


def _license_text(export: Export, base: _Base | None) -> str:
    of_base = ""
    if base:
        said = f"is {base.license}" if base.license else "is not recorded here"
        of_base = f" The licence of the language model that it began with, {base.text}, {said}."
    if export.license:
        return f"Of the weights: {export.license}.{of_base}"
    if base and base.license:
        return f"Of the weights: {base.license}, as that of their base.{of_base}"
    return f"None was chosen for the weights, so ask whoever published them.{of_base}"


def _plain(text: object) -> str:
    """A text of others in one line, without what Markdown would obey."""
    return _MARKUP.sub(r"\\\1", one_line(str(text), 200))
