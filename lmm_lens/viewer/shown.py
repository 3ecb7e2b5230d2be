"""A view: the page as a value, in a notebook or to keep."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LensError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .widget import ViewWidget

HEIGHT = 780  # pixels of the frame in a notebook


@dataclass(frozen=True, eq=False)
class View:
    """A page that shows attention over pictures, words and heads. It needs no network and no server.

    In a notebook it shows itself; `save` writes it as a file, `widget` makes it one that tells Python which heads are
    chosen. Hovering a head shows its attention, hovering a token how much every head attends to it; a click pins,
    Escape frees; arrow keys walk through heads, and "c" chooses one.

    Attributes:
        html: the page.
        shape: queries, layers, heads and tokens shown of the decoder, of the first prompt row.
        error: how far a weight shown may lie from the true one, as a share of the largest weight of its head's row.
        height: of the frame in a notebook, in pixels.
        model_shape: layers and heads of the model; of what is shown, where only a run was given.
        tower_shape: of its vision tower, where that is shown too.
    """

    html: str = field(repr=False)
    shape: tuple[int, int, int, int]
    error: float
    height: int = HEIGHT
    model_shape: tuple[int, int] = (0, 0)
    tower_shape: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Of the page, in bytes."""
        return len(self.html.encode())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page.

        Raises:
            LensError: there is no such folder.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise LensError(f"there is no folder {str(target.parent)!r} to save the view in")
        target.write_text(self.html, encoding="utf-8")
        return target

    def widget(self, selected: Iterable[tuple[int, int]] = ()) -> ViewWidget:
        """The page as a widget of a notebook, whose `selected` is what is chosen in it, as a `HeadSet`.

        Args:
            selected: heads to begin with.

        Raises:
            LensError: anywidget is not installed; `pip install 'lmm-lens[widget]'`.
            HookError: heads that the model does not have.
        """
        try:
            from .widget import widget_of
        except ModuleNotFoundError as error:
            if error.name not in ("anywidget", "ipywidgets", "traitlets"):
                raise
            raise LensError(
                f"a widget needs {error.name}, which is not installed\n"
                "  pip install 'lmm-lens[widget]'; the page itself needs nothing: view.save(path)"
            ) from error
        return widget_of(self, selected)

    def _repr_html_(self) -> str:
        # a frame of its own: no style or script of the page meets the notebook's; what it may download is its figures
        frame = f"width:100%;height:{self.height}px;border:0;resize:vertical;overflow:auto"
        return (
            f"<iframe title='attention of {self.shape[1]} layers x {self.shape[2]} heads' "
            f"sandbox='allow-scripts allow-downloads' style='{frame}' "
            f"srcdoc='{html.escape(self.html, quote=True)}'></iframe>"
        )

    def __repr__(self) -> str:
        queries, layers, heads, tokens = self.shape
        tower = "" if self.tower_shape is None else ", and of the vision tower"
        return (
            f"View of {queries} quer{'y' if queries == 1 else 'ies'}, {layers} layers x {heads} heads, {tokens} "
            f"tokens{tower}: {self.size / 1e6:.1f} MB of HTML, view.save(path) writes it"
        )
