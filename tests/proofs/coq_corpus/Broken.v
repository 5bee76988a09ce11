Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. reflexivity. Qed.
