"""Seeds derived by hashing: every random draw has its own, so no generator's state has to be saved or shared."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive the seed of one random draw from the seed of the run; the same on every platform and in every version.

    Args:
        seed: run.seed.
        purpose: what is drawn, such as `order` or `dropout`.
        indices: which draw it is, such as the epoch, or the step and the shard.

    Returns:
        A seed in [0, 2**63), as torch's generators take it.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    text = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
