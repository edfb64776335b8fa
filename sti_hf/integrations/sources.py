"""Where a checkpoint's or a store's files are: in a folder, or in a repository on the Hub."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from sti_hf.errors import ConfigurationError, SourceError, SourceNotFoundError, STIError

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """A folder, or a repository on the Hub.

    `name` is what the user called it. `folder` is the local folder, the subfolder included, or None; `hub` holds the
    arguments with which files are found on the Hub. `variant` and `use_safetensors` choose among several kinds of
    weights, as in `from_pretrained`.
    """

    name: str
    folder: Path | None
    hub: Mapping[str, Any]
    variant: str | None = None
    use_safetensors: bool | None = None
    _found: dict[str, Path | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls, name: str | Path, *, variant: str | None = None, use_safetensors: bool | None = None, **hub: Any
    ) -> Source:
        """The source of that name; `hub` are arguments of `HUB_ARGUMENTS`. A branch on the Hub is taken as it is now.

        Raises `SourceNotFoundError` where there is no such folder and the name is no Hub id either, `SourceError` for
        a file, `ConfigurationError` for other arguments.
        """
        if unknown := sorted(set(hub) - set(HUB_ARGUMENTS)):
            raise ConfigurationError(f"A checkpoint is not found with {unknown[0]}=; {', '.join(HUB_ARGUMENTS)} are.")
        hub = {key: value for key, value in hub.items() if value is not None}
        text, path = str(name), Path(name)
        if text and path.is_dir():
            folder = path / hub.get("subfolder", "")
            if not folder.is_dir():
                raise SourceNotFoundError(f"There is no folder {folder}.")
            return cls(text, folder.absolute(), {}, variant, use_safetensors)
        if text and path.is_file():
            raise SourceError(f"{text} is a file; give the folder of the checkpoint that it belongs to.")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
            raise SourceNotFoundError(
                f"There is no folder {text}, and it is not the id of a repository on the Hub either."
            )
        return cls(text, None, hub, variant, use_safetensors)._pinned()

    def _pinned(self) -> Source:
        """The same at the commit that its revision names now, so that all files are of one."""
        found = self.find(CONFIG_FILE) or self.find(ADAPTER_FILE)
        commit = re.search(r"/snapshots/([0-9a-f]{40})/", str(found))
        return replace(self, hub={**self.hub, "revision": commit[1]}) if commit else self

    @property
    def location(self) -> str:
        """What Transformers' `from_pretrained` takes for it, together with `hub`."""
        return self.name if self.folder is None else str(self.folder)

    def find(self, name: str) -> Path | None:
        """Where a file of it is on this machine (fetched, if need be), or None where it has no such file."""
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        if name not in self._found:  # once: `force_download` would fetch it each time
            try:
                found = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **self.hub)
            except OSError as error:
                raise SourceNotFoundError(" ".join(str(error).split())) from error
            self._found[name] = None if found is None else Path(found)
        return self._found[name]

    def fetch(self, patterns: Iterable[str]) -> Path:
        """The local folder that has all files of it that match one of the patterns (`fnmatch`), fetched, if need be.

        Where the Hub cannot be reached, it has those that are on this machine already.
        """
        if self.folder is not None:
            return self.folder
        arguments = {name: value for name, value in self.hub.items() if name not in ("subfolder", "proxies")}
        subfolder = self.hub.get("subfolder", "")
        allowed = [f"{glob.escape(subfolder)}/{pattern}" if subfolder else pattern for pattern in patterns]
        try:
            snapshot = snapshot_download(self.name, allow_patterns=allowed, **arguments)
        except OSError as error:
            snapshot = getattr(error, "snapshot_path", None)  # not reached, and known to lack files
            if snapshot is None:
                reason = " ".join(str(error).split())
                raise SourceNotFoundError(f"The files of {self.name} cannot be fetched: {reason}") from error
        return Path(snapshot) / subfolder

    def config(self) -> dict[str, Any]:
        """Its `config.json`. Raises `SourceNotFoundError` where it has none, `SourceError` where it is damaged."""
        path = self.find(CONFIG_FILE)
        if path is None and self.folder is None:
            raise SourceNotFoundError(
                f"There is no {CONFIG_FILE} of {self.name} on https://huggingface.co, or it cannot be reached from "
                "here and is not in the cache."
            )
        if path is None:
            raise SourceNotFoundError(f"{self.name} is not a checkpoint: it has no {CONFIG_FILE}.")
        return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises `SourceError` where it does not."""
    refuse_pointer(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SourceError(f"{path} is damaged: it is not a valid JSON file ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is damaged: it does not hold a JSON object; fetch it again.")
    return content


def refuse_pointer(path: Path) -> None:
    """Raises `SourceError` where Git LFS has left a pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SourceError(f"{path} is only a pointer of Git LFS; fetch the file itself with `git lfs pull`.")


@contextmanager
def in_one_sentence(said: str) -> Iterator[None]:
    """Whatever Transformers, safetensors or torch raise inside becomes a `SourceError` that begins with `said`."""
    try:
        yield
    except (STIError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{said} ({type(error).__name__}: {reason[:300]}).") from error
