(** The golden ratio: its equation, its conjugate, its powers' sums, and enclosures. *)

Require Import Reals Lra.
Local Open Scope R_scope.

Definition phi : R := (1 + sqrt 5) / 2.
Definition psi : R := (1 - sqrt 5) / 2.

Lemma sqrt5_squared : sqrt 5 * sqrt 5 = 5.
Proof. apply sqrt_sqrt; lra. Qed.

(** 2.2360679774 < sqrt 5 < 2.2360679775 *)
Lemma sqrt5_enclosed : 22360679774 / 10000000000 < sqrt 5 < 22360679775 / 10000000000.
Proof.
  split; apply Rsqr_incrst_0; try (unfold Rsqr; rewrite ?sqrt5_squared; lra); try apply sqrt_pos; lra.
Qed.

Theorem phi_enclosed : 1618033988 / 1000000000 < phi < 1618033989 / 1000000000.
Proof. unfold phi. destruct sqrt5_enclosed. lra. Qed.

Lemma phi_positive : 0 < phi.
Proof. destruct phi_enclosed. lra. Qed.

Theorem phi_squared : phi ^ 2 = phi + 1.
Proof. unfold phi. simpl. pose proof sqrt5_squared. nra. Qed.

Theorem psi_squared : psi ^ 2 = psi + 1.
Proof. unfold psi. simpl. pose proof sqrt5_squared. nra. Qed.

Theorem phi_times_psi : phi * psi = -1.
Proof. unfold phi, psi. pose proof sqrt5_squared. nra. Qed.

Theorem phi_inverse : / phi = phi - 1.
Proof.
  pose proof phi_positive. pose proof phi_squared as E. simpl in E.
  apply Rmult_eq_reg_l with phi; [rewrite Rinv_r by lra; lra | lra].
Qed.

(** The seed's "trinity". *)
Theorem phi_squares : phi ^ 2 + / phi ^ 2 = 3.
Proof.
  rewrite <- pow_inv, phi_inverse. pose proof phi_squared as E. simpl in *. nra.
Qed.
