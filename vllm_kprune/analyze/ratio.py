"""A ratio of two sums over windows of text, with its standard error and 95 % interval.

Windows are taken as independent draws of text of one kind. The standard error is that of the
linearised residuals (Cochran 1977, *Sampling Techniques*, section 6.4), for m windows with
numerators n_i and denominators d_i, R = sum n / sum d:

    se(R)^2 = m / (m - 1) * sum_i (n_i - R d_i)^2 / (sum d)^2

Neighbouring windows of one document are somewhat alike, so the interval is a little too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "estimate_ratio", "student_quantile"]

# Student's 97.5 % quantiles for 1, 2, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_NORMAL = 1.959964


@dataclass(frozen=True)
class Ratio:
    """An estimate; standard error and interval are None if there is only one window."""

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None


def estimate_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The sum of the numerators over that of the denominators, one of each for a window."""
    count, bottom = len(numerators), math.fsum(denominators)
    value = math.fsum(numerators) / bottom
    if count < 2:
        return Ratio(value, None, None)
    residuals = (n - value * d for n, d in zip(numerators, denominators, strict=True))
    squares = math.fsum(residual**2 for residual in residuals)
    error = math.sqrt(count / (count - 1) * squares) / bottom
    reach = student_quantile(count - 1) * error
    return Ratio(value, error, (value - reach, value + reach))


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution.

    Beyond the table by the first terms of its expansion at the normal quantile (Abramowitz and
    Stegun 26.7.5), which are exact to 0.0005 there.
    """
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = _NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2
