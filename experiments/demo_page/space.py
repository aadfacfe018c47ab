"""The page as a folder that can be pushed to Hugging Face as a Space of Gradio."""

import functools
import importlib.metadata
import pathlib
import shutil
from collections.abc import Sequence

from experiments.results.front_matter import check_license, front_matter
from experiments.run.exported import exported_files
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.writing import Writer, write_files

_ROOT = pathlib.Path(__file__).parents[2]
_CODE = ("*.py", "*.css", "py.typed")
_MODELS = pathlib.PurePath("experiments/models")
_APP = '''\
"""The page of GradMem, with the models in experiments/models/."""

import os
import sys

from experiments import demo
from experiments.program import startup

on_hub = "SPACE_ID" in os.environ
host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_hub else "127.0.0.1")
port = os.environ.get("GRADIO_SERVER_PORT", "7860")

if __name__ == "__main__":
    sys.argv = [sys.argv[0], f"--host={host}", f"--port={port}"]
    startup.run(demo.main)
'''
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"  # the hub takes no others
_README = """\
{matter}

A language model with frozen weights writes a text into a few vectors by gradient descent at test
time, and answers from these vectors alone ([paper](https://arxiv.org/abs/2603.13875)).

Models: {models}. To run it on your own machine: `pip install -r requirements.txt`, then
`python app.py`.
"""


def write_space(folder: pathlib.Path, models: Sequence[str], license_id: str) -> None:
    """Writes a Space.

    Args:
        folder: where to; a new or empty folder.
        models: exported runs that it shows.
        license_id: what the hub calls the licence of the models.

    Raises:
        ValueError: the folder holds something, the licence is no identifier, a model is no exported
            run, or two have one name.
    """
    require(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"--space={folder} is not empty; name a new folder.",
    )
    check_license(license_id)
    places = {path.resolve().name: path for path in map(pathlib.Path, models)}
    require(
        len(places) == len(models),
        f"two of the models {shown(list(models))} have one name; a Space needs different ones.",
    )
    writers: dict[str, Writer] = {}
    for name, place in places.items():
        for file in exported_files(place):
            writers[str(_MODELS / name / file)] = _copy_of(place / file)
    for path in _code_files():
        writers[str(path.relative_to(_ROOT))] = _copy_of(path)
    version = importlib.metadata.version("gradio")
    requirements = (_ROOT / "requirements.txt").read_text(encoding="utf-8")
    writers["requirements.txt"] = _text(f"{requirements}gradio=={version}\n")
    writers["app.py"] = _text(_APP)
    fields = {
        "title": "GradMem",
        "sdk": "gradio",
        "sdk_version": version,
        "app_file": "app.py",
        "python_version": "3.12",
        "license": license_id,
        "short_description": "See a text being written into memory by gradient descent",
    }
    readme = _README.format(matter=front_matter(fields), models=", ".join(sorted(places)))
    writers["README.md"] = _text(readme)
    writers[".gitattributes"] = _text(_ATTRIBUTES)
    write_files(folder, writers)


def _code_files() -> list[pathlib.Path]:
    """What the packages gradmem_jax and experiments consist of, without models."""
    found = (
        path
        for package in ("gradmem_jax", "experiments")
        for pattern in _CODE
        for path in sorted((_ROOT / package).rglob(pattern))
    )
    return [path for path in found if not path.is_relative_to(_ROOT / _MODELS)]


def _copy_of(source: pathlib.Path) -> Writer:
    return functools.partial(shutil.copyfile, source)


def _text(content: str) -> Writer:
    def write(path: pathlib.Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write
