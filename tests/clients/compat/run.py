"""Runs the clients of other projects against a real server: `python -m tests.clients.compat.run [NAME …]`.

Each gets an environment of its own with pinned versions, in a folder that is kept between runs (`--home`, by default
under the temporary folder): LangChain and LiteLLM, the LM evaluation harness, the `openai` package of Node. The server
has a small random model with the World vocabulary. A check is a program that fails by its exit code; it finds the
server in ROOKERY_URL.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.server_process import server_process, write_world

HERE = Path(__file__).resolve().parent
CHECKS = {
    "langchain": ("python-clients.txt", "check_langchain.py"),
    "litellm": ("python-clients.txt", "check_litellm.py"),
    "lm-eval": ("lm-eval.txt", "check_lm_eval.py"),
    "node": ("package.json", "check_node.mjs"),
}
"""What it needs and what it runs, by name."""


def environment(home: Path, needs: str) -> list[str]:
    """Install what a check needs, unless the same is there; the start of the command that runs it."""
    folder = home / Path(needs).stem
    wanted = (HERE / needs).read_text()
    stamp = folder / ".installed"
    done = stamp.exists() and stamp.read_text() == wanted
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if needs == "package.json":
        if not done:
            shutil.copy(HERE / needs, folder)
            subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
        command = ["node"]
    else:
        python = folder / "bin" / "python"
        if not done:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / needs)], check=True)
        command = [str(python)]
    stamp.write_text(wanted)
    return command


def main() -> int:
    """Run the checks named, or all; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "rookery-compat")
    given = parser.parse_args()
    names = given.names or list(CHECKS)
    commands = {name: environment(given.home, CHECKS[name][0]) for name in names}
    failed = []
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(Path(folder), "--max-batch", "8", "--dtype", "float32", write=write_world) as server,
    ):
        for name in names:
            script = CHECKS[name][1]
            if script.endswith(".mjs"):  # Node looks for packages beside the program
                script = shutil.copy(HERE / script, given.home / Path(CHECKS[name][0]).stem)
            else:
                script = str(HERE / script)
            settings = {**os.environ, "ROOKERY_URL": server.url, "OPENAI_API_KEY": "none"}
            code = subprocess.run([*commands[name], script], env=settings, cwd=folder).returncode
            print(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'}", flush=True)
            if code != 0:
                failed.append(name)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
