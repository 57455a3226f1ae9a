"""What is raised when data cannot be used."""


class DataError(ValueError):
    """A prompt or its row cannot be used; the message names the place (file, row, field) and the remedy."""
