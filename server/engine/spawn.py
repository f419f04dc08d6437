"""Starting and stopping the engine process."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ..config import Config
from ..errors import StartupError
from .messages import Settings


class EngineProcess:
    """One life of the engine process. Its socket lies in a folder that only this user can enter.

    It needs no event loop to start, so that it can load while its parent still imports what serves HTTP.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, endpoint: str) -> None:
        self._process = process
        self._folder = folder
        self.endpoint = endpoint
        self._ended: Future[int] = Future()
        threading.Thread(target=lambda: self._ended.set_result(process.wait()), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    def start(cls, config: Config, model_path: Path) -> EngineProcess:
        """Start one, to be ended by `stop` or `discard`.

        Raises:
            StartupError: a `--state` is not NAME=FILE.
        """
        folder = Path(tempfile.mkdtemp(prefix="rookery-"))  # mode 0700
        endpoint = f"ipc://{folder}/engine"
        settings = settings_of(config, model_path, endpoint)
        process = subprocess.Popen(
            [sys.executable, "-m", "rookery.server.engine.process"],
            stdin=subprocess.PIPE,
            stdout=2,  # what a library prints must not mix with our own output
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        process.stdin.flush()
        return cls(process, folder, endpoint)

    async def wait(self) -> StartupError:
        """Wait until it ends; how it ended, as the reason for not serving."""
        code = await asyncio.shield(asyncio.wrap_future(self._ended))
        if code == -9:
            return StartupError(
                "the engine process was killed (signal 9)",
                "most often memory ran out: take a smaller model, --dtype bfloat16 or a smaller --max-batch",
            )
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return StartupError(f"the engine process {how}", "the lines it logged before say why")

    async def stop(self, patience_s: float) -> None:
        """Make sure that it has ended and is reaped; it gets `patience_s` to do so by itself, then it is killed."""
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._ended)), patience_s)
        except TimeoutError:
            self._process.kill()
            await asyncio.shield(asyncio.wrap_future(self._ended))
        finally:
            self._clean_up()

    def discard(self) -> None:
        """End it at once and wait for that: nobody will use it."""
        self._process.kill()
        self._ended.result()
        self._clean_up()

    def _clean_up(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def settings_of(config: Config, model_path: Path, endpoint: str) -> Settings:
    """The part of the configuration that the engine needs; keys stay in the API process.

    Raises:
        StartupError: a `--state` is not NAME=FILE, or settings contradict each other.
    """
    if config.exact and config.state_dtype != "float32":
        raise StartupError(
            f"--exact: --state-dtype {config.state_dtype} rounds states when they are stored",
            "leave one of them out",
            exit_code=2,
        )
    states = {}
    for entry in config.state:
        name, separator, file = entry.partition("=")
        if not separator or not name or not file:
            raise StartupError(
                f"--state {entry!r} is not NAME=FILE", "write for example --state poet=poet.pth", exit_code=2
            )
        states[name] = file
    return Settings(
        endpoint=endpoint,
        model_path=str(model_path),
        dtype=config.dtype,
        quantize=config.quantize,
        device=config.device,
        slot_dtype=config.slot_dtype,
        exact=config.exact,
        threads=config.threads,
        states=states,
        tokenizer=str(config.tokenizer) if config.tokenizer is not None else None,
        max_batch=config.max_batch,
        max_queue=config.max_queue,
        prefill_budget=config.prefill_budget,
        step_target_s=config.step_target,
        cache_bytes=config.cache_memory,
        cache_disk_bytes=config.cache_disk,
        data_dir=str(config.data_dir) if config.data_dir is not None else None,
        state_dtype=config.state_dtype,
        session_memory_bytes=config.session_memory,
        session_ttl_s=config.session_ttl or None,
        max_sessions=config.max_sessions,
        log_format=config.log_format,
    )
