"""A stop button that presses itself at a chosen moment: test_keep.py, test_kernel.py and killed_run.py press it."""

import itertools
import os
import signal
import threading


def pressing(function, call, presses=1, seconds=0, signal_sent=signal.SIGINT):
    """The function, which presses at the end of its n-th call, or so many seconds later, from another thread.

    SIGINT is what Jupyter's stop button sends; SIGKILL ends the process there and then.
    """
    calls = itertools.count(1)

    def pressed(*arguments, **options):
        result = function(*arguments, **options)
        if next(calls) == call:
            for _ in range(presses):
                if seconds:
                    threading.Timer(seconds, os.kill, (os.getpid(), signal_sent)).start()
                else:
                    signal.raise_signal(signal_sent)
        return result

    return pressed
