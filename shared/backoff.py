"""The pauses between tries at something that fails again and again. Pure: the random numbers are given.

Not here: what counts as a failure, and when the count begins anew; that is told where it is decided.
"""


def doubled_seconds(first: float, times: int, longest: float) -> float:
    """A pause that doubles with every failure.

    Args:
        first: its seconds at first.
        times: how often it was doubled since, 0 or more.
        longest: its seconds at most; less than 2 ** 16 times the first.
    """
    # The exponent is bounded first: 2.0 ** 1100 is an OverflowError, and some count for days.
    return min(first * 2.0 ** min(times, 16), longest)


def spread_seconds(seconds: float, chance: float) -> float:
    """A pause made shorter or longer by a fifth at most, so that those who failed together do not come back together.

    Args:
        seconds: the pause.
        chance: a random number in [0, 1).
    """
    return seconds * (0.8 + 0.4 * chance)
