"""A slow cable that loses packets, for kernels without netem: `python wire.py NAME NAME DELAY LOSS`.

Creates two network interfaces. A packet sent into one comes out of the other DELAY seconds later; a share LOSS of them
is dropped. Prints `ready` once both exist; they vanish with this process.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME_BYTES = 1 << 16


def open_end(name: str) -> int:
    """Create an interface; the file descriptor of its packets."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


def carry(ends: tuple[int, int], delay: float, loss: float) -> None:
    """Carry packets both ways, forever."""
    generator = random.Random(0)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    in_flight: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        left = max(in_flight[0][0] - time.monotonic(), 0) if in_flight else None
        for end in select.select(ends, (), (), left)[0]:
            frame = os.read(end, FRAME_BYTES)
            if generator.random() >= loss:
                in_flight.append((time.monotonic() + delay, other[end], frame))
        while in_flight and in_flight[0][0] <= time.monotonic():
            _, end, frame = in_flight.popleft()
            with contextlib.suppress(OSError):  # that interface is down: the packet is lost
                os.write(end, frame)


if __name__ == "__main__":
    both = open_end(sys.argv[1]), open_end(sys.argv[2])
    print("ready", flush=True)
    carry(both, float(sys.argv[3]), float(sys.argv[4]))
