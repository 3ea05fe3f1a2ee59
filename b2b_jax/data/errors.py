"""The one exception of the data package."""


class DataError(ValueError):
    """Text, tokenizer or prepared tokens that cannot be used; says where and what to do."""
