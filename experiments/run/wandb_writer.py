"""Scalars of a run in Weights & Biases: a run of its own, which goes on when the run goes on."""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from experiments.program import files
from experiments.program.console import log
from experiments.run.scalar_writer import RunToWrite
from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.writing import require_no_link

_ID = re.compile(r"[a-z0-9]{1,64}")
_PLACE = "wandb_run.json"
_FINISH_SECONDS = 60.0  # what is not sent by then stays in the folder, for `wandb sync`


def import_wandb() -> Any:
    """The package, imported only if somebody asks for it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import wandb

        if not hasattr(wandb, "init"):
            raise ImportError("a folder that is called wandb, as it makes them itself")
    except ImportError as error:
        raise ValueError(
            "log_to has 'wandb', which is not installed: pip install -e '.[wandb]', or leave it "
            "out of --config.log_to."
        ) from error
    return wandb


class WandbWriter:
    """Sends scalars, or keeps them to be sent, by the settings that users of wandb know (WANDB_*).

    No failure of it ends training: it is said once, and training goes on. The folder keeps the id
    of the run, and what of the last step was written: steps that are computed again after a
    stop are the same and are not written twice.
    """

    def __init__(self, run: RunToWrite) -> None:
        """Starts a run, or goes on with the one that the workdir names.

        Args:
            run: what is written.

        Raises:
            ValueError: wandb is not installed, or its folder in the workdir is a link.
        """
        wandb = import_wandb()
        self._run: Any = None
        self._place = run.workdir / _PLACE
        require_no_link(run.workdir / "wandb")
        earlier = self._earlier() if run.first_step else None
        self._id, self._last, self._names = earlier or (secrets.token_hex(4), 0, set())
        project = os.environ.get("WANDB_PROJECT") or "gradmem_jax"
        name = os.environ.get("WANDB_NAME") or run.workdir.resolve().name

        def start(mode: str | None) -> None:
            self._run = wandb.init(
                project=project,
                name=name,
                id=self._id,
                resume="allow",
                mode=mode,
                dir=str(run.workdir),
                config=dict(run.fields),
                allow_val_change=True,
                reinit="create_new",  # somebody else's stays as it is
                settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SECONDS),
            )
            self._remember()
            folder = os.path.dirname(self._run.dir)
            where = f"`wandb sync {folder}`" if self._run.offline else self._run.url
            log.info("scalars go to Weights & Biases: %s", where)

        self._try(lambda: start(None), "scalars are kept in the workdir to be sent later")
        if self._run is None:
            self._try(lambda: start("offline"), "nothing is kept")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name, unless they were written before the run was stopped."""
        if self._run is None or step < self._last:
            return
        if step > self._last:
            self._last, self._names = step, set()
        new = {name: value for name, value in values.items() if name not in self._names}
        self._names |= new.keys()

        def send() -> None:
            self._run.log(new, step=step)
            self._remember()

        self._try(send, "nothing more is kept")

    def close(self) -> None:
        """Ends the run there; what is not sent within a minute stays in the folder."""
        if self._run is not None:
            self._try(self._run.finish, "what was not sent is in the workdir, for `wandb sync`")

    def _earlier(self) -> tuple[str, int, set[str]] | None:
        """Id and last step of the run that the workdir names, and what that step has."""
        try:
            found = files.read_json(self._place)
            if _ID.fullmatch(found["id"]) and type(found["step"]) is int:
                return found["id"], found["step"], {*found["names"]}
        except (ValueError, KeyError, TypeError):
            pass
        return None

    def _remember(self) -> None:
        files.write_json(
            self._place, {"id": self._id, "step": self._last, "names": sorted(self._names)}
        )

    def _try(self, call: Callable[[], object], otherwise: str) -> None:
        """Calls something; if it fails, says so and that nothing more is tried."""
        try:
            call()
        except Exception as error:  # whatever wandb, its network or its disk raises
            self._run = None
            why = one_line(f"{type(error).__name__}: {error}", 300)
            log.warning("Weights & Biases failed (%s); training goes on, %s.", why, otherwise)
