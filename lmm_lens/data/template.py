"""How a question is put to the model: a text with places that are filled in."""

from __future__ import annotations

from string import Formatter

from ..errors import ScoreError, unknown

AS_IT_IS = "{question}"


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
        found = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ScoreError(f"the template {template!r} cannot be read: {error}\n  write {{{{ for a brace") from error
    for name in found:
        if name not in places:
            raise ScoreError(unknown("place in a template", name, places))
    if "question" not in found:
        raise ScoreError(f"the template {template!r} has no place for the question\n  write {{question}} there")
    return template
