"""How a question is put to the model: a text with places that are filled in."""

from __future__ import annotations

import re
from string import Formatter

from ..errors import ScoreError, unknown

AS_IT_IS = "{question}"
NUMBER = re.compile(r"\.\d{1,2}f")
"""How numbers may be formatted; anything else, as a width of a thousand million, is not."""


def check_template(template: str, places: tuple[str, ...] = ("question",)) -> str:
    """The template, if it has a place for the question and no place that is not known.

    Args:
        template: as "{question} Answer with yes or no."
        places: what may stand in braces.

    Raises:
        ScoreError: it has not.
    """
    if not isinstance(template, str):
        raise ScoreError(f"a template is a text with {{question}} in it, given {template!r}")
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ScoreError(f"the template {template!r} cannot be read: {error}\n  write {{{{ for a brace") from error
    found = [name for _, name, _, _ in parts]
    for _, name, form, conversion in parts:
        if name not in places:
            raise ScoreError(unknown("place in a template", name or "", places))
        if (form and not (name != "question" and NUMBER.fullmatch(form))) or conversion:
            raise ScoreError(
                f"the template {template[:60]!r} says how {{{name}}} is to be formatted, and it is put in as it is\n"
                f"  write {{{name}}}"
            )
    if "question" not in found:
        raise ScoreError(f"the template {template!r} has no place for the question\n  write {{question}} there")
    return template
