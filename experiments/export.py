r"""Makes a small folder of a trained run, to keep or to share: parameters, configuration, tokens.

Without what only training needs it is a fraction of the run's size. write, ask, evaluate and
--config.init_from take it in place of a run. Example:

  python -m experiments.export --workdir=runs/kv_quick --out=runs/kv_model \
      --dtype=float16
  python -m experiments.write --model=runs/kv_model --context=pairs.txt \
      --out=pairs.safetensors

With --hub_layout the folder is a model repository of the Hugging Face hub, with a model card.
"""

import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.results.front_matter import check_license
from experiments.results.model_card import Export, model_card
from experiments.run.exported import write_exported
from experiments.run.saved_run import SavedRun
from experiments.run.workdir import EXPORTED, PARAMS
from gradmem_jax.checks import DTYPES, require
from gradmem_jax.lm.pretrained.hugging_face import write_config
from gradmem_jax.lm.pretrained.load import load_config

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (required).", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "The folder to write, made if missing (required).", required=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a step.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, DTYPES, "What parameters are stored as; default: as trained, bit by bit."
)
_HUB_LAYOUT = flags.DEFINE_bool("hub_layout", False, "Write a model card, README.md, too.")
_LICENSE = flags.DEFINE_string(
    "license",
    None,
    "Of the weights, for the card: an identifier such as apache-2.0; default: that of the "
    "pretrained language model, if its card says one.",
)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    run, out = SavedRun(pathlib.Path(_WORKDIR.value)), pathlib.Path(_OUT.value)
    require(
        not out.is_dir() or not any(out.iterdir()) or (out / EXPORTED).exists(),
        f"--out={out} has files that are no export; choose a folder of its own.",
    )
    require(
        _HUB_LAYOUT.value or _LICENSE.value is None,
        f"--license={_LICENSE.value} goes into a model card; add --hub_layout.",
    )
    check_license(_LICENSE.value)
    step, params = run.params(_CHECKPOINT.value)
    run.plan.target.model.check_params(params)
    fields = run.fields | {"init_from": ""}  # nobody else has that run
    pretrained = fields["pretrained"]
    lm = write_config(load_config(pretrained)) if pretrained else None
    card = None
    if _HUB_LAYOUT.value:
        name = out.resolve().name
        card = model_card(Export(name, run, step, params, _DTYPE.value, _LICENSE.value))
    files.output_folder("out", out)
    write_exported(
        out,
        params,
        step,
        fields,
        tokenizer=run.tokenizer,
        lm=lm,
        dtype=_DTYPE.value,
        card=card,
    )
    log.info(
        "step %d of %s: %d parameters, %.0f KiB in %s",
        step,
        run.folder,
        sum(x.size for x in jax.tree.leaves(params)),
        (out / PARAMS).stat().st_size / 1024,
        out,
    )


if __name__ == "__main__":
    startup.run(main)
