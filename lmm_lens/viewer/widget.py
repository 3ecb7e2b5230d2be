"""A view as a widget of a notebook, which tells Python what is chosen in it. It needs anywidget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anywidget
import traitlets

from ..hooks.heads import DECODER, Head, HeadSet, check_part
from .page import part
from .shown import View


class ViewWidget(anywidget.AnyWidget):
    """The page of a view that talks back. Made by `View.widget`.

    `observe(function, "heads")` is called at every change, as of any widget.

    Attributes:
        heads: what is chosen, as [layer, head] each, in the order in which it was.
    """

    _esm = part("widget.js")
    page = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    heads = traitlets.List(traitlets.List(traitlets.Int(), minlen=2, maxlen=2)).tag(sync=True)

    def __init__(self, view: View, **options: Any) -> None:
        self._model_shape = view.model_shape
        title = f"attention of {view.shape[1]} layers x {view.shape[2]} heads"
        super().__init__(page=view.html, title=title, height=view.height, **options)

    @property
    def selected(self) -> HeadSet:
        """The heads that are chosen on the page, or else the one that is pinned; setting it chooses them there.

        Raises:
            HookError: set to heads that the model does not have.
        """
        return self._checked((layer, head) for layer, head in self.heads)

    @selected.setter
    def selected(self, heads: Iterable[Head]) -> None:
        self.heads = [list(head) for head in self._checked(heads)]

    def _checked(self, heads: Iterable[Head]) -> HeadSet:
        if isinstance(heads, HeadSet):
            check_part(heads, DECODER, "the viewer")
        return HeadSet(heads, *self._model_shape)


def widget_of(view: View, selected: Iterable[Head]) -> ViewWidget:
    """See `View.widget`."""
    made = ViewWidget(view)
    made.selected = selected
    return made
