"""The error of a user: what they said, why it cannot be, and what to do instead."""


class UserError(ValueError):
    """Something a user can mend. Its text has the form ``field=value: why. Fix: what``.

    Commands print it as one line and exit with status 2; there is no traceback without ``--debug``.
    """


def require(condition: bool, field: str, value: object, why: str, fix: str) -> None:
    """Raise a `UserError` about `field` unless `condition` holds."""
    if not condition:
        raise UserError(f"{field}={value!r}: {why}. Fix: {fix}")
