(* an "axiom" in words only: (* and nested *) the declaration is split over lines and has attributes *)
Require Import Arith.
#[local]
Parameter
  convenient : forall n m : nat, n <= m.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. intros. apply convenient. Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
