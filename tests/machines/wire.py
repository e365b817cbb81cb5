"""A slow cable that loses packets, for kernels without netem: `python wire.py NAME NAME DELAY LOSS`.

Makes two network interfaces. What is sent into one comes out of the other DELAY seconds later, but for a share LOSS of
packets. Prints `ready` once both are there; they go with this process.
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
    """A new interface; gives the file of its packets."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


def carry(ends: tuple[int, int], delay: float, loss: float) -> None:
    """Carry packets both ways, for ever."""
    chance = random.Random(0)
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    under_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        left = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
        for end in select.select(ends, (), (), left)[0]:
            frame = os.read(end, FRAME_BYTES)
            if chance.random() >= loss:
                under_way.append((time.monotonic() + delay, other[end], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, frame = under_way.popleft()
            with contextlib.suppress(OSError):  # that end is down: lost
                os.write(end, frame)


if __name__ == "__main__":
    both = open_end(sys.argv[1]), open_end(sys.argv[2])
    print("ready", flush=True)
    carry(both, float(sys.argv[3]), float(sys.argv[4]))
