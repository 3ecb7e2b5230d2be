"""Where a model can be read and edited, which of its heads are meant, and what a run gives back."""
