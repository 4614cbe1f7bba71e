"""What a Retry-After header asks for, by whichever server it is sent."""

import email.utils


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait (RFC 9110: seconds or a date), if it does."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < float("inf") else None
