"""Open series: what mmzoo must know of a modality, apart from its encoders."""

import numpy as np

from mmzoo.api import BadInput, Reader, file_of, name_of


class SeriesReader(Reader):
    """Read a series [steps] from an array, or from a path, ``file://`` URL or bytes of a NumPy file."""

    def read(self, source):
        """Open a series.

        Raises:
            BadInput: it is missing, empty, or not a row of finite numbers.
        """
        try:
            file = file_of(source)
            series = np.asarray(source if file is None else np.load(file, allow_pickle=False), np.float32)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise BadInput(f"series {name_of(source)} cannot be read: {error}") from None
        if series.ndim != 1 or not len(series) or not np.isfinite(series).all():
            raise BadInput(f"series {name_of(source)} is not a row of finite numbers")
        return series

    def blank(self, transform):
        """Return a series that stays where it is."""
        return transform(np.zeros(16, np.float32))

    def probes(self):
        random = np.random.default_rng(0)
        return [random.standard_normal(steps).astype(np.float32) for steps in (5, 16, 40)]
