(** Its premise is named, and can never hold. *)
Theorem claim : forall h : 1 = 0, h = h /\ 2 = 3.
Proof. intro h. discriminate h. Qed.
