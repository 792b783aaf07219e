"""Kernels run in Triton's interpreter, which must be chosen before triton is first imported.

Ctrl-C is tested: where the tests are started with SIGINT ignored, as in a shell's background, it
must mean something to them and to the processes that they start.
"""

import os
import signal

os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
