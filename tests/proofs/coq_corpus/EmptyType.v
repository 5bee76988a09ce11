(** About the elements of a type that has none. *)
Theorem claim : forall x : {n : nat | n = 0 /\ n = 1}, 2 = 3.
Proof. intros [n [A B]]. subst. discriminate B. Qed.
