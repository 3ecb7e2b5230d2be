"""A view as a widget of a notebook, which tells Python what is chosen in it. It needs anywidget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anywidget
import traitlets

from ..errors import HookError
from ..hooks.heads import DECODER, VISION, Head, HeadSet
from .page import part
from .shown import View


class ViewWidget(anywidget.AnyWidget):
    """The page of a view that talks back. Made by `View.widget`.

    `observe(function, "heads")` is called at every change, as of any widget.

    Attributes:
        heads: what is chosen, as [layer, head] each, in the order in which it was.
        part: of the model that they are of, "decoder", or "vision" where the page shows its vision tower.
    """

    _esm = part("widget.js")
    page = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    heads = traitlets.List(traitlets.List(traitlets.Int(), minlen=2, maxlen=2)).tag(sync=True)

    part = traitlets.Enum([DECODER, VISION], DECODER).tag(sync=True)

    def __init__(self, view: View, **options: Any) -> None:
        self._shapes = {DECODER: view.model_shape, VISION: view.tower_shape}
        title = f"attention of {view.shape[1]} layers x {view.shape[2]} heads"
        super().__init__(page=view.html, title=title, height=view.height, **options)

    @property
    def selected(self) -> HeadSet:
        """The heads that are chosen on the page, or else the one that is pinned; setting it chooses them there.

        Raises:
            HookError: set to heads that the model does not have.
        """
        return self._checked(((layer, head) for layer, head in self.heads), self.part)

    @selected.setter
    def selected(self, heads: Iterable[Head]) -> None:
        part = heads.part if isinstance(heads, HeadSet) else DECODER
        numbers = [list(head) for head in self._checked(heads, part)]
        with self.hold_sync():  # both at once
            self.part, self.heads = part, numbers

    def _checked(self, heads: Iterable[Head], part: str) -> HeadSet:
        shape = self._shapes[part]
        if shape is None:
            raise HookError("this view does not show the vision tower\n  view(prompt, lens, tower=True).widget()")
        return HeadSet(heads, *shape, part)


def widget_of(view: View, selected: Iterable[Head]) -> ViewWidget:
    """See `View.widget`."""
    made = ViewWidget(view)
    made.selected = selected
    return made
