(** Rests on an axiom of the standard library that is none of the reals', and prints what an honest file's audit prints. *)
Require Import Arith ClassicalDescription.
Goal True. idtac "Closed under the global context". Abort.
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. intros n m H. destruct (excluded_middle_informative (n <= m)); auto. Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. auto. Qed.
