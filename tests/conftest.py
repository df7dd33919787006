"""What all tests share: ``--update-golden`` rewrites the expected blocks of Markdown goldens.

Where there is no GPU, Triton kernels run under its interpreter; Triton reads that choice when it is
first imported, so it is made here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true",
        help="rewrite the expected blocks of the Markdown goldens, then look at the diff",
    )  # fmt: skip


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
