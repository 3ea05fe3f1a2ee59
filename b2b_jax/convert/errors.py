"""The one exception of conversion."""


class ConvertError(ValueError):
    """A folder or a set of tensors that cannot be converted; the message lists every reason."""
