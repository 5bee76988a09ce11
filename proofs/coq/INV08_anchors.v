(** INV-8: the golden anchors phi^-n / 2, computed exactly, are what they are said to be; every positive rate has exactly
    one nearest anchor, within a factor sqrt phi; and the seed's identity alpha_phi / phi^3 = 0.004 is false. *)

Require Import Reals Lra Lia ZArith QArith Qreals List.
From Karat Require Import Carrier Golden GoldenNumber Constants.

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition anchor (n : Z) : golden K := divide (power_Z phi_pair (- n)) (lift (of_Z 2)).

Definition band (n k : Z) : golden K * golden K :=
  (times (anchor n) (power_Z phi_pair (- k)), times (anchor n) (power_Z phi_pair k)).

Definition nearer (rate : K) (low high : golden K) : bool := at_most (lift (rate * rate)) (times low high).

Definition is_nearest (rate : K) (n : Z) : bool :=
  nearer rate (anchor n) (anchor (n - 1)) && negb (nearer rate (anchor (n + 1)) (anchor n)).

(** 0, 0, 1, -1, 2, -2, ... as far as the anchors are searched. *)
Definition outwards : list Z := flat_map (fun k => (Z.of_nat k :: - Z.of_nat k :: nil)%Z) (seq 0 (S (Z.to_nat furthest))).

Definition nearest_anchor (rate : K) : option Z := find (is_nearest rate) outwards.
End D.

Local Open Scope R_scope.

Notation anchor_R n := (value (anchor (K := on_R) n)).
Notation lower_R n k := (value (fst (band (K := on_R) n k))).
Notation upper_R n k := (value (snd (band (K := on_R) n k))).
Notation is_nearest_R := (is_nearest (K := on_R)).

(** The pair computed for anchor n is phi^-n / 2, for every integer n. *)
Theorem anchor_value : forall n : Z, anchor_R n = powerRZ phi (- n) / 2.
Proof.
  intro n. unfold anchor, divide. rewrite value_times, value_power_Z, value_inverse, value_lift; [reflexivity|].
  unfold norm, lift, zero; simpl. lra.
Qed.

(** The computed ends of the band are anchor / phi^k and anchor phi^k. *)
Theorem band_value : forall (n : Z) (k : nat),
  lower_R n (Z.of_nat k) = anchor_R n / phi ^ k /\ upper_R n (Z.of_nat k) = anchor_R n * phi ^ k.
Proof.
  intros n k. pose proof phi_positive. unfold band; simpl fst; simpl snd.
  rewrite !value_times, !value_power_Z, powerRZ_neg' , <- pow_powerRZ by lra. split; reflexivity.
Qed.

(** In logarithms: with g = ln phi, anchor n is e^(-n g) / 2. *)
Lemma ln_phi_positive : 0 < ln phi.
Proof. rewrite <- ln_1. apply ln_increasing; destruct phi_enclosed; lra. Qed.

Lemma anchor_exp (n : Z) : anchor_R n = exp (- IZR n * ln phi) / 2.
Proof.
  rewrite anchor_value, powerRZ_Rpower by apply phi_positive. unfold Rpower. rewrite opp_IZR. reflexivity.
Qed.

Lemma exp_at_most (x y : R) : exp x <= exp y <-> x <= y.
Proof.
  split; intro H; apply Rnot_lt_le; intro N; [apply exp_increasing in N | apply exp_lt_inv in N]; lra.
Qed.

Lemma is_nearest_spec (rate : R) (n : Z) : 0 < rate ->
  (is_nearest_R rate n = true <->
   - (2 * IZR n + 1) * ln phi < 2 * ln (2 * rate) <= (1 - 2 * IZR n) * ln phi).
Proof.
  intro P. unfold is_nearest, nearer.
  assert (S : rate * rate = exp (2 * ln (2 * rate)) / 4).
  { replace (2 * ln (2 * rate)) with (ln (2 * rate) + ln (2 * rate)) by ring. rewrite exp_plus, exp_ln by lra. lra. }
  assert (C : forall m : Z, at_most (lift (K := on_R) (rate * rate)%R) (times (anchor m) (anchor (m - 1))) = true
                            <-> 2 * ln (2 * rate) <= (1 - 2 * IZR m) * ln phi).
  { intro m. rewrite at_most_is_order, value_lift, value_times, !anchor_exp, S, minus_IZR.
    rewrite <- (exp_at_most (2 * ln (2 * rate))).
    replace ((1 - 2 * IZR m) * ln phi) with (- IZR m * ln phi + - (IZR m - 1) * ln phi) by ring.
    rewrite exp_plus. split; intro; lra. }
  pose proof (C n) as C0. pose proof (C (n + 1)%Z) as C1. replace (n + 1 - 1)%Z with n in C1 by lia.
  rewrite plus_IZR in C1. simpl mul. rewrite Bool.andb_true_iff, Bool.negb_true_iff, C0, <- Bool.not_true_iff_false, C1.
  split; intros [H1 H2]; (split; [|lra]); lra.
Qed.

(** Every positive rate has exactly one nearest anchor. *)
Theorem one_nearest : forall rate : R, 0 < rate -> exists! n : Z, is_nearest_R rate n = true.
Proof.
  intros rate P. pose proof ln_phi_positive as G. set (y := 2 * ln (2 * rate) / ln phi).
  assert (E : y * ln phi = 2 * ln (2 * rate)) by (unfold y; field; lra).
  assert (C : forall n : Z, is_nearest_R rate n = true <-> - (2 * IZR n + 1) < y <= 1 - 2 * IZR n).
  { intro n. rewrite (is_nearest_spec rate n P), <- E. split; intros [H1 H2]; split; nra. }
  exists (up ((- y - 1) / 2)). destruct (archimed ((- y - 1) / 2)) as [A1 A2]. split.
  - apply C. lra.
  - intros m Hm. apply C in Hm. destruct Hm as [M1 M2].
    apply Z.le_antisymm; apply Z.lt_succ_r; apply lt_IZR; unfold Z.succ; rewrite plus_IZR; lra.
Qed.

Lemma one_nearest_satisfiable : exists rate : R, 0 < rate.
Proof. exists (4 / 1000). lra. Qed.

(** The search finds n iff n is the nearest anchor and lies among those searched; it finds no other. *)
Theorem nearest_anchor_found : forall (rate : R) (n : Z), 0 < rate ->
  (nearest_anchor (K := on_R) rate = Some n <-> is_nearest_R rate n = true /\ (Z.abs n <= furthest)%Z).
Proof.
  intros rate n P.
  assert (I : forall m : Z, In m outwards <-> (Z.abs m <= furthest)%Z).
  { assert (F : (0 <= furthest)%Z) by (compute; discriminate).
    intro m. unfold outwards. rewrite in_flat_map. split.
    - intros [k [Hk Hm]]. apply in_seq in Hk. simpl In in Hm. lia.
    - intro H. exists (Z.to_nat (Z.abs m)). rewrite in_seq. simpl In. lia. }
  unfold nearest_anchor. split.
  - intro H. apply find_some in H. rewrite I in H. tauto.
  - intros [H A]. destruct (find (is_nearest_R rate) outwards) as [m|] eqn:E.
    + apply find_some in E. destruct E as [_ E]. destruct (one_nearest rate P) as [o [_ U]].
      rewrite <- (U n H), <- (U m E). reflexivity.
    + apply find_none with (x := n) in E; [congruence | apply I; exact A].
Qed.

Lemma nearest_anchor_found_satisfiable : exists (rate : R) (n : Z), 0 < rate.
Proof. exists (4 / 1000), 10%Z. lra. Qed.

(** The nearest anchor is within a factor sqrt phi of the rate. *)
Theorem nearest_is_near : forall (rate : R) (n : Z),
  0 < rate -> is_nearest_R rate n = true -> anchor_R n / sqrt phi < rate <= anchor_R n * sqrt phi.
Proof.
  intros rate n P H. apply (is_nearest_spec rate n P) in H.
  assert (S : sqrt phi = exp (ln phi / 2)).
  { rewrite <- Rpower_sqrt by apply phi_positive. unfold Rpower. f_equal. field. }
  assert (T : exp (ln (2 * rate)) = 2 * rate) by (apply exp_ln; lra).
  assert (A : exp (- IZR n * ln phi) * exp (- (ln phi / 2)) < 2 * rate)
    by (rewrite <- exp_plus, <- T; apply exp_increasing; lra).
  assert (B : 2 * rate <= exp (- IZR n * ln phi) * exp (ln phi / 2))
    by (rewrite <- exp_plus, <- T; apply exp_at_most; lra).
  rewrite anchor_exp, S. unfold Rdiv at 1. rewrite <- exp_Ropp.
  lra.
Qed.

Lemma nearest_is_near_satisfiable : exists (rate : R) (n : Z), 0 < rate /\ is_nearest_R rate n = true.
Proof. destruct (one_nearest (4 / 1000)) as [n [H _]]; [lra|]. exists (4 / 1000), n. split; [lra | exact H]. Qed.

(** So every positive rate lies in the band of some anchor, whatever the width k >= 1. *)
Theorem every_rate_in_a_band : forall (rate : R) (k : nat),
  0 < rate -> (1 <= k)%nat -> exists n : Z, lower_R n (Z.of_nat k) <= rate <= upper_R n (Z.of_nat k).
Proof.
  intros rate k P Hk. destruct (one_nearest rate P) as [n [H _]]. exists n.
  apply (nearest_is_near rate n P) in H. destruct (band_value n k) as [-> ->]. destruct phi_enclosed as [F _].
  assert (G : sqrt phi <= phi ^ k).
  { apply Rle_trans with phi.
    - rewrite <- (sqrt_sqrt phi) at 2 by lra. assert (1 <= sqrt phi) by (rewrite <- sqrt_1; apply sqrt_le_1_alt; lra). nra.
    - rewrite <- (pow_1 phi) at 1. apply Rle_pow; lra || exact Hk. }
  assert (A : 0 < anchor_R n) by (rewrite anchor_exp; pose proof (exp_pos (- IZR n * ln phi)); lra).
  assert (0 < sqrt phi) by (apply sqrt_lt_R0; lra).
  assert (/ phi ^ k <= / sqrt phi) by (apply Rinv_le_contravar; lra).
  unfold Rdiv in *. nra.
Qed.

Lemma every_rate_in_a_band_satisfiable : exists (rate : R) (k : nat), 0 < rate /\ (1 <= k)%nat.
Proof. exists (4 / 1000), 2%nat. split; [lra | lia]. Qed.

(** Powers of 1/phi, each from the one before. *)
Lemma inverse_powers : (/ phi) ^ 3 = 2 * / phi - 1 /\ (/ phi) ^ 6 = 5 - 8 * / phi /\ (/ phi) ^ 10 = 34 - 55 * / phi.
Proof.
  assert (E : / phi * / phi = 1 - / phi) by (rewrite phi_inverse; pose proof phi_times_phi; lra).
  set (q := / phi) in *.
  assert (E3 : q ^ 3 = 2 * q - 1) by (transitivity (q * (q * q)); [ring | rewrite E; nra]).
  assert (E4 : q ^ 4 = 2 - 3 * q) by (transitivity (q * q * (q * q)); [ring | rewrite E; nra]).
  assert (E6 : q ^ 6 = 5 - 8 * q) by (transitivity (q ^ 4 * (q * q)); [ring | rewrite E4, E; nra]).
  split; [exact E3|]. split; [exact E6|]. transitivity (q ^ 6 * q ^ 4); [ring | rewrite E4, E6; nra].
Qed.

(** alpha_phi, as the running code has it, is phi^-3 / 2 = (sqrt 5 - 2) / 2. *)
Theorem alpha_phi_value : rational_value alpha_phi = / phi ^ 3 / 2 /\ rational_value alpha_phi = (sqrt 5 - 2) / 2.
Proof.
  assert (E : rational_value alpha_phi = (sqrt 5 - 2) / 2).
  { unfold rational_value, alpha_phi, Q2R, phi; simpl. field. }
  split; [|exact E]. destruct inverse_powers as [E3 _]. rewrite E, <- pow_inv, E3, phi_inverse. unfold phi. field.
Qed.

(** The seed's identity alpha_phi / phi^3 = 0.004 is false: the quotient is 0.027864... *)
Theorem seed_identity_value : 27864 / 1000000 < rational_value alpha_phi / phi ^ 3 < 27865 / 1000000.
Proof.
  destruct alpha_phi_value as [-> _]. destruct inverse_powers as [_ [E _]]. pose proof phi_positive.
  replace (/ phi ^ 3 / 2 / phi ^ 3) with ((/ phi) ^ 6 / 2) by (rewrite pow_inv; field; lra).
  rewrite E, phi_inverse. destruct phi_enclosed. lra.
Qed.

Theorem seed_identity_false : rational_value alpha_phi / phi ^ 3 <> 4 / 1000.
Proof. destruct seed_identity_value. lra. Qed.

(** The default anchor is 0.00406..., the default band [0.00251..., 0.00657...], and 0.004 lies in it. *)
Theorem default_anchor : 406 / 100000 < anchor_R band_n < 407 / 100000.
Proof.
  rewrite anchor_value. destruct inverse_powers as [_ [_ E]]. pose proof phi_positive.
  change (powerRZ phi (- band_n)) with (/ phi ^ 10). rewrite <- pow_inv, E, phi_inverse.
  destruct phi_enclosed. lra.
Qed.

Theorem default_band : 251 / 100000 < lower_R band_n band_k < 252 / 100000
  /\ 657 / 100000 < upper_R band_n band_k < 658 / 100000 /\ lower_R band_n band_k < 4 / 1000 < upper_R band_n band_k.
Proof.
  destruct (band_value band_n (Z.to_nat band_k)) as [L U]. rewrite Z2Nat.id in L, U by (compute; discriminate).
  rewrite L, U, !anchor_value. destruct inverse_powers as [_ [_ E]]. pose proof phi_positive as P.
  change (powerRZ phi (- band_n)) with (/ phi ^ 10). change (Z.to_nat band_k) with 1%nat.
  unfold Rdiv. rewrite pow_1, <- pow_inv, E, phi_inverse. pose proof phi_times_phi. destruct phi_enclosed. repeat split; nra.
Qed.
