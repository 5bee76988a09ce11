"""The command `trainer`. Standard output is the result alone; all else goes to standard error.

Exit codes: 0 holds, 1 violated or refuted, 2 cannot judge (a bad setting, no data, an interrupted run).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.markdown

from karat.core.errors import KaratError
from karat.core.policy import Policy
from karat.core.report import read_lock
from karat.invariants import template
from karat.invariants.catalogue import catalogue, find, found
from karat.invariants.run.catalogue import RULES, find_rule
from karat.invariants.run.pages import page
from karat.invariants.standing import LOCK, lock_path
from karat.trainer.audit.command import add_options, audit_log
from karat.trainer.budget import command as budget
from karat.trainer.config_file import read_config, to_toml
from karat.trainer.console import Console
from karat.trainer.explain import explain
from karat.trainer.gate import gate_of, gate_runs
from karat.trainer.gradcheck.command import add_options as add_gradcheck_options
from karat.trainer.gradcheck.command import check_gradients
from karat.trainer.preflight import preflight_config
from karat.trainer.presets import PRESETS
from karat.trainer.run import CANNOT_JUDGE, HOLDS, newest, resume, show_report, start


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="trainer", description="Training runs that carry proof.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train under guards; prints BPB=X.XXXX")
    run.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    run.add_argument("--preset", metavar="NAME", help="settings to start from; trainer presets lists them")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, such as model.d_model=256"
    )
    run.add_argument("--data", help="stdlib, tiny_shakespeare, synthetic, or a text file or folder")
    run.add_argument("--out", type=Path, help="folder of the run (default: the next free one in runs/)")
    run.add_argument("--policy", choices=[p.value for p in Policy], help="what a violation does")
    run.add_argument("--strict-invariants", action="store_true", help="the same as --policy strict")
    run.add_argument("--overfit-one-batch", action="store_true", help="train on one batch; 0 when its loss came near 0")
    run.add_argument("--print-config", action="store_true", help="print the resolved configuration as TOML and end")
    run.add_argument("--quiet", action="store_true", help="nothing on standard error but errors")
    before = commands.add_parser("preflight", help="probe a run's model, loss and optimizer before its first step")
    before.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    before.add_argument("--preset", metavar="NAME", help="settings to start from; trainer presets lists them")
    before.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting")
    before.add_argument("--data", help="stdlib, tiny_shakespeare, synthetic, or a text file or folder")
    before.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    again = commands.add_parser("resume", help="continue a run from its newest checkpoint")
    again.add_argument("run", type=Path, metavar="RUN")
    shown = commands.add_parser("report", help="print the report of a run")
    shown.add_argument("run", type=Path, nargs="?", metavar="RUN", help="default: the newest in runs/")
    gate = commands.add_parser("gate", help="are three runs below a target, by a t-test? VICTORY or NOT MET")
    gate.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="finished runs that differ in their seeds alone"
    )
    gate.add_argument("--target", default="1.5", metavar="BPB", help="the loss to be below (default: 1.5)")
    gate.add_argument("--alpha", default="0.01", metavar="P", help="the level of the test (default: 0.01)")
    gate.add_argument("--json", action="store_true", help="the verdict as JSON on standard output")
    gate.add_argument(
        "--policy", choices=[Policy.WARN.value, Policy.STRICT.value], default=Policy.STRICT.value,
        help="strict (default) judges by current proofs only",
    )  # fmt: skip
    add_options(commands.add_parser("audit", help="judge a finished run from its log alone"))
    add_gradcheck_options(
        commands.add_parser("gradcheck", help="every gradient by hand, by autograd and by differences")
    )
    budget.add_options(commands.add_parser("budget", help="parameters, memory and operations, checked by a few steps"))
    explained = commands.add_parser("explain", help="statement, bounds, evidence and limits of an invariant")
    explained.add_argument("invariant", nargs="?", metavar="INV-8", help="an id or slug; without it, the list")
    commands.add_parser("presets", help="the named configurations of trainer run --preset")
    commands.add_parser("verify", help="prove the catalogue; trainer verify --help shows its options")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors are one message, without a traceback unless --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["verify"]:  # its options are its own
        return subprocess.run([sys.executable, "-m", "karat.proofs.verify", *given[1:]], check=False).returncode
    options = parser().parse_args(given)
    console = Console()
    try:
        return _dispatch(options, console)
    except KaratError as error:
        if options.debug:
            traceback.print_exc()
        console.error(f"trainer: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.error("trainer: ended at once by a second signal; the newest checkpoint is what remains")
        return CANNOT_JUDGE
    except Exception as error:  # the last resort: a person sees one line
        if options.debug:
            raise
        console.error(f"trainer: unexpected {type(error).__name__}: {error}\n  next      trainer --debug … shows where")
        return CANNOT_JUDGE


def _dispatch(options: argparse.Namespace, console: Console) -> int:
    match options.command:
        case "run":
            return _run(options, console)
        case "preflight":
            return _preflight(options, console)
        case "resume":
            return _result(*resume(options.run, console))
        case "report":
            _print_markdown(show_report(options.run or newest()))
            return HOLDS
        case "gate":
            gate = gate_of(options.target, options.alpha)
            return gate_runs(options.runs, gate, Policy(options.policy), console, to_json=options.json)
        case "audit":
            return audit_log(options, console)
        case "budget":
            return budget.show_budgets(options, console)
        case "presets":
            for name, (what, _) in PRESETS.items():
                print(f"{name:<14} {what}")
            return HOLDS
        case "gradcheck":
            return check_gradients(options)
        case "explain":
            return _explain(options.invariant)
        case _:
            raise KaratError(f"there is no command {options.command!r}", next_step="trainer --help")


def _run(options: argparse.Namespace, console: Console) -> int:
    policy = Policy.STRICT.value if options.strict_invariants else options.policy
    config = read_config(
        options.config, options.set, preset=options.preset, policy=policy, data=options.data, out=options.out,
        overfit_one_batch=options.overfit_one_batch or None,
    )  # fmt: skip
    if options.print_config:
        print(to_toml(config), end="")
        return HOLDS
    return _result(*start(config, Console(quiet=True) if options.quiet else console))


def _preflight(options: argparse.Namespace, console: Console) -> int:
    config = read_config(options.config, options.set, preset=options.preset, data=options.data)
    report = preflight_config(config, console)
    print(report.model_dump_json(indent=2) if options.json else report)
    return report.exit_code


def _result(code: int, bpb: float | None) -> int:
    if bpb is not None:
        print(f"BPB={bpb:.4f}", flush=True)
    return code


def _explain(name: str | None) -> int:
    if name is None:
        for invariant in catalogue():
            print(f"{invariant.id:<8} {invariant.slug:<24} {invariant.statement}")
        for rule in RULES:
            print(f"{rule.id:<8} {rule.slug:<24} {rule.statement}")
        for error in found().broken:
            print(f"left out: {error}", file=sys.stderr)
    elif name.lower().startswith("run-") or name in [rule.slug for rule in RULES]:
        _print_markdown(page(find_rule(name), read_lock(LOCK)))
    else:
        invariant = find(name, (*catalogue(), template.INVARIANT))
        print(explain(invariant, read_lock(lock_path(invariant))), end="")
    return HOLDS


def _print_markdown(text: str) -> None:
    """Rendered on a terminal, as it is in a pipe."""
    if sys.stdout.isatty():
        rich.console.Console().print(rich.markdown.Markdown(text))
    else:
        print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
