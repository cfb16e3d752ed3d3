"""What all tests of the repository share."""

from hypothesis import settings

# A busy machine is no reason to fail.
settings.register_profile("fulmen", deadline=None)
settings.load_profile("fulmen")
