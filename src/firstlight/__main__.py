"""``python -m firstlight ...`` is the ``firstlight`` command (and what ``torchrun -m firstlight ...`` starts)."""

from firstlight.cli.main import main

if __name__ == "__main__":
    main()
