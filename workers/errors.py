"""Every error that prefmill raises on purpose.

    PrefmillError
    ├── ConfigurationError        what a person wrote cannot be used: exit code 2
    │   ├── RecipeError           a recipe's key, its value, what would be accepted
    │   ├── SettingsError         an environment variable or option
    │   │   └── FolderBusy        a run works in the folder
    │   ├── SourceError           a source that cannot be opened or read
    │   └── DestinationRefused    Argilla or the Hub will never take this as it is
    ├── LedgerError               the ledger cannot be read or written
    ├── BrokerError               the broker cannot be reached
    ├── DestinationAway           Argilla or the Hub does not take it now (says when, if it did)
    ├── Interrupted               someone asked to stop: exit code 128 + signal
    ├── CallFailed                one LLM call ended without a usable answer (has a reason)
    └── InvalidJudgement          a judge's reply does not keep the contract

Adapters translate foreign exceptions into these; nobody else catches foreign ones.
"""


class PrefmillError(Exception):
    """Root of the errors that prefmill raises on purpose."""


class ConfigurationError(PrefmillError):
    """What a person wrote cannot be used; nothing was started."""


class RecipeError(ConfigurationError):
    """A recipe cannot be used; the message names the key, the value and what is accepted."""


class SettingsError(ConfigurationError):
    """An environment variable or option cannot be used."""


class FolderBusy(SettingsError):
    """A run works in the folder."""


class SourceError(ConfigurationError):
    """A source of prompts cannot be opened or read."""


class DestinationRefused(ConfigurationError):
    """A destination will never take what is sent as things are.

    The message names the token, repository, workspace or field, and what is accepted.
    """


class DestinationAway(PrefmillError):
    """A destination cannot be reached, or is busy or broken; trying later may help.

    `retry_after_s` is what it asked for, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LedgerError(PrefmillError):
    """The ledger cannot be read or written."""


class BrokerError(PrefmillError):
    """The broker cannot be reached."""


class Interrupted(PrefmillError):
    """Someone asked to stop; what is in flight stays in flight for the next run."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


class CallFailed(PrefmillError):
    """One LLM call ended without a usable answer.

    `reason` is one of `workers.chat.REASONS`; `retriable` says whether asking again may help, and
    `retry_after_s` is what the endpoint asked for, in seconds.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retriable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.retriable = retriable
        self.retry_after_s = retry_after_s


class InvalidJudgement(PrefmillError):
    """A judge's reply does not keep the contract; the message names what was wrong."""
