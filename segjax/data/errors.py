"""The error of the data layer."""


class DataError(ValueError):
    """Something about the data is wrong; the message names the file, what was expected and what was seen."""
