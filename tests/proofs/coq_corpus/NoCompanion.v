Require Import Arith.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. auto. Qed.
