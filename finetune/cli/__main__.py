"""`python -m finetune.cli`: the same as the command `finetune`."""

import sys

from finetune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
