"""`rookery pull`: a published checkpoint from the hub into its local cache, resumable and checked.

A name is an alias of `models.toml`, or `org/repo`, or `org/repo/file`. A repository of several checkpoints is listed
and not guessed at.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from .errors import StartupError
from .hub import HubFile, hub_errors, name_one_of, weights_files

_ALIASES = Path(__file__).parent / "models.toml"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name for files of a repository; of several, the latest is meant."""

    repository: str
    files: str
    """Pattern of their names."""
    about: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """What lies on the disk now, and how `rookery serve` names it."""

    path: Path
    reference: str
    checked: bool
    """Its SHA-256 is the one the hub gives."""


def aliases() -> Mapping[str, Alias]:
    """Every alias by name."""
    with _ALIASES.open("rb") as file:
        return {name: Alias(**fields) for name, fields in tomllib.load(file).items()}


def pull(name: str, revision: str | None = None) -> Pulled:
    """Download what `name` stands for, or go on with a download that was broken off.

    Raises:
        StartupError: there is no such thing, it is not one file, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    alias = aliases().get(name)
    parts = name.removeprefix("hf:").split("/", 2)
    if alias is not None:
        repository, file = alias.repository, None
    elif len(parts) > 1 and all(parts):
        repository, file = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    else:
        raise StartupError(
            f"{name} is neither an alias nor org/repo", "rookery pull alone lists the aliases", exit_code=2
        )
    if file is None:
        with hub_errors(repository):
            files = weights_files(repository, revision)
        file = _choose(repository, files, alias)
    with hub_errors(f"{repository}/{file}"):
        path = Path(hf_hub_download(repository, file, revision=revision))
    at = f"@{revision}" if revision else ""
    return Pulled(path, f"hf:{repository}/{file}{at}", _check(path))


def _choose(repository: str, files: list[HubFile], alias: Alias | None) -> str:
    """The file that is meant."""
    if alias is not None:
        matching = [file for file in files if fnmatch.fnmatchcase(file.name, alias.files)]
        if matching:
            return max(matching, key=lambda file: (file.date, file.name)).name
        raise name_one_of(repository, files, f"{repository} has no {alias.files} any more", "rookery pull ")
    if len(files) == 1:
        return files[0].name
    raise name_one_of(repository, files, f"{repository} has {len(files)} checkpoints", "rookery pull ")


def _check(path: Path) -> bool:
    """Whether the hub gave a digest; its cache keeps large files under the SHA-256 they must have.

    Raises:
        StartupError: the file has another one.
    """
    stored = path.resolve()
    if not _SHA256.fullmatch(stored.name):
        return False
    with stored.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != stored.name:
        raise StartupError(f"{path} is damaged: its SHA-256 is not the hub's", f"delete {stored} and pull again")
    return True


def render_aliases() -> Table:
    """Every alias as a table."""
    table = Table("name", "what it is", "repository", box=None)
    for name, alias in aliases().items():
        table.add_row(name, alias.about, alias.repository)
    return table
