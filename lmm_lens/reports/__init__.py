"""HTML pages that need no network: of the demo and of sweeps."""
