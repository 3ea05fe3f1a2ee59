"""The one exception of reports."""


class ReportError(ValueError):
    """Run folders that cannot be compared; the message lists every one of them."""
