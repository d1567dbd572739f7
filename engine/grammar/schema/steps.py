"""Steps of multiples whose multiples are told by their digits."""

from fractions import Fraction

TOLD = (3, 7)
"""Primes, other than 2 and 5, whose multiples an expression of some length can tell."""


def split(step: Fraction) -> tuple[Fraction, list[int]] | None:
    """The part of a step that only the last digits tell, and the primes that all of them do: its multiples are the
    common ones of these. None if it has other parts."""
    rest, primes = step.numerator, []
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    plain = step.numerator // rest
    for prime in TOLD:
        if rest % prime == 0:
            rest //= prime
            primes.append(prime)
    if rest != 1 or (primes and step.denominator != 1):
        return None
    return Fraction(plain, step.denominator), primes
