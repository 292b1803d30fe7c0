"""What ExecuTorch's documented interface lacks: the number of threads of its kernels. The pool is
one of the whole process.
"""


def set_threads(count: int) -> None:
    """Let all sessions of this process compute with that many threads."""
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() != count:
        portable_lib._unsafe_reset_threadpool(count)
