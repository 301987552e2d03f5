"""Where the weights that a name stands for are, without reading them.

    tpp/base                    ships with the package
    runs/mine, model.gguf       a folder, or a GGUF file
    org/name, org/name@step1000 a Hugging Face name, and a revision of it: a branch, a tag or a commit
    BASE+ADAPTER                any of these, and a PEFT adapter (a folder or a Hugging Face name)

What is there counts before what a name could mean: a folder may have `@` or `+` in its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadFile, BadSetting, CircuitdiscError, UnknownName
from circuitdisc.models.gguf import SUFFIX, gguf_config, is_gguf, load_gguf_tokenizer
from circuitdisc.models.pretrained import load_tokenizer, pretrained_config
from circuitdisc.models.stored import ADAPTER, ADAPTER_WEIGHTS, INDEX, WEIGHTS, read_config, shard_names
from circuitdisc.shipped import shipped_models

HINT = (
    "Give a shipped name, a folder with config.json, a .gguf file, or a Hugging Face name that is cached or can be downloaded."
)


@dataclass(frozen=True)
class Place:
    """Where a model's files are.

    Args:
        name: as the user wrote it, without an adapter.
        path: the folder or GGUF file; None for a Hugging Face name.
        adapter: where the adapter is that is merged into it; None: there is none.
    """

    name: str
    path: Path | None = None
    adapter: "Place | None" = None

    @property
    def hub(self) -> tuple[str, str | None]:
        """The Hugging Face name and its revision."""
        repository, _, revision = self.name.partition("@")
        return repository, revision or None

    def files(self) -> Path:
        """The folder or GGUF file; that of a Hugging Face name is downloaded, or in the cache.

        Raises:
            UnknownName: it is not known there, or cannot be had.
            BadFile: it holds no model.
        """
        return self.path or _hub_folder(self.name, *self.hub)

    def adapter_files(self) -> Path | None:
        """The adapter's folder, if there is an adapter; raises as `files`."""
        if self.adapter is None or self.adapter.path is not None:
            return self.adapter and self.adapter.path
        return _hub_folder(self.adapter.name, *self.adapter.hub, adapter=True)

    def config(self) -> Any:
        """The Hugging Face configuration, of a Hugging Face name without its weights.

        Raises:
            BadFile: it cannot be read.
        """
        if self.path is None:
            return pretrained_config(*self.hub)
        return gguf_config(self.path) if is_gguf(self.path) else pretrained_config(self.path)

    def settings(self) -> dict[str, Any]:
        """The configuration as plain values, also of a folder in TransformerLens weight names; raises as `config`."""
        return self.config().to_dict() if self.path is None or is_gguf(self.path) else read_config(self.path)

    def tokenizer(self) -> Any:
        """The tokenizer, without the weights; None if it has none.

        Raises:
            BadFile: its files cannot be read.
        """
        if self.path is None:
            return load_tokenizer(*self.hub)
        return load_gguf_tokenizer(self.path) if is_gguf(self.path) else load_tokenizer(self.path)


def find_place(name: str, kind: str = "model", hint: str = HINT) -> Place:
    """Where the weights that a name stands for are.

    Args:
        kind: what it names, for messages.

    Raises:
        UnknownName: neither shipped, nor a folder or GGUF file, nor (as far as can be seen offline) a Hugging Face name.
        BadFile: there is no such GGUF file.
        BadSetting: a `+` has nothing before or after it.
    """
    path = local_path(name)
    if path is not None:
        return Place(name, path)
    if "+" in name:
        base, adapter = _halves(name)
        path = _known(base, kind, hint)
        if (folder := local_path(adapter)) is None and not known_to_hub(*Place(adapter).hub):
            raise BadFile(f"there is no adapter {adapter}: give a folder with {ADAPTER}, or a Hugging Face name")
        return Place(base, path, Place(adapter, folder))
    return Place(name, _known(name, kind, hint))


def local_path(name: str) -> Path | None:
    """The folder of a shipped model, a folder or a GGUF file; None for what can only be a Hugging Face name."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~name of nobody here
        return None
    return shipped_models().get(name) or (path if _is_dir(path) or is_gguf(path) else None)


def _known(name: str, kind: str, hint: str) -> Path | None:
    path = local_path(name)
    if path is not None:
        return path
    if name.lower().endswith(SUFFIX):
        raise BadFile(f"there is no file {name}")
    repository, _, revision = name.partition("@")
    if known_to_hub(repository, revision or None):
        return None
    if revision and (revisions := cached_revisions(repository)):
        raise UnknownName(f"revision of {repository}", revision, revisions, f"In the cache: {', '.join(revisions)}.")
    raise UnknownName(kind, name, shipped_models(), hint)


def _halves(name: str) -> tuple[str, str]:
    """Base and adapter: parted at the first `+` with something that is there on both sides, else on one, else at the first."""
    parts = [(name[:at], name[at + 1 :]) for at, letter in enumerate(name) if letter == "+"]
    base, adapter = max(parts, key=lambda part: sum(local_path(half) is not None for half in part))
    if not base.strip() or not adapter.strip():
        raise BadSetting(f"model={name!r}: write BASE+ADAPTER, both a folder or a name")
    return base, adapter


# --- Hugging Face names ---------------------------------------------------------------------------------------------------


def known_to_hub(name: str, revision: str | None = None) -> bool:
    """Whether a name is cached, or the hub answers for it. Asked once: downloads repeat what fails, for most of a minute."""
    families = {shipped.partition("/")[0] for shipped in shipped_models()}
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or name.partition("/")[0] in families:
        return False
    from huggingface_hub import HfApi, try_to_load_from_cache

    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        cached = (isinstance(try_to_load_from_cache(name, file, **at), str) for file in ("config.json", ADAPTER))
        return any(cached) or bool(HfApi().model_info(name, timeout=10, **at).id)
    except Exception:  # the hub, the network and a malformed name each raise their own
        return False


def cached_revisions(name: str) -> list[str]:
    """The revisions of a Hugging Face name in the cache: branches and tags by name, other commits by their hashes."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    except HFValidationError:  # a name that no repository can have
        return []
    named = {file.relative_to(folder / "refs").as_posix(): file.read_text() for file in _files(folder / "refs")}
    commits = [path.name for path in folder.glob("snapshots/*") if path.name not in named.values()]
    return [*sorted(named), *sorted(commits)]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _hub_folder(written: str, name: str, revision: str | None, adapter: bool = False) -> Path:
    """The files of a hub's model, from the cache or downloaded: its configuration and its safetensors, nothing else."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(file: str, revision: str | None) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except EntryNotFoundError:
            return None

    try:
        first = None if adapter else fetch("config.json", revision)
        first = first or fetch(ADAPTER, revision)
        if first is None:
            what = f"no {ADAPTER}: it is no adapter" if adapter else "no config.json: it is not a model that transformers loads"
            raise BadFile(f"the hub's {written} has {what}")
        folder, commit = first.parent, first.parent.name
        if adapter:
            fetch(ADAPTER_WEIGHTS, commit)
            return folder
        fetch(ADAPTER, commit)
        read_config(folder)
        if fetch(WEIGHTS, commit) is None and fetch(INDEX, commit) is not None:
            for shard in shard_names(folder):
                fetch(shard, commit)
        return folder
    except CircuitdiscError:
        raise
    except Exception as error:  # the hub and the network each raise their own
        raise UnknownName("model", written, shipped_models(), HINT) from error


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
