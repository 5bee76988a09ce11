Goal True. do 100000000 idtac "a line that is printed again and again and again and again and again and again". Abort.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. auto. Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
