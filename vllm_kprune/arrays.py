"""Array types that several rooms share. An axis or unit is named where the array is declared."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Booleans", "Bytes", "Floats", "Integers"]

Booleans: TypeAlias = npt.NDArray[np.bool_]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
