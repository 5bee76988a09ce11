"""Reading what Coq prints: outputs of Coq 8.16.1, as they came, wrapped lines included."""

from __future__ import annotations

import pytest

from karat.invariants.coq_sources import without_comments
from karat.proofs.coq_text import (
    ALLOWED_AXIOMS,
    assumptions_of,
    definition_of,
    forbidden,
    statement_of,
    value_of,
)
from karat.proofs.theorems import unexpected

WRAPPED = """Axioms:
ClassicalDedekindReals.sig_not_dec
  : forall P : Prop, {~ ~ P} + {~ P}
ClassicalDedekindReals.sig_forall_dec
  : forall P : nat -> Prop,
    (forall n : nat, {P n} + {~ P n}) ->
    {n : nat | ~ P n} + {forall n : nat, P n}
FunctionalExtensionality.functional_extensionality_dep
  : forall (A : Type) (B : A -> Type)
      (f g : forall x : A, B x),
    (forall x : A, f x = g x) -> f = g
Classical_Prop.classic : forall P : Prop, P \\/ ~ P
"""


def test_wrapped_axioms_are_read_whole_and_allowed() -> None:
    found = assumptions_of(WRAPPED)
    assert found.axioms == ALLOWED_AXIOMS and not found.unsafe and not found.refused


def test_a_closed_theorem_has_no_axioms() -> None:
    found = assumptions_of("Closed under the global context\n")
    assert not found.axioms and not found.refused


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("Axioms:\nax.cheat : forall n m : nat, n = m", "ax.cheat"),
        ("Axioms:\nax.t10 : 1%R = 2%R", "ax.t10"),  # an admitted theorem shows its own name
        ("Axioms:\nax.loop is assumed to be guarded.", "guarded"),
        ("Axioms:\nax.bad is assumed to be positive.", "positive"),
        ("Axioms:\nax.t8 relies on an unsafe hierarchy.\nax.U relies on an unsafe hierarchy.", "unsafe hierarchy"),
        ("Axioms:\nClassical_Prop.classic : forall P : Prop, P", "says"),  # the right name with another statement
        ("Axioms:\nClassical_Prop.classic : forall P : Prop,\n  P", "says"),
        ("Section Variables:\nh : 1 = 2", "not understood"),
        ("", "not understood"),
        ("Transparent constants:\nx : nat", "not understood"),
    ],
)
def test_anything_else_is_refused(printed: str, told: str) -> None:
    refused = assumptions_of(printed).refused
    assert refused and told in " ".join(refused)


def test_a_statement_is_read_on_one_line() -> None:
    assert statement_of("ax.tt2\n     : forall n : nat,\n       n <= n") == "forall n : nat, n <= n"
    with pytest.raises(ValueError, match="not what Check prints"):
        statement_of("Error: no such thing")


def test_a_definition_is_read_without_argument_scopes() -> None:
    printed = "ax.depth = \nfix depth (t : ax.tree) : nat :=\n  0\n     : ax.tree -> nat\n\nArguments ax.depth t"
    assert definition_of(printed) == "ax.depth = fix depth (t : ax.tree) : nat := 0 : ax.tree -> nat"


@pytest.mark.parametrize(
    ("printed", "value"),
    [
        ("     = 4\n     : Z", 4),
        ("     = (-3)%Z\n     : Z", -3),
        ("     = (((-1), 512) :: (1, 2) :: nil)\n     : list (Z * Z)", [(-1, 512), (1, 2)]),
        ("     = [(1, 2); (-3, 4)]\n     : list (Z * Z)", [(1, 2), (-3, 4)]),
        ("     = [[1; 2]; []]\n     : list (list Z)", [[1, 2], []]),
        ("     = (1%nat :: 2%nat :: nil) :: nil\n     : list (list nat)", [[1, 2]]),
        ("     = (true, false)\n     : bool * bool", (True, False)),
        ("     = [(1, 2);\n        (3, 4)]\n     : list (Z * Z)", [(1, 2), (3, 4)]),
    ],
)
def test_values_are_read(printed: str, value: object) -> None:
    assert value_of(printed) == value


@pytest.mark.parametrize("printed", ["", "= fun x => x\n : nat", "     = (1, \n     : Z", "     = 1 2\n     : Z", "1"])
def test_what_is_no_value_is_refused(printed: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        value_of(printed)


def test_comments_nest_and_strings_hide_nothing() -> None:
    text = 'a (* b (* c *) Axiom d *) e "x (* y" f (* "*)" *) g'
    plain = without_comments(text)
    assert "Axiom" not in plain and all(word in plain.split() for word in ("a", "e", "f", "g"))


@pytest.mark.parametrize(
    "text",
    [
        "Axiom a : False.",
        "#[local]\nParameter\n a : False.",
        "Theorem t : True. Proof. admit. Admitted.",
        "Unset\n  Guard   Checking.",
        "#[bypass_check(guard)] Fixpoint f (n : nat) : nat := f n.",
        "Hypothesis h : False.",
        "Section S. End S. Variable h : False.",
        "Section S. End S. Context (h : False).",
        "Module M. End M.",
        "Require Import Karat.Base.",
        "From Karat Require Import (notations) Base.",
        "From Karat Require Base. Import Karat.Base.",
        'Definition s := "(*"%string. Axiom a : False. Definition t := "*)"%string.',
        'Declare ML Module "x".',
        "Conjecture c : False.",
    ],
)
def test_sources_may_not_contain_this(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize(
    "text",
    [
        "Section S. Context {K : Type}. Variable x : K. Definition d := x. End S.",
        "(** Rests on no Axiom. *) Theorem t : 1 = 1. Proof. reflexivity. Qed.",
        "Lemma admitted_values : 1 = 1. Proof. reflexivity. Qed. Definition my_Axiom := 1.",
        "Section S. Section T. Variable x : nat. End T. Variable y : nat. End S.",
        "From Karat Require Import Carrier Sums. Require Import Reals Lra. From Flocq Require Import Core.",
    ],
)
def test_sources_may_contain_this(text: str) -> None:
    assert not forbidden(text)


SUMMARY = """
CONTEXT SUMMARY
===============

* Theory: Set is predicative

* Axioms:
    Coq.Logic.FunctionalExtensionality.functional_extensionality_dep
    Coq.Reals.ClassicalDedekindReals.sig_not_dec

* Constants/Inductives relying on type-in-type: <none>

* Constants/Inductives relying on unsafe (co)fixpoints: <none>

* Inductives whose positivity is assumed: <none>
"""


def test_coqchk_s_summary_is_read() -> None:
    assert unexpected(SUMMARY) == []
    assert unexpected(SUMMARY.replace("Coq.Reals.ClassicalDedekindReals", "Karat.A.ClassicalDedekindReals"))
    assert unexpected(SUMMARY.replace("sig_not_dec", "sig_not_dec\n    Karat.INV08_lr_band.cheat")) == [
        "Karat.INV08_lr_band.cheat"
    ]
    assert unexpected(SUMMARY.replace("fixpoints: <none>", "fixpoints:\n    Karat.A.loop"))
    assert unexpected(SUMMARY.replace("positivity is assumed: <none>", "positivity is assumed: Karat.A.bad"))
    assert unexpected("") and unexpected("* Axioms:\n")
