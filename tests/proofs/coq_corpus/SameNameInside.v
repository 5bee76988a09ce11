Require Import Arith.
Module Inside.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. auto. Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
End Inside.
