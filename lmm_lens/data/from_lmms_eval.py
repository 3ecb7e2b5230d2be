"""Any task of lmms-eval that asks about pictures or text: its documents, as its own functions read them.

A task is asked as lmms-eval asks it: `doc_to_text` makes the question, with the words that the task puts before and
after it, `doc_to_visual` the pictures, `doc_to_target` the right answer, `doc_to_choice` what there is to choose from.
Sample n of a task is its `doc_id` n, as in the harness's logs.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet
from .problems import Bad, RowError
from .sample import Sample
from .table_rows import Listed, TableRow, sample_of
from .template import AS_IT_IS, check_template

PathLike = str | os.PathLike[str]
OPPOSITE = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes"}
N_SUGGESTED = 5


def lmms_eval(
    task: str, *, include_path: PathLike | None = None, template: str = AS_IT_IS, on_bad: str = "refuse"
) -> DataSet:
    """A task of lmms-eval by its name, as "pope", "mmbench_en_dev", "gqa".

    The wrong answer is the other one where there are two: of yes and no, or of two choices. Of several accepted answers
    the first is the right one, all are in `given`. The category is the document's own, where it has one.

    Args:
        task: one task, no group of them. lmms-eval knows its data, which `datasets` downloads once.
        include_path: a folder of tasks of your own, in lmms-eval's YAML.
        template: how to ask, around the task's own question.
        on_bad: "refuse" or "skip", see `DataSet`; films and sound are bad rows.

    Raises:
        ScoreError: lmms-eval is not installed, there is no such task or it is a group, lmms-eval cannot open it, or as
            in `DataSet`.
    """
    opened = _opened(task, None if include_path is None else Path(include_path))
    try:
        documents = opened.eval_docs
    except ValueError as error:
        raise ScoreError(f"the task {task!r} has nothing to evaluate on: {error}") from None
    return DataSet(
        f"lmms_eval/{task}",
        Listed(documents, f" of {task}"),
        partial(_read, task=opened, name=task, template=check_template(template)),
        describe=partial(_describe, opened, task, documents, template),
        on_bad=on_bad,
        numbered=True,
    )


def _opened(task: str, folder: Path | None) -> Any:
    """The task, its data read."""
    try:
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise ScoreError(
            f"data.lmms_eval({task!r}) reads a task of lmms-eval, which cannot be imported here: {error}\n"
            "  pip install 'lmm-lens[lmms-eval]'"
        ) from error
    if folder is not None and not folder.is_dir():
        raise ScoreError(f"include_path is a folder of tasks, given {str(folder)!r}, which is none")
    given = None if folder is None else str(folder)
    manager = TaskManager(include_path=given, include_defaults=folder is None)
    if task not in manager.all_tasks and folder is not None:  # all of lmms-eval's own take seconds to list
        manager = TaskManager(include_path=given)
    if task not in manager.all_tasks:
        near = difflib.get_close_matches(task, manager.all_tasks, N_SUGGESTED)
        raise ScoreError(
            f"lmms-eval knows no task {task!r} among {len(manager.all_tasks):,}"
            + (f"\n  near to it: {', '.join(near)}" if near else "\n  lmms-eval --tasks list names them all")
        )
    if task not in manager.all_subtasks:
        raise ScoreError(f"{task!r} is a group of tasks, expected one of them: {', '.join(_members(manager, task))}")
    try:
        return manager.load_task_or_group([task], "simple")[task]
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ScoreError(
            f"lmms-eval cannot open its task {task!r}: {told}\n"
            "  data that is not in the cache of the Hugging Face hub is downloaded, which needs a network"
        ) from error


def _members(manager: Any, group: str) -> list[str]:
    """The names of a group's tasks."""
    listed = manager.task_index[group]["task"]
    if listed == -1:
        listed = manager._get_config(group)["task"]
    return [each if isinstance(each, str) else str(each.get("task")) for each in listed]


def _read(row: TableRow, task: Any, name: str, template: str) -> list[Sample | Bad]:
    def make(document: Mapping[str, Any]) -> Sample:
        question = _asked(task.doc_to_text, document)
        choices = _choices(task, document)
        answer, given = _target(_asked(task.doc_to_target, document), choices)
        category = document.get("category")
        return Sample(
            id=f"lmms_eval/{name}/{row.number - 1}",
            question=template.format(question=question if isinstance(question, str) else str(question)),
            answer=answer,
            images=tuple(_pictures(_asked(task.doc_to_visual, document))),
            wrong=_other(answer, choices),
            category=category if isinstance(category, str) and category else None,
            given=given,
        )

    return [sample_of(row, make)]


def _asked(function: Callable[[Any], Any], document: Mapping[str, Any]) -> Any:
    """What a task's own function says of a document."""
    try:
        return function(document)
    except Exception as error:
        told = f"{getattr(function, '__name__', 'its function')} of the task fails: {type(error).__name__}: {error}"
        raise RowError("task fails", told) from error


def _choices(task: Any, document: Mapping[str, Any]) -> list[str]:
    if task.config.doc_to_choice is None:
        return []
    return [str(choice) for choice in _asked(task.doc_to_choice, document)]


def _target(target: Any, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The right answer, and all that are accepted where there are several."""
    if isinstance(target, int) and not isinstance(target, bool) and choices:
        if not 0 <= target < len(choices):
            raise RowError("answer is no option", f"the right answer is choice {target} of {len(choices)}")
        return choices[target], ()
    if isinstance(target, (list, tuple)):
        accepted = tuple(str(each) for each in target if str(each).strip())
        if not accepted:
            raise RowError("no answer", "the task's list of right answers is empty")
        return accepted[0], accepted
    if target is None or not str(target).strip():
        raise RowError("no answer", "the document has no right answer, as of a test set whose answers are kept")
    return str(target), ()


def _other(answer: str, choices: Sequence[str]) -> str | None:
    """The wrong answer, where there is one alone."""
    others = [choice for choice in choices if choice != answer]
    return others[0] if len(others) == 1 else OPPOSITE.get(answer) if not choices else None


def _pictures(visuals: Any) -> list[Any]:
    """Pictures in memory; RowError for films and sound."""
    from PIL import Image

    found = [] if visuals is None else list(visuals)
    for each in found:
        if not isinstance(each, Image.Image):
            raise RowError("no picture", f"samples hold pictures, and this document shows {type(each).__name__}")
    return found


def _describe(task: Any, name: str, documents: Any, template: str) -> dict[str, Any]:
    from importlib.metadata import version

    about = {"path": task.config.dataset_path, "name": task.config.dataset_name, "split": task.config.test_split}
    fingerprint = getattr(documents, "_fingerprint", None)
    return {
        "kind": "lmms_eval",
        "task": name,
        "version": version("lmms_eval"),
        "dataset": {key: value for key, value in about.items() if value is not None},
        "rows": len(documents),
        "fingerprint": fingerprint,
        "template": template,
    }
