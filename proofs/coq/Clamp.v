(** A number held to an interval by comparisons, as core/formulas/schedule.py does it. *)

Require Import Reals Lra.
From Karat Require Import Carrier.

Section Formula.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition clamp (x low high : K) : K := if high <=? x then high else if ltb low x then x else low.
End Formula.

Local Open Scope R_scope.

Lemma clamp_between (x low high : R) : low <= high -> low <= clamp (K := on_R) x low high <= high.
Proof. intro H. unfold clamp. compare; lra. Qed.

Lemma clamp_inside (x low high : R) : low <= x <= high -> clamp (K := on_R) x low high = x.
Proof. intro H. unfold clamp. compare; lra. Qed.

Lemma clamp_monotone (x y low high : R) :
  low <= high -> x <= y -> clamp (K := on_R) x low high <= clamp (K := on_R) y low high.
Proof. intros H H'. unfold clamp. compare; lra. Qed.
