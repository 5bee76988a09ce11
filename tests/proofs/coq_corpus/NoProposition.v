(** A function where a theorem should be. *)
Theorem claim : nat -> nat.
Proof. exact S. Qed.
