"""Seeds of a codec's random numbers.

A seed depends on what is encoded, never on where or when: (seed of the job, step, rank, name of the tensor or bucket,
stage). With the index of a value it decides the random number, so a payload is the same bytes on any machine, with
any number of threads.
"""

from hashlib import blake2b

EVERY_RANK = -1  # as ``rank``: the seed that all ranks share, for codecs with ``shared_seed``


def derive(seed: int, step: int, rank: int, name: str) -> int:
    """A seed of 63 bits from the job's seed, the step, the rank (or EVERY_RANK) and a name; unlike inputs give
    unrelated seeds.
    """
    digest = blake2b(f"{seed}/{step}/{rank}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
