"""A registry of huts: the tools that an agent asks it by. Huts, guides and keys are numbers.

The file is what `--tools` is given; every function without an underscore is a tool.
"""

import random

HUTS = range(100, 400)

_drawn = random.Random(7)
_GUIDES = dict(zip(HUTS, _drawn.sample(range(400, 1000), len(HUTS)), strict=True))
_KEYS = dict(zip(_GUIDES.values(), _drawn.sample(range(100, 1000), len(HUTS)), strict=True))


def keeper_of(hut: int) -> str:
    """The guide who keeps a hut."""
    return f"guide {_GUIDES[hut]}"


def key_of(guide: int) -> str:
    """The key that a guide has."""
    return f"key {_KEYS[guide]}"
