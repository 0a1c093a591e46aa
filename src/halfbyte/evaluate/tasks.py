"""`halfbyte eval --tasks`: lm-eval's tasks, by name or as local files, on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.data.templates import Template
from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.runner import Progress, Subject, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_tasks(
    subject: Subject,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    tasks: Sequence[str],
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """lm-eval's results for these tasks, in its own shape.

    A task that ends in .yaml is a file and works offline when its data are local; any other is a
    name, whose data set lm-eval fetches unless it is cached. Chats use the run's own template.

    Raises:
        MissingError: lm-eval is not installed, or a task's data set is not on this machine.
        InputError: no such task.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from halfbyte.evaluate.harness import LoadedModel, Parts
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the lm-eval extra is missing ({error.name})", "pip install 'halfbyte[lm-eval]'"
        ) from None
    named = [task for task in tasks if not task.endswith(".yaml")]
    for task in tasks:
        if task not in named and not Path(task).is_file():
            raise InputError(f"--tasks: {task}: no such file")
    manager = TaskManager(include_defaults=bool(named))
    unknown = [task for task in named if not manager.match_tasks([task])]
    if unknown:
        raise InputError(
            f"--tasks: lm-eval has no task {', '.join(unknown)}", "`lm_eval ls tasks` lists them."
        )
    try:
        found = lm_eval.simple_evaluate(
            LoadedModel(Parts(subject, tokenizer, template, progress)),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=True,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise MissingError(
            f"--tasks: the data of {', '.join(tasks)} cannot be read: {error}",
            "Tasks by name need their data sets from the hub once; a .yaml file with local "
            "data files needs nothing.",
        ) from error
    assert found is not None  # only processes beside the first get none
    return dict(found)
