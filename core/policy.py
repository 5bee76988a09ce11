"""What happens on a violation: one pure function from verdict and policy to an action."""

from __future__ import annotations

from enum import StrEnum

from karat.core.verdict import Verdict


class Policy(StrEnum):
    """OFF: no guard runs. OBSERVE: recorded. WARN: recorded and said. STRICT: the run ends before the step."""

    OFF = "off"
    OBSERVE = "observe"
    WARN = "warn"
    STRICT = "strict"


class Action(StrEnum):
    CONTINUE = "continue"
    RECORD = "record"
    SAY = "say"
    STOP = "stop"


def decide(verdict: Verdict, policy: Policy) -> Action:
    """The action that a verdict calls for under a policy."""
    if policy is Policy.OFF or not verdict.violated:
        return Action.CONTINUE
    return {Policy.OBSERVE: Action.RECORD, Policy.WARN: Action.SAY, Policy.STRICT: Action.STOP}[policy]
