"""What some tests need that not every machine has."""

import importlib.util

import pytest

LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'"
)
