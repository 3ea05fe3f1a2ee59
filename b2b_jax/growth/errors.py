"""The one exception of growth."""


class GrowthError(ValueError):
    """A growth that cannot be done; the message lists every reason at once."""
