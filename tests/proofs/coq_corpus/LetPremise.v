(** Its premise stands behind a let, and can never hold. *)
Theorem claim : let zero := 0 in zero = 1 -> 2 = 3.
Proof. intros zero H. discriminate H. Qed.
