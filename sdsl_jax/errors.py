"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class SdslError(ValueError):
    """A request that cannot be carried out.

    The message is one sentence that names the offending value and what is allowed. The command line
    prints it without a traceback and exits with status 2; library users may catch it as a
    `ValueError`.
    """


def require(condition: object, message: str) -> None:
    """Raises `SdslError(message)` unless `condition` holds."""
    if not condition:
        raise SdslError(message)


class Diverged(SdslError):
    """A training run whose loss is no longer finite."""
