Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. do 1000000000 (try fail). auto. Qed.
