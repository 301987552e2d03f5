"""The models that ship with the package: a folder each, in the Hugging Face or TransformerLens layout.

scripts/train_*.py make them again; each family's RESULTS.json says how well they do what they were trained for.
"""

from pathlib import Path

from circuitdisc.files import read_json

FOLDER = Path(__file__).parent


def shipped_models() -> dict[str, Path]:
    """Name -> folder of every model that ships with the package."""
    folders = sorted(path.parent for path in FOLDER.glob("**/config.json"))
    return {folder.relative_to(FOLDER).as_posix(): folder for folder in folders}


def described_models() -> list[tuple[str, str]]:
    """Name and one line for every shipped model, for `circuitdisc list models`."""
    return [(name, _describe(folder)) for name, folder in shipped_models().items()]


def _describe(folder: Path) -> str:
    config = read_json(folder / "config.json")
    layers, heads = (config.get(long, config.get(short)) for long, short in (("n_layer", "n_layers"), ("n_head", "n_heads")))
    words = f"{config.get('model_type', 'TransformerLens toy')}, {layers} layers x {heads} heads"
    results = folder.parent / "RESULTS.json"
    figures = read_json(results).get("checkpoints", {}).get(folder.name, {}) if results.is_file() else {}
    if "tasks" in figures:
        return f"{words}; accuracy on " + ", ".join(f"{task} {share:.1%}" for task, share in figures["tasks"].items())
    accuracy = figures.get("accuracy", figures.get("tpp", {}).get("accuracy"))
    return words if accuracy is None else f"{words}; accuracy on {folder.parent.name} {accuracy:.1%}"
