"""The `rookery` command: flags to settings, settings to one verb; exit codes 0, 1 (failed) and 2 (wrong usage)."""

from __future__ import annotations

import gc
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter
from rich.console import Console

from rookery import __version__

from .bench_cli import app as bench_app
from .config import Config, Quantize
from .errors import StartupError
from .listen import listen
from .logs import configure_logging
from .resolve import resolve_model
from .sessions_cli import app as sessions_app

app = App(
    name="rookery",
    help="Serve RWKV language models over the OpenAI HTTP API.",
    version=__version__,
    default_parameter=Parameter(negative=()),
)
serve_app = App(name="serve", config=[cyclopts.config.Env("ROOKERY_", command=False)])
app.command(serve_app)
app.command(bench_app)
app.command(sessions_app)


@serve_app.default
def serve(
    model: str | None = None,
    /,
    *,
    config: Config | None = None,
) -> int:
    """Serve a model over HTTP.

    Args:
        model: A .pth or .safetensors file, an HF-layout folder, or hf:org/repo[/file][@revision]. Default: the
            built-in model, gosling.
        config: Settings.
    """
    config, resolved = config or Config(), resolve_model(model)
    configure_logging(config.log_format)
    listener = listen(config.host, config.port)
    from .engine.spawn import EngineProcess

    engine = EngineProcess.start(config, resolved.path)
    gc.disable()  # nothing of what is imported is garbage
    try:
        from .run import serve as run_server  # while the engine loads
    finally:
        gc.enable()
    return run_server(config, resolved, listener, engine)


@app.command
def inspect(model: str, /, *, json_output: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Print a checkpoint's version, sizes, state per session and memory per dtype, without loading it.

    Args:
        model: As for `serve`.
        json_output: Print JSON instead of a table.
    """
    path = resolve_model(model).path
    from .model.inspect import describe, render

    report = describe(path)
    if json_output:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        Console().print(render(report))
    return 0


@app.command
def convert(
    source: str,
    target: Path,
    /,
    *,
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    quantize: Quantize = "none",
    packed: bool = False,
    force: bool = False,
) -> int:
    """Write a checkpoint as .safetensors: under the official key names, or as the native CPU library reads it.

    A file with --quantize or --packed starts fastest, and its memory is shared with whoever else serves it; only
    Rookery reads it.

    Args:
        source: As for `serve`.
        target: The .safetensors file to write.
        dtype: Type of the stored tensors.
        quantize: Matrices of 8 or 4 bits, for the native CPU library.
        packed: Matrices of float32 or bfloat16 for the same; --dtype says of which.
        force: Overwrite the target.
    """
    from .model.convert import convert as convert_checkpoint

    kept: str | None = quantize if quantize != "none" else None
    if kept is not None and dtype != "keep":
        raise StartupError("--quantize and --dtype exclude each other", "leave --dtype out", exit_code=2)
    if kept is None and packed:
        if dtype not in ("float32", "bfloat16"):
            raise StartupError("--packed needs a type", "add --dtype float32 or --dtype bfloat16", exit_code=2)
        kept = dtype
    stored = None if dtype == "keep" else dtype
    convert_checkpoint(resolve_model(source).path, target, dtype=stored, packed=kept, force=force)
    print(f"wrote {target}")
    return 0


@app.command
def chat(
    question: str | None = None,
    /,
    *,
    base_url: Annotated[str, Parameter(env_var="OPENAI_BASE_URL")] = "http://127.0.0.1:8000/v1",
    api_key: Annotated[str | None, Parameter(env_var="OPENAI_API_KEY")] = None,
    model: str | None = None,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> int:
    """Talk to a server in the terminal; /help there shows what it can do.

    Args:
        question: Ask only this and leave.
        base_url: Any OpenAI-compatible server.
        api_key: Sent as a bearer token.
        model: Default: the first of /v1/models.
        system: System prompt.
        temperature: Default: the server's.
        max_tokens: Longest answer, in tokens. Default: the server's.
    """
    from rookery.clients.chat import talk
    from rookery.clients.client import ServerError

    options = {"temperature": temperature, "max_tokens": max_tokens}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return talk(base_url, api_key, question=question, model=model, system=system, options=given)
    except ServerError as error:
        raise StartupError(str(error), "start one with `rookery serve`, or check --base-url and the key") from error


@app.command
def pull(name: str | None = None, /, *, revision: str | None = None) -> int:
    """Download a published model, or go on with a download that was broken off.

    Args:
        name: An alias, org/repo or org/repo/file. Default: list the aliases.
        revision: A branch, tag or commit of the repository.
    """
    from .pull import pull as pull_model
    from .pull import render_aliases

    if name is None:
        Console().print(render_aliases())
        return 0
    pulled = pull_model(name, revision)
    print(f"{pulled.path}{' (SHA-256 checked)' if pulled.checked else ''}\nrookery serve {pulled.reference}")
    return 0


@app.command
def doctor(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    data_dir: Annotated[Path | None, Parameter(env_var="ROOKERY_DATA_DIR")] = None,
    json_output: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Say what is wrong with this machine and installation, and how to mend it; exit 1 when the server cannot run.

    Args:
        host: Address the server shall listen on.
        port: Its port.
        data_dir: Folder that sessions are to be kept in.
        json_output: Print JSON instead of a table.
    """
    from .doctor import examine, healthy, render, report

    findings = examine(host, port, data_dir)
    if json_output:
        print(json.dumps(report(findings), indent=2))
    else:
        Console().print(render(findings))
    return 0 if healthy(findings) else 1


@app.command
def health(*, base_url: str = f"http://127.0.0.1:{os.environ.get('ROOKERY_PORT', '8000')}") -> int:
    """Exit 0 when the server is ready to answer, 1 when it is not (for container health checks).

    Args:
        base_url: Where the server listens; by default on this machine, on ROOKERY_PORT or 8000.
    """
    try:
        with urllib.request.urlopen(f"{base_url.rstrip('/')}/ready", timeout=5) as answer:
            status = json.load(answer)
    except urllib.error.HTTPError as error:
        print(f"not ready: HTTP {error.code} {error.read(500).decode('utf-8', 'replace')}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"no server at {base_url}: {error}", file=sys.stderr)
        return 1
    print(status.get("status", "ready"))
    return 0


@contextmanager
def _plain_errors(debug: bool) -> Iterator[None]:
    """Two lines for what an operator can mend; the traceback only when asked for."""
    try:
        yield
    except StartupError as error:
        if debug:
            from rich.traceback import Traceback

            Console(stderr=True).print(Traceback())
        print(f"rookery: {error.cause}\n  mend: {error.mend}", file=sys.stderr)
        sys.exit(error.exit_code)


def _with_config_file(tokens: list[str]) -> list[str]:
    """Take `--config FILE` (a TOML file with the flags' names as keys) out of the command line and apply it."""
    path = os.environ.get("ROOKERY_CONFIG")
    if "--config" in tokens:
        at = tokens.index("--config")
        if at + 1 >= len(tokens):
            raise StartupError("--config needs a file", "write --config rookery.toml", exit_code=2)
        path = tokens[at + 1]
        tokens = tokens[:at] + tokens[at + 2 :]
    if path is not None:
        if not Path(path).is_file():
            raise StartupError(f"there is no settings file {path}", "check --config or ROOKERY_CONFIG", exit_code=2)
        toml = cyclopts.config.Toml(path, must_exist=True, use_commands_as_keys=False, allow_unknown=False)
        serve_app.config = (*serve_app.config, toml)
    return tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    with _plain_errors(debug):
        try:
            result = app(
                _with_config_file(tokens), exit_on_error=False, print_error=False, result_action="return_value"
            )
        except cyclopts.CycloptsError as error:
            verb = " ".join(("rookery", *(error.command_chain or ())))
            raise StartupError(str(error), f"`{verb} --help` lists what can be given", exit_code=2) from error
        except KeyboardInterrupt:
            return 130
        return result if isinstance(result, int) else 0
