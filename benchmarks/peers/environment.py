"""An environment of its own for AutoCircuit, whose requirements do not go with ours.

AutoCircuit 1.0.1 needs `HookedTransformer` as in TransformerLens 2.16, and pip's resolver would take a newer TransformerLens,
which has none. So the whole environment is listed in `autocircuit-requirements.txt` and installed without resolving.
"""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "autocircuit-requirements.txt"
IMPORTS = "import auto_circuit.prune_algos.ACDC, auto_circuit.prune_algos.mask_gradient, safetensors.torch, transformer_lens"


def make_environment(folder: str | Path) -> Path | None:
    """The python of `folder/.venv-autocircuit`, which is made the first time (a minute or two).

    Args:
        folder: where `.venv` lies, too: the root of the repository.

    Returns:
        The python to call, or None where the environment cannot be made; then the reason is printed, in a sentence.
    """
    home = Path(folder).resolve() / ".venv-autocircuit"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = home / "installed-from"
    want = REQUIREMENTS.read_text(encoding="utf-8")
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == want:
        return python
    print(f"making AutoCircuit's environment in {home} ...", flush=True)
    steps = {
        "made": [sys.executable, "-m", "venv", "--clear", str(home)],
        "filled": [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)],
        "used": [str(python), "-c", IMPORTS],  # a CUDA build of torch fails here where its nvidia packages are not installed
    }
    for done, command in steps.items():
        reason = _failure(command)
        if reason is not None:
            print(f"AutoCircuit is left out: its environment in {home} could not be {done} ({reason}).", flush=True)
            return None
    stamp.write_text(want, encoding="utf-8")
    return python


def _failure(command: list[str]) -> str | None:
    """The last line that a failing command wrote, or None where it went well."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if ran.returncode == 0:
        return None
    lines = [line.strip() for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {ran.returncode}"


if __name__ == "__main__":
    sys.exit(0 if make_environment(Path(__file__).resolve().parents[2]) else 1)
