"""A stop button that presses itself at a chosen moment, for test_keep.py and test_kernel.py."""

import itertools
import signal


def pressing(function, call, presses=1):
    """The function, which presses at the end of its n-th call as Jupyter's stop button does."""
    calls = itertools.count(1)

    def pressed(*arguments, **options):
        result = function(*arguments, **options)
        if next(calls) == call:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return result

    return pressed
