"""Random streams: each response has its own, so its batch and its process make no difference."""

import numpy as np


def mix(x: np.ndarray) -> np.ndarray:
    """Hash each number, uint64 -> uint64 of the same shape: splitmix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def streams(seed: int, numbers: list[int], n: int) -> np.ndarray:
    """The key of each response's random stream, uint64 [P * n], the n of a prompt together. It is a hash of the seed,
    the prompt's number in the run (numbers [P]), and the response's index among the n of its prompt."""
    prompt_keys = mix(mix(np.array([seed], np.uint64)) + np.array(numbers, np.uint64))
    return mix(prompt_keys[:, None] + np.arange(n, dtype=np.uint64)).ravel()


def uniforms(keys: np.ndarray, t: int) -> np.ndarray:
    """Draw number t of each stream, uniform in [0, 1): keys uint64 [R] -> float64 [R]."""
    return (mix(keys + np.uint64(t)) >> np.uint64(11)) * 2.0**-53  # 53 bits, the precision of a float64
