"""What all tests of the repository share."""

import gc
import os

from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail.
settings.register_profile("fulmen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulmen")
# What is garbage at a fork is the parent's: a child that collects a store waits for its thread, which it does not have.
os.register_at_fork(after_in_child=gc.freeze)
