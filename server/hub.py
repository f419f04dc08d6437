"""The hub where checkpoints are published: which weights a repository has, and its errors in an operator's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import StartupError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_WEIGHTS = (".pth", ".safetensors")
_DATE = re.compile(r"20\d{6}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One weights file of a repository."""

    name: str
    size_bytes: int | None = None

    @property
    def date(self) -> str:
        """In its name, as YYYYMMDD; "" when there is none."""
        return max(_DATE.findall(self.name), default="")


def weights_files(repository: str, revision: str | None = None) -> list[HubFile]:
    """The weights files of a repository, by name; to be called within `hub_errors`."""
    from huggingface_hub import HfApi

    info: ModelInfo = HfApi().model_info(repository, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    return sorted(
        (HubFile(entry.rfilename, entry.size) for entry in siblings if entry.rfilename.endswith(_WEIGHTS)),
        key=lambda file: file.name,
    )


def name_one_of(repository: str, files: Sequence[HubFile], cause: str, command: str) -> StartupError:
    """The error for a name that fits no single file: every command that would."""
    if not files:
        return StartupError(f"{repository} has no .pth and no .safetensors file", "name a repository of RWKV weights")
    lines = [f"    {command}{repository}/{file.name}{_size(file)}" for file in files]
    return StartupError(cause, "\n".join(["name one of them:", *lines]), exit_code=2)


def _size(file: HubFile) -> str:
    return "" if file.size_bytes is None else f"   # {file.size_bytes / 1e9:.2f} GB"


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """The hub's errors in one line, each with what to do."""
    import httpx  # the hub client's own: it lets some of its errors through
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise StartupError(f"{what} is gated", "accept its terms on the hub and set HF_TOKEN") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise StartupError(
            f"{what} is not in the local cache and the hub cannot be reached",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE",
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise StartupError(
            f"the hub has no {what}", "check the name; a private repository needs HF_TOKEN", exit_code=2
        ) from error
    except errors.HFValidationError as error:
        raise StartupError(f"{what} names no repository", "write org/repo or org/repo/file", exit_code=2) from error
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartupError(
            f"{what} could not be fetched: {cause}",
            "check the network and HF_ENDPOINT; the same command goes on where it stopped",
        ) from error
