"""Where a run is: counts and phases, without a tensor or a trainer."""
