"""Runs clients of OpenAI's API, unmodified, against this book's server: `python book/tools/try_clients.py`.

Each client gets a virtual environment of its own in a temporary folder, with its newest release, and
runs the program of its name in `book/tools/clients/`. Prints one line per client; exits 1 if one
failed. guidellm and aiperf are run by the load tests' own comparison. Needs a package index.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from lib.models.smollm2 import smollm2_folder
from lib.serving.server_process import ServerProcess

PROGRAMS = Path(__file__).with_name("clients")
MODEL = "smollm2"
MINUTES = 15  # for one client, its installation included


@dataclass(frozen=True)
class Client:
    """program: in PROGRAMS. requirements: what pip installs; the first names the package that is tried."""

    program: str
    requirements: tuple[str, ...]
    takes_tokenizer: bool = False

    @property
    def package(self) -> str:
        return self.requirements[0].split("[")[0]


CLIENTS = {
    "openai": Client("openai_client.py", ("openai",)),
    "lm-eval": Client("lm_eval_client.py", ("lm_eval[api]", "transformers"), takes_tokenizer=True),
    "instructor": Client("instructor_client.py", ("instructor",)),
    "litellm": Client("litellm_client.py", ("litellm",)),
    "langchain-openai": Client("langchain_client.py", ("langchain-openai",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"names of {', '.join(CLIENTS)}, separated by commas")
    parser.add_argument("--folder", type=Path, help="keep the environments here, and reuse them")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CLIENTS)
    if unknown := [name for name in names if name not in CLIENTS]:
        parser.error(f"--only must be of {', '.join(CLIENTS)}, got {', '.join(unknown)}")
    if smollm2_folder() is None:
        parser.error("SmolLM2 is missing: run `make setup` first")
    with tempfile.TemporaryDirectory(prefix="clients-") as temporary:
        folder = arguments.folder or Path(temporary)
        with ServerProcess("--model", MODEL, "--device", "cpu") as server:
            results = [try_client(name, CLIENTS[name], server.url, folder) for name in names]
    return 0 if all(results) else 1


def try_client(name: str, client: Client, url: str, folder: Path) -> bool:
    """Install and run one client. Prints what came of it; False if it failed."""
    began = time.monotonic()
    python = folder / name / "bin" / "python"
    command = [str(python), str(PROGRAMS / client.program), url, MODEL]
    if client.takes_tokenizer:
        command.append(str(smollm2_folder()))
    try:
        if not python.exists():
            venv.create(folder / name, with_pip=True)
        _run([str(python), "-m", "pip", "install", "-q", *client.requirements])
        version = _run([str(python), "-c", _VERSION.format(client.package)])
        said = _run(command)
    except (subprocess.SubprocessError, OSError) as error:
        output = getattr(error, "output", None) or str(error)
        print(f"{name}: FAILED\n{output[-3000:]}", flush=True)
        return False
    seconds = time.monotonic() - began
    print(f"{name} {version}: {said.splitlines()[-1]} ({seconds:.0f} s)", flush=True)
    return True


_VERSION = "from importlib.metadata import version; print(version('{}'))"


def _run(command: list[str]) -> str:
    # Nothing of this environment may reach the client's.
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENAI_API_KEY", "OPENAI_BASE_URL")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        command,
        env={**environment, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * MINUTES,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
