"""Every family with its real processor, built from nothing: spans, grids and markers against independent evidence."""
