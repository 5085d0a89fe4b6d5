"""Random numbers that belong to a sample: a counter-based generator keyed by (seed, position).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), over whole arrays: the draws
of a sample are the same whichever rank, micro-batch or resumed run makes them.
"""

import math

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # Salmon et al. 2011, in their Random123 code
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # golden ratio and sqrt(3) - 1
_LOW, _WORD = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, *, key: tuple[int, int]) -> np.ndarray:
    """Scramble counters (..., 4) of 32-bit words into random words (..., 4), uint64 below 2^32."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = np.array(key, dtype=np.uint64)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _WORD) ^ c1 ^ k0, p1 & _LOW, (p0 >> _WORD) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniforms(positions: np.ndarray, *, seed: int, count: int) -> np.ndarray:
    """Return (rows, count) float64 in (0, 1): row i depends on (seed, positions[i]) alone."""
    blocks = -(-count // 4)
    counter = np.zeros((len(positions), blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = (positions.astype(np.uint64) & _LOW)[:, None]
    counter[..., 2] = (positions.astype(np.uint64) >> _WORD)[:, None]
    words = philox(counter, key=(seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return (words.reshape(len(positions), -1)[:, :count] + 0.5) * 2.0**-32


def to_normals(pairs: np.ndarray) -> np.ndarray:
    """Turn uniforms (rows, 2 k) into standard normals (rows, 2 k), by Box and Muller (1958)."""
    radius = np.sqrt(-2.0 * np.log(pairs[:, ::2]))
    angle = 2.0 * math.pi * pairs[:, 1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
