"""Which tests of the kernels are slow because Triton is interpreted."""

import accuracy
import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Interpreted, float16 differs from float32 in conversions, which one test of an op in one layout sees."""
    for item in items:
        called = item.callspec.params if hasattr(item, "callspec") else {}
        if "triton" in accuracy.emulated and called.get("backend") == "triton" and called.get("dtype") == torch.float16:
            if not (item.originalname.startswith("test_matches") and called.get("layout") in (None, "contiguous")):
                item.add_marker(pytest.mark.slow)
                item.add_marker(pytest.mark.exhaustive)
