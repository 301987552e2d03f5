"""Tasks: pairs of clean and corrupted prompts with right and wrong answers."""

from circuitdisc.tasks.base import Example, PromptBatch, Task, TextExample, collate
from circuitdisc.tasks.encode import encode_examples
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.registry import TASKS, load_task
from circuitdisc.tasks.roles import fill, position_of, role_names
from circuitdisc.tasks.split import split_examples

__all__ = [
    "TASKS",
    "Example",
    "PromptBatch",
    "Task",
    "TaskModel",
    "TextExample",
    "collate",
    "encode_examples",
    "fill",
    "load_task",
    "position_of",
    "role_names",
    "split_examples",
]
