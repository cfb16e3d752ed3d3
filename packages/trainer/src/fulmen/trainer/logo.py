"""What we print where there is room."""

LIGHTNING_LOGO = r"""
        __
       / /
      / /__
     /__  /
       / /
      /_/   fulmen
"""


def cli_lightning_logo() -> None:
    """Print the logo."""
    print(LIGHTNING_LOGO)
