"""What says that a replay would not be exact."""


class UnfitError(Exception):
    """This model, or this prompt, cannot be replayed exactly; the text says why. Never shown to users as an error."""
