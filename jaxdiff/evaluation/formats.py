"""Number formats of tables."""


def decimals(value: float | None) -> str:
    """Three decimals, or four significant digits of large values; a hyphen for no value."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def significant(value: float | None) -> str:
    """Three significant digits, no fraction from 1000 on; a hyphen for no value."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def fraction(value: float | None) -> str:
    """Nine significant digits, so that one changed pixel of millions shows; a hyphen for no value."""
    return "-" if value is None else f"{value:.9g}"
