"""RUN-42 resume: an interrupted run goes on as if it had not been interrupted."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-42",
    slug="resume",
    severity=Severity.FAIL,
    statement="a run that is saved, made anew and loaded goes on bit for bit as the run that was not interrupted",
    why="moments that start from nothing, a schedule at its peak again or a generator at its seed make another run of it",
    quantity="parts of the run that are not as they were: moments, schedule, generators, counters",
    unit="parts",
    form=Form.AT_MOST,
    seen_by=("watch", "resume_parity", "comparisons"),
    when="when guards.checkpoint(state) is called for what was read, in resume_parity, for lost moments every step, "
    "and before the first step of an optimizer that comes with moments",
    limits=(
        "watch compares what the state holds with what is there: generators and counters outside it only resume_parity sees",
        "moments that are lost within a run, by the state of one parameter, are WARN, for some drop them on purpose",
        "weights that were not loaded before watch are told, as WARN, by norms that are exactly ones or linear and convolution "
        "layers that fill the range of torch's own initialisation, in float32",
        "a warm start that drops moments on purpose: give guards.checkpoint only what is meant to go on",
        "resume_parity rebuilds in the same process: what depends on the machine or on process start is not seen",
    ),
    source="https://github.com/huggingface/transformers/issues/17032",
    example='model.load_state_dict(state["model"])  # Adam starts from nothing',
    mended='model.load_state_dict(state["model"])\noptimizer.load_state_dict(state["optimizer"])',
    declare="resume_parity(make, step)",
    holds=(Witness(0, (0,), "all parts are as they were"),),
    violates=(Witness(1, (0,), "the moments start from nothing"),),
)
