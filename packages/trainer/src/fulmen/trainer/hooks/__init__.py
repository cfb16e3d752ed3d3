"""Which hooks exist, and how they are called."""
