"""Start a guest library in this process and find the process afterwards as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """Restore torch's default dtype, grad mode, threads and all random states (Python, NumPy, torch) on the way out.

    vLLM seeds the global generators while it starts, and on CPU replaces `torch.set_num_threads` by a function that
    does nothing: a learner in the same process would silently draw other numbers, or keep the wrong number of threads.
    """
    default_dtype = torch.get_default_dtype()
    is_grad_enabled = torch.is_grad_enabled()
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_default_dtype(default_dtype)
        torch.set_grad_enabled(is_grad_enabled)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)
