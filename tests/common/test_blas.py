"""BLAS has one thread where matrices are small, and its own number again afterwards, whoever ends last."""

from threadpoolctl import threadpool_info, threadpool_limits

from mdsens.common.blas import SMALL_SIZE, one_thread


def threads():
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


def test_small_matrices_have_one_thread_and_large_ones_all():
    with threadpool_limits(2, user_api="blas"):
        with one_thread(SMALL_SIZE):
            assert threads() == 1
        with one_thread(SMALL_SIZE + 1):
            assert threads() == 2


def test_the_number_comes_back_when_the_last_context_ends():
    with threadpool_limits(2, user_api="blas"):
        first, second = one_thread(), one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == 1
        second.__exit__(None, None, None)
        assert threads() == 2
