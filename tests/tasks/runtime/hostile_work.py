"""Work that behaves as badly as native code can, for the tests of isolation."""

import ctypes
import os
import signal
import time


def behave(payload: bytes) -> bytes:
    """Do what the payload says: crash, hang, sleep, eat memory, raise, or answer."""
    if b"crash" in payload:
        ctypes.string_at(0)
    if b"abort" in payload:
        os.kill(os.getpid(), signal.SIGABRT)
    if b"hang" in payload:
        while True:
            pass
    if b"work" in payload:
        started = time.process_time()
        while time.process_time() - started < 0.3:
            pass
    if b"sleep" in payload:
        time.sleep(3600)
    if b"memory" in payload:
        hoard = []
        while True:
            hoard.append(bytearray(64 * 2**20))
    if b"raise" in payload:
        raise ValueError("as asked")
    if b"exit" in payload:
        os._exit(3)
    if b"print" in payload:
        print("between the replies")
    return payload.upper()
