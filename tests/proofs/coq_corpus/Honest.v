(** What every other file of this folder pretends to prove. *)
Require Import Arith.

Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. auto. Qed.

Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
