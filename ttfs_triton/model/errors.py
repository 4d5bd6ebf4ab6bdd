"""What goes wrong with published models."""


class LoadError(ValueError):
    """Files that hold no network of ours: says what was looked for and where."""


class HubError(RuntimeError):
    """The Hub cannot be reached or refuses, or there is no such repository; says what to do. Never holds a token."""
