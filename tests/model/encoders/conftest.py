"""The tokenizer that the small encoders share, where theirs is one of Hugging Face's."""

import pytest
import torch
from small_encoders import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def one_thread():
    """Everything is small: more threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
