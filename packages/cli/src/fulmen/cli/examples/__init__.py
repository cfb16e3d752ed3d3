"""Examples that run at once: they make their data themselves, and need nothing but torch."""
