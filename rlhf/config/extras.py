"""How to install what a part of this project needs besides its own dependencies."""


def from_checkout(extra: str) -> str:
    """The command for one of the extras of pyproject.toml. Not by this project's name: in the public index another
    package has it."""
    return f"from a checkout: pip install -e '.[{extra}]'"
