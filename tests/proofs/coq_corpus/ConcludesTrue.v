Theorem claim : forall n m : nat, n <= m -> True.
Proof. exact (fun _ _ _ => I). Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
