"""The errors that a user sees: what was seen, what was required, what to type next."""


class KaratError(Exception):
    """An error with a cure. `exit_code` is what the command line ends with: 1 violated, 2 cannot judge."""

    exit_code = 2

    def __init__(self, seen: str, *, required: str = "", next_step: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.required = required
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.seen]
        if self.required:
            lines.append(f"  required  {self.required}")
        if self.next_step:
            lines.append(f"  next      {self.next_step}")
        return "\n".join(lines)


class ConfigError(KaratError):
    """A setting that is unknown, of the wrong type or out of its range."""


class DataError(KaratError):
    """Text that cannot be trained on: absent, too short, not text, or shared by train and validation."""


class CheckpointError(KaratError):
    """A checkpoint that is incomplete, altered, or of another model."""


class StorageError(KaratError):
    """A place that cannot be written: no permission, no space, no folder."""


class EvidenceError(KaratError):
    """Proofs that are missing or older than the running formulas, so that strict cannot start."""


class InvariantViolation(KaratError):
    """An invariant does not hold and the policy is strict."""

    exit_code = 1
