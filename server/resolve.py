"""Which files a model name stands for: a path, `hf:org/repo[/file][@revision]`, or the built-in model.

A wrong name is an error, never another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import StartupError
from .hub import hub_errors, name_one_of, weights_files

BUILT_IN = Path(__file__).parent.parent / "models" / "gosling" / "gosling.safetensors"
WEIGHTS = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on this machine's disk.

    path: weights file or HF-layout folder. name: what clients call it. origin: how the name was understood, for the
    banner. demo: it is the built-in model.
    """

    path: Path
    name: str
    origin: str
    demo: bool = False


def resolve_model(model: str | None) -> ResolvedModel:
    """Find the files of `model`; nothing, or an empty name from the environment, is the built-in model.

    Raises:
        StartupError: nothing is there; the mend says what to write instead.
    """
    if not model:
        if not BUILT_IN.is_file():
            raise StartupError(
                "no model was named and the built-in one is missing from this installation",
                "name one: rookery serve PATH, or rookery serve hf:org/repo",
                exit_code=2,
            )
        return ResolvedModel(BUILT_IN, "gosling", "built in", demo=True)
    if model.startswith("hf:"):
        return _from_hub(model)
    path = Path(model).expanduser()
    if path.is_dir() or path.is_file():
        name = path.stem if path.suffix in WEIGHTS else path.resolve().name
        return ResolvedModel(path, name, f"{'folder' if path.is_dir() else 'file'} {path}")
    raise StartupError(
        f"there is no model at {model}",
        "give a .pth or .safetensors file, an HF-layout folder, or hf:org/repo[/file][@revision]; "
        "`rookery pull` lists published ones",
        exit_code=2,
    )


def _from_hub(reference: str) -> ResolvedModel:
    """`hf:org/repo[/file][@revision]`, from the local hub cache or downloaded (resumable, with progress)."""
    from huggingface_hub import hf_hub_download, snapshot_download

    name, _, revision = reference.removeprefix("hf:").partition("@")
    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise StartupError(
            f"{reference} names no repository", "write hf:org/repo, or hf:org/repo/file.pth", exit_code=2
        )
    repo, file = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    with hub_errors(reference):
        if file is not None:
            path = Path(hf_hub_download(repo, file, revision=revision or None))
        else:
            patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "pytorch_model*.bin"]
            path = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
            if not any(found for kind in ("*.safetensors", "*.bin") for found in path.glob(kind)):
                files = weights_files(repo, revision or None)
                raise name_one_of(repo, files, f"{repo} has no weights in the HF layout", "rookery serve hf:")
    return ResolvedModel(path, Path(file).stem if file else parts[1], f"hub {reference}")
