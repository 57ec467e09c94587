"""A value that tests share."""

import functools

import jax


def once(make):
    """`functools.cache` whose values are arrays even if the first caller is traced.

    Tests run in any order, so a tree that the first caller would make inside `jit`
    would reach the others as tracers.
    """

    @functools.cache
    @functools.wraps(make)
    def made(*args, **kwargs):
        with jax.ensure_compile_time_eval():
            return make(*args, **kwargs)

    return made
