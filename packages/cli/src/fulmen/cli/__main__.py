"""`python -m fulmen.cli` is `lightning-cli`: for `torchrun -m fulmen.cli fit`, and where scripts are not on PATH."""

import sys

from fulmen.cli.command import main

if __name__ == "__main__":
    sys.argv[0] = "lightning-cli"
    main()
