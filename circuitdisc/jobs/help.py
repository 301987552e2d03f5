"""Help of the commands, read from their declarations and from the files of conf/; and what the shell may complete."""

from collections.abc import Iterable

from circuitdisc.jobs.config import CELLS, DISCOVER, REGISTRIES, Config, conf_file, groups_of, options_of, own_keys
from circuitdisc.jobs.job import MULTIRUN, Job
from circuitdisc.jobs.registry import OWN, REGISTRY

HEAD = "circuitdisc: find the part of a transformer that does a task, and prove how good it is."
EXAMPLES = """examples:
  circuitdisc discover model=tpp/lightweight task=tpp algorithm=acdc algorithm.threshold=0.01 ablation=mean
  circuitdisc discover model=gpt2 task=prompts.jsonl ablation=resample out=runs/mine
  circuitdisc discover -m model=tpp/featherweight,tpp/lightweight algorithm=acdc,head_ablation

`circuitdisc discover --help` lists every setting, `circuitdisc list commands` every command. RUN is a run's folder.
--quiet (-q): no bars and no notes. --json: the result as JSON. --version. --install-completion: the shell
completes commands, settings and their values."""

OF_ALL = {"--json": "the result as JSON on stdout, and nothing else there", "--quiet": "no bars and no notes (-q)"}
"""Options of every command."""


def main_help() -> str:
    """What `circuitdisc --help` prints."""
    lines = []
    for name in REGISTRY.names:
        lines.append(_line(name))
        if (job := OWN.get(name)) is not None and job.arguments:
            lines += [(_usage_with(job, option), what) for option, what in job.options.items()]
    return "\n".join([HEAD, "", "usage:", *(f"  circuitdisc {text:<30} {what}" for text, what in lines), "", EXAMPLES])


def _line(name: str) -> tuple[str, str]:
    """A command and what it does; of another package's, whose it is. Nothing is imported for this."""
    if name in OWN:
        return usage(OWN[name]), OWN[name].summary
    return name, f"of package '{REGISTRY.packages()[name]}'"


def group_help(group: str, text: str) -> str:
    """What `circuitdisc GROUP --help` prints, where a command has several tools."""
    tools = [(name.partition(" ")[2], _line(name)[1]) for name in REGISTRY.names if name.startswith(f"{group} ")]
    lines = [f"  {name:<10} {summary}" for name, summary in tools]
    head = [f"circuitdisc {group} TOOL [key=value ...]", "", text, "", "tools:", *lines]
    return "\n".join([*head, "", f"`circuitdisc {group} TOOL --help` lists a tool's settings."])


def usage(job: Job) -> str:
    """A command's name and what stands behind it."""
    return " ".join([job.name, *job.arguments])


def _usage_with(job: Job, option: str) -> str:
    """A command with an option; one that takes a value stands in place of the arguments."""
    return f"{job.name if ' ' in option else usage(job)} {option}"


def job_help(job: Job) -> str:
    """A command's own help."""
    settings = " [key=value ...]" if job.config else ""
    parts = [f"circuitdisc {usage(job)}{settings}", "", job.text or f"{job.summary[:1].upper()}{job.summary[1:]}."]
    options = {**job.flags, **{option: what for option, what in OF_ALL.items() if option not in job.flags}}
    parts += ["", *(f"{option:<16} {what}" for option, what in options.items())]
    parts += _settings(job.config) if job.config else []
    if MULTIRUN in job.flags or job.spreads:
        what = (
            "its units"
            if job.spreads and MULTIRUN not in job.flags
            else "cells of -m, and its units"
            if job.spreads
            else "cells of -m"
        )
        parts += ["", f"launcher={'|'.join(options_of('launcher'))}   where {what} run", *setting_lines(CELLS)]
    return "\n".join([*parts, *(line for variant in job.variants for line in ("", "", job_help(variant)))])


def _settings(config: Config) -> list[str]:
    lines = ["", "settings, with their defaults:", *setting_lines(config)]
    groups = list(groups_of(config))
    if config != DISCOVER:
        lines += ["", *(f"{group}=NAME, {group}.KEY=... as for `circuitdisc discover`" for group in groups)] if groups else []
        return lines + _common(config)
    lines += [
        "",
        "model=NAME      a shipped model, a Hugging Face name, or a folder",
        *setting_lines("model/default", "model."),
    ]
    for group in [group for group in groups if group != "model"]:
        lines += ["", *_group(group)]
    return lines + _common(config)


def _group(group: str) -> list[str]:
    """A group with its options; of tasks and algorithms, each option's settings."""
    options = [name for name in options_of(group) if name != "default"]
    files = "|FILE.jsonl|FILE.csv" if group == "task" else ""
    lines = [f"{group}={'|'.join(options)}{files}" if options else f"{group}:"]
    if group in ("task", "algorithm"):
        for option in options:
            lines += [f"  {option}:", *setting_lines(f"{group}/{option}", f"{group}.")]
    else:
        lines += setting_lines(f"{group}/{options_of(group)[0]}", f"{group}.")
    return [*lines, f"  and those that other packages declare: `circuitdisc list {group}s`"] if group in REGISTRIES else lines


def _common(config: Config) -> list[str]:
    own = own_keys(config)
    lines = [line for line in setting_lines("common") if line.strip().partition("=")[0] not in own]
    return ["", *lines, *setting_lines("log")]


def setting_lines(config: Config, prefix: str = "") -> list[str]:
    """The `key: value # comment` lines of a configuration."""
    lines, table = [], ""
    for line in conf_file(config).read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "-", "  -", "    ", "name:")) or ":" not in line:
            continue
        setting, _, comment = line.partition(" # ")
        key, _, value = setting.strip().partition(":")
        if not line.startswith(" "):
            table = "" if value else f"{key}."
        if not value or table in ("defaults.", "hydra."):
            continue
        key = f"{table}{key}"
        lines.append(f"    {prefix + key + '=' + value.strip():<40} {comment.strip()}".rstrip())
    return lines


def completions(job: Job, begun: str) -> Iterable[str]:
    """What a word that was begun may become: a setting of the command, or an option of a group."""
    if job.config is None:
        return []
    groups = groups_of(job.config)
    key, equals, _ = begun.partition("=")
    if equals and key in groups:
        words = [f"{key}={option}" for option in options_of(key) if option != "default"]
    else:
        words = [f"{name}=" for name in dict.fromkeys([*own_keys(job.config), *own_keys("common"), *groups])]
        words += [f"{group}.{name}=" for group, option in groups.items() for name in own_keys(f"{group}/{option}")]
    return [word for word in words if word.startswith(begun)]
