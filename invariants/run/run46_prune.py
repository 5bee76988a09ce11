"""RUN-46 prune: the prune rule of a search does not lose its best trial."""

from __future__ import annotations

from karat.invariants.run.rule import Form, Rule, Severity, Witness

RULE = Rule(
    id="RUN-46",
    slug="prune",
    severity=Severity.FAIL,
    statement="on finished curves the rule loses no more than declared against the trial that ends best, nothing by default",
    why="a rule that stops trials in their warm-up, or maximises a loss, ends the best first and nobody sees what was lost",
    quantity="final loss of the best trial that survives, above that of the best of all",
    unit="loss",
    form=Form.AT_MOST,
    seen_by=("pruning", "comparisons"),
    when="when karat.invariants.run.pruning is given the rule and finished curves",
    limits=(
        "it needs curves that were not pruned: those of a study without the rule, or of one before it",
        "other curves than those given: only a certificate (INV-2) holds for all",
    ),
    source="https://github.com/DLR-RM/rl-baselines3-zoo/issues/344",
    example='optuna.create_study(direction="maximize", pruner=MedianPruner())  # of a loss',
    mended='optuna.create_study(direction="minimize", pruner=MedianPruner(n_warmup_steps=1000))',
    declare="prune_rule(rule, curves, lost=0.01)",
    holds=(Witness(0.0, (0.0,), "the best survives"), Witness(0.01, (0.02,), "within what was declared")),
    violates=(Witness(0.3, (0.0,), "the best is stopped, and 0.3 lost"),),
)
