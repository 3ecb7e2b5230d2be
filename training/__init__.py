"""How the bundled models were made. Not part of the package: it runs from a checkout."""
