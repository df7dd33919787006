"""``python -m attnc``: the same command as ``attnc``."""

from __future__ import annotations

from attnc.cli import main

if __name__ == "__main__":
    main()
