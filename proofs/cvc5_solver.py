"""cvc5 on SMT-LIB text, in a process of its own that the clock can end.

A few ways of searching are tried in turn. Every `sat` is checked by cvc5 itself against its model, because an answer
with a model that breaks an assertion is no answer: cvc5 1.4.2 gave such ones under --nl-ext-purify, which is therefore not
among the ways. That check ends the process when it fails; so does a watchdog when the solver's own limit does not.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cvc5

GRACE_SECONDS = 2.0
"""How long the watchdog waits after the solver's own limit."""

COVERINGS = {"nl-cov": "true"}
STRATEGIES: dict[str, dict[str, str]] = {
    "as it comes": {},
    "coverings": COVERINGS,
    "intervals": {"nl-icp": "true"},
    "other branching": {"decision": "internal", "arith-brab": "false"},
}
"""Ways of searching, by name: linearization, cylindrical coverings (real witnesses), interval propagation, another order."""

_FORMATS = re.compile(r"\(_ (?:to_fp|FloatingPoint|NaN|[+-]oo|[+-]zero) (\d+) (\d+)\)")
_SUPPORTED = {("8", "24"), ("11", "53")}


@dataclass(frozen=True)
class Answer:
    """result: "sat", "unsat" or "none"; how: the way that found it, or why there is none; error: the text was refused."""

    result: str
    how: str
    seconds: float
    error: bool = False


def solve(text: str, milliseconds: int, options: dict[str, str]) -> str:
    """cvc5's reply to a script, in this process: sat, unsat, unknown (…) or (error "…")."""
    solver = cvc5.Solver()
    wider = {"fp-exp": "true"} if set(_FORMATS.findall(text)) - _SUPPORTED else {}
    checked = {"produce-models": "true", "check-models": "true"}
    for name, value in (checked | wider | options).items():
        solver.setOption(name, value)
    solver.setOption("tlimit-per", str(milliseconds))
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "query")
    symbols, replies = parser.getSymbolManager(), []
    while not (command := parser.nextCommand()).isNull():
        replies.append(str(command.invoke(solver, symbols)).strip())
    return "\n".join(reply for reply in replies if reply)


def _serve(pipe: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the solver's warnings; how it ended is seen from its exit code
    while True:
        try:
            text, milliseconds, options = pipe.recv()
        except EOFError:
            return
        try:
            reply = solve(text, milliseconds, options)
        except Exception as error:  # whatever the bindings raise is a refusal, and is reported as one
            reply = f'(error "{error}")'
        pipe.send(reply)


def child(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """A process of its own that runs target(*arguments, pipe), and this side's end of the pipe."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["karat.proofs.worker", "karat.proofs.cvc5_solver"])
    near, far = context.Pipe()
    process = context.Process(target=target, args=(*arguments, far), daemon=True)  # type: ignore[attr-defined]
    process.start()
    far.close()
    return process, near


class Solver:
    """A cvc5 process that is started when it is needed, and again after it was ended. Use it as a context."""

    def __init__(self, seconds: float, grace: float = GRACE_SECONDS) -> None:
        self.seconds, self.grace = seconds, grace
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def answer(self, text: str, witness: tuple[str, ...] = ()) -> Answer:
        """The first definite answer. With a witness the values are asserted too, last of all: then only an answer to
        that stronger question is known, and `how` says so."""
        ways = [(name, text, options) for name, options in STRATEGIES.items()]
        if witness:
            given = "".join(f"(assert {line})\n" for line in witness)
            ways.append(("at Z3's witness", text.replace("(check-sat)", given + "(check-sat)"), COVERINGS))
        start = time.perf_counter()
        failures = []
        for name, script, options in ways:
            reply = self._ask(script, self.seconds / len(ways), options)
            spent = round(time.perf_counter() - start, 3)
            if reply in ("sat", "unsat"):
                return Answer(reply, name, spent)
            if reply.startswith("(error"):
                return Answer("none", reply, spent, error=True)
            failures.append(f"{name}: {reply}")
        return Answer("none", "; ".join(failures), round(time.perf_counter() - start, 3))

    def _ask(self, text: str, seconds: float, options: dict[str, str]) -> str:
        if self._process is None:
            self._start()
        self._pipe.send((text, max(1, int(1000 * seconds)), options))
        try:
            if self._pipe.poll(seconds + self.grace):
                return str(self._pipe.recv())
            reply = f"ended by the watchdog after {seconds + self.grace:.1f} s"
        except (EOFError, ConnectionResetError):
            self._process.join()
            reply = f"the process ended with code {self._process.exitcode}"
        self._end()
        return reply

    def _start(self) -> None:
        self._process, self._pipe = child(_serve)

    def _end(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None
