"""A program of somebody else that keeps a core busy, for tests of the system load."""

import subprocess
import sys
from contextlib import contextmanager

import psutil

# Starts a process that no longer has a parent among ours, as any program of another user. It ends by itself.
DETACHED = """
import subprocess, sys
code = "import time; end = time.time() + 20\\nwhile time.time() < end: pass"
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **quiet).pid)
"""


@contextmanager
def detached_program():
    started = subprocess.run(
        [sys.executable, "-c", DETACHED], capture_output=True, text=True, timeout=20
    )
    program = psutil.Process(int(started.stdout))
    try:
        yield program
    finally:
        program.kill()
