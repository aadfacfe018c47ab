"""Models by their names on the hub of Hugging Face, fetched into its cache.

    org/name   org/name@revision   org/name/file.gguf   org/name/file.gguf@revision

The package `huggingface_hub` does it, with the token, cache and endpoint that its users know. What
a path of this machine names is never looked for on a hub.
"""

import functools
import os
import pathlib
import re
from typing import Any, NamedTuple

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.storage.reading import LARGEST_JSON

_PART = r"[A-Za-z0-9_][\w.-]*"  # of a name or path: none that begins with a dot
_NAME = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(/(?P<file>{_PART}(/{_PART})*\.gguf))?"
    rf"(@(?P<revision>{_PART}(/{_PART})*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """What a name on a hub says.

    Attributes:
        repository: `org/name`.
        file: a GGUF file in it, "" for a model as Hugging Face stores it.
        revision: a branch, tag or commit, "" for that which the hub takes.
    """

    repository: str
    file: str
    revision: str

    def __str__(self) -> str:
        place = f"{self.repository}/{self.file}" if self.file else self.repository
        return f"{place}@{self.revision}" if self.revision else place

    @property
    def is_pinned(self) -> bool:
        """Whether it means the same files for ever."""
        return _COMMIT.fullmatch(self.revision) is not None


def name_on_hub(path: str | os.PathLike[str]) -> HubName | None:
    """The name on a hub that a text is, None if it is a path that is there or no such name."""
    text = os.fspath(path)
    found = _NAME.fullmatch(text)
    if found is None or os.path.lexists(text):
        return None
    return HubName(*(found[group] or "" for group in ("repository", "file", "revision")))


def pinned(path: str, earlier: str = "") -> str:
    """A name on a hub with the commit that it means now; other paths as they are.

    Args:
        path: the name or path.
        earlier: a name with a commit that is to be taken if `path` names the same without one.

    Raises:
        ValueError: the hub has no such model, or cannot be asked.
    """
    name = name_on_hub(path)
    if name is None:
        return path
    known = name_on_hub(earlier)
    if known is not None and known.is_pinned and known._replace(revision="") == name:
        return earlier
    return str(name._replace(revision=Repository(name).commit))


class Repository:
    """A model's files on a hub, in one commit; each is fetched when it is asked for."""

    def __init__(self, name: HubName):
        """Fetches nothing yet."""
        self.name = name

    @functools.cached_property
    def commit(self) -> str:
        """The commit that the revision means.

        Raises:
            ValueError: see `get`.
        """
        if self.name.is_pinned:
            return self.name.revision
        revision = self.name.revision or None
        probe, largest = (self.name.file, None) if self.name.file else ("config.json", LARGEST_JSON)
        path = self._fetch(probe, revision, largest)
        if path is not None:
            return self._checked(path.parts[-2 - probe.count("/")])
        hub = _package(self.name)
        try:
            return self._checked(
                hub.HfApi().model_info(self.name.repository, revision=revision).sha
            )
        except Exception as error:  # of several packages
            raise ValueError(self._refusal(hub, error)) from error

    def _checked(self, commit: Any) -> str:
        require(
            isinstance(commit, str) and _COMMIT.fullmatch(commit) is not None,
            f"the hub says that {self.name} is commit {shown(commit)}, which is none.",
        )
        return commit

    def get(self, file: str, largest: int | None = None) -> pathlib.Path | None:
        """Fetches a file, unless it is in the cache.

        Args:
            file: its path in the repository.
            largest: how many bytes it may have.

        Returns:
            Where it is, None if there is none.

        Raises:
            ValueError: `huggingface_hub` is not installed; there is no such model or revision; the
                hub cannot be asked and the cache does not have it; or the file is larger.
        """
        known = _package(self.name).try_to_load_from_cache(
            self.name.repository, file, revision=self.commit
        )
        if known is None:
            return self._fetch(file, self.commit, largest)
        return pathlib.Path(known) if isinstance(known, str) else None

    def _fetch(self, file: str, revision: str | None, largest: int | None) -> pathlib.Path | None:
        """Asks the hub for a file, or the cache if there is no network; see `get`."""
        hub, place = _package(self.name), (self.name.repository, file)
        try:
            found = hub.get_hf_file_metadata(hub.hf_hub_url(*place, revision=revision))
        except hub.errors.EntryNotFoundError:
            found = None  # what comes next notes it in the cache
        except Exception as error:  # of several packages
            return self._cached(file, revision, error)
        require(
            found is None or largest is None or (found.size is not None and found.size <= largest),
            f"{file} of {self.name} has {found and found.size} bytes; it may have {largest}.",
        )
        try:
            return pathlib.Path(hub.hf_hub_download(*place, revision=revision))
        except hub.errors.RemoteEntryNotFoundError:
            return None
        except Exception as error:
            raise ValueError(self._refusal(hub, error)) from error

    def _cached(self, file: str, revision: str | None, why: Exception) -> pathlib.Path | None:
        """A file in the cache; refuses one that is not there unless HF_HUB_OFFLINE is set."""
        hub = _package(self.name)
        is_refused = isinstance(why, hub.errors.RevisionNotFoundError)
        if not is_refused and not isinstance(why, hub.errors.RepositoryNotFoundError):
            found = hub.try_to_load_from_cache(self.name.repository, file, revision=revision)
            if isinstance(found, str):
                return pathlib.Path(found)
            if hub.constants.HF_HUB_OFFLINE:  # nobody can say whether there is one
                return None
        raise ValueError(self._refusal(hub, why)) from why

    def need(self, file: str, largest: int | None = None, hint: str = "") -> pathlib.Path:
        """Fetches a file that must be there, see `get`; `hint` goes into the message if not."""
        path = self.get(file, largest)
        if path is None:
            hub = _package(self.name)
            where = _endpoint(hub)
            if hub.constants.HF_HUB_OFFLINE:
                where = f"the cache {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
            raise ValueError(f"{self.name} has no {file} in {where}{hint}.")
        return path

    def files(self) -> list[str]:
        """Paths of all files, as far as the hub says."""
        hub = _package(self.name)
        try:
            return hub.HfApi().list_repo_files(self.name.repository, revision=self.commit)
        except Exception:  # whoever asks has something else to say
            return []

    def _refusal(self, hub: Any, error: Exception) -> str:
        """One line that says why a hub did not answer with what was asked."""
        errors, name, where = hub.errors, self.name, _endpoint(hub)
        here = f"there is no {name} here"
        if isinstance(error, errors.GatedRepoError):
            return (
                f"{here}, and {name.repository} is open only to those who accept its terms: do "
                f"that at {where}/{name.repository}, and set HF_TOKEN or run `hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{name.repository} at {where} has no revision {name.revision}."
        if isinstance(error, errors.RepositoryNotFoundError):
            return (
                f"{here}, and {where} has no model {name.repository}, or none that you may read "
                "(HF_TOKEN, or `hf auth login`)."
            )
        if hub.constants.HF_HUB_OFFLINE:
            return (
                f"{here}, nor in the cache {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is "
                "set: fetch it where there is a network, or name a folder of this machine."
            )
        return (
            f"{here}, and it cannot be fetched from {where} ({type(error).__name__}: "
            f"{one_line(str(error), 200)}); look at the network, or name a folder of this machine."
        )


def _endpoint(hub: Any) -> str:
    return one_line(hub.constants.ENDPOINT, 200)


def _package(name: HubName) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(
            f"there is no {name} here; to fetch models by name: pip install huggingface_hub."
        ) from error
    return huggingface_hub
